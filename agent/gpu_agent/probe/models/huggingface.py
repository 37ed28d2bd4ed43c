"""Models in Hugging Face hub caches, found without the library that made them.

A model is one snapshot of a repository `models--org--name`, or a ref whose snapshot does not exist (yet). It
is ready when every entry of the snapshot resolves, and weights are neither empty nor shorter than their own
header says; while the repository holds an `*.incomplete` blob, the snapshot being filled is `downloading`; a
dangling link or ref is `error`.

No link is followed out of the cache, and datasets are no models. Blobs are not watched: the hub's library
moves one into its place when it is whole, and leaves it so.
"""

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from gpu_agent.probe.models.files import (
    FolderReader,
    FoundFile,
    is_folder,
    list_root,
    list_units,
    readable,
    reason,
)
from gpu_agent.probe.models.kinds import languages_of
from gpu_agent.probe.models.plain_repository import (
    BLOBS,
    INCOMPLETE,
    MAX_REF_BYTES,
    REFS,
    SNAPSHOTS,
    PlainRepository,
    list_plain,
)
from gpu_agent.probe.models.source import UNVERSIONED, Listing, Mark, Reading, Root, Unit, reportable_models
from gpu_agent.probe.models.weights import ModelFiles, fetch_progress, plain_weights, split_models
from gpu_agent.records import dataclass
from gpu_agent.wire.inventory import Model, ModelStatus

SOURCE = "huggingface"

_REPOSITORY = "models--"
_SAFETENSORS = "safetensors"
_REVISION = re.compile(r"^[0-9a-f]{40}$")
_VERSION_DIGITS = 12


class HubCache:
    """The repositories of one or more hub caches."""

    name = SOURCE

    def __init__(self, roots: Sequence[Path], *, cross_file_systems: bool = False) -> None:
        """`roots` are hub caches: the folders that hold `models--…`."""
        self.paths = tuple(roots)
        self._cross_file_systems = cross_file_systems

    def units(self) -> Listing:
        """One unit per repository."""
        return list_units(self.paths, _units_of, cross_file_systems=self._cross_file_systems)

    def read(self, unit: Unit) -> Reading:
        """The models of one repository."""
        model_id = readable(unit.name.removeprefix(_REPOSITORY).replace("--", "/"))
        plain = list_plain(unit.root, unit.path) if unit.folder else None
        if plain is None:
            models, watched = _look_closely(unit, model_id)
        else:
            models, watched = _plain_models(unit.root, plain, model_id), plain.watched
        reportable, problems = reportable_models(models, readable(unit.name))
        return Reading(models=reportable, watched=watched, problems=problems)


def _units_of(root: Root) -> Iterator[Unit]:
    entries = list_root(root)
    for entry in entries.shown:
        if entry.name.startswith(_REPOSITORY):
            yield Unit(root, entry.path, entry.name, is_folder(entry))
    entries.check()


def _plain_models(root: Root, repository: PlainRepository, model_id: str) -> list[Model]:
    models: list[Model] = []
    for revision, names, places in repository.snapshots:
        weights = plain_weights(names, places, model_id)
        if weights is None:
            files = [FoundFile(name, place, None) for name, place in zip(names, places, strict=True)]
            models += _models_in(FolderReader(root), files, model_id=model_id, revision=revision)
        else:
            size_bytes, kind = weights
            models.append(
                _model(model_id, revision, ModelStatus.READY, kind=kind, weights=(size_bytes, _SAFETENSORS))
            )
    return models


def _look_closely(unit: Unit, model_id: str) -> tuple[Sequence[Model], Mapping[str, Mark | None]]:
    """The models of any repository, and what to watch."""
    reader = FolderReader(unit.root)
    try:
        if not unit.folder:
            reader.check_folder(unit.path)
        models = tuple(_Repository(reader=reader, path=unit.path, model_id=model_id).models())
    except FileNotFoundError:
        models = ()  # it went away while it was read
    except OSError as error:
        models = (_model(model_id, None, ModelStatus.ERROR, detail=reason(error)),)
    return models, reader.watched


@dataclass(frozen=True, slots=True)
class _Repository:
    reader: FolderReader
    path: str
    model_id: str

    def models(self) -> Iterator[Model]:
        fetching = self._fetching()
        snapshots = self._snapshots()
        refs = self._refs()
        if not snapshots and not refs:
            self.reader.check_folder(self.path)  # else its parts show whose file system it is on
        awaited = sorted(set(refs.values()) - set(snapshots))
        filling = _newest(snapshots) if fetching and not awaited else None
        for revision in awaited:
            yield self._awaited(revision, refs, fetching)
        for revision in snapshots:
            yield from self._snapshot(revision, fetching if revision == filling else 0)
        if fetching and not snapshots and not refs:
            yield _model(self.model_id, None, ModelStatus.DOWNLOADING, detail=fetch_progress(fetching))

    def _fetching(self) -> int:
        """How many blobs are still being fetched.

        Each attempt has a file of its own, and one that was killed leaves it behind: that of a blob which
        is here by now is litter.
        """
        try:
            blobs = self.reader.list_shared(self.path + BLOBS)
        except FileNotFoundError:
            return 0  # on file systems without links there are none
        if INCOMPLETE not in "/".join(blobs):
            return 0
        fetching = {name.partition(".")[0] for name in blobs if name.endswith(INCOMPLETE)}
        return len(fetching.difference(blobs))

    def _snapshots(self) -> dict[str, os.DirEntry[str]]:
        """The revisions, by name."""
        try:
            entries = self.reader.list_folder(self.path + SNAPSHOTS)
        except FileNotFoundError:
            return {}
        return {
            entry.name: entry
            for entry in entries
            if not entry.is_file(follow_symlinks=False) and not entry.name.startswith(".")
        }

    def _refs(self) -> dict[str, str]:
        """Name of a ref → the revision it holds, or what it holds instead of one."""
        folder = self.path + REFS
        try:
            listed = self.reader.list_folder(folder)
            plain = all(entry.is_file(follow_symlinks=False) for entry in listed)  # as good as always
            files = listed if plain else self.reader.find_files(folder)
        except FileNotFoundError:
            return {}
        return {file.name: self._revision(file.path) for file in files}

    def _revision(self, ref: str) -> str:
        try:
            text = self.reader.read_head(ref, MAX_REF_BYTES, watch=True)  # the hub rewrites it in place
        except OSError:
            return ""
        return text.decode(errors="replace").strip()

    def _awaited(self, revision: str, refs: Mapping[str, str], fetching: int) -> Model:
        """A ref's revision that has no snapshot."""
        if fetching:
            return _model(self.model_id, revision, ModelStatus.DOWNLOADING, detail=fetch_progress(fetching))
        names = ", ".join(readable(name) for name, held in sorted(refs.items()) if held == revision)
        whole = _REVISION.match(revision)
        detail = (
            f"ref {names} names a snapshot that is not here" if whole else f"ref {names} holds no revision"
        )
        return _model(self.model_id, revision if whole else None, ModelStatus.ERROR, detail=detail)

    def _snapshot(self, revision: str, fetching: int) -> Iterator[Model]:
        try:
            found = self.reader.find_files(self.path + SNAPSHOTS + os.sep + revision)
        except OSError as error:
            yield _model(self.model_id, revision, ModelStatus.ERROR, detail=reason(error))
            return
        yield from _models_in(
            self.reader, found, model_id=self.model_id, revision=revision, fetching=fetching
        )


def _models_in(
    reader: FolderReader, files: Sequence[FoundFile], *, model_id: str, revision: str, fetching: int = 0
) -> Iterator[Model]:
    """The models of one snapshot."""
    for below, contents in split_models(files).items():
        name = f"{model_id}/{readable(below)}" if below else model_id
        status, detail = _state(reader, contents, fetching if not below or contents.missing_weights else 0)
        kind = contents.kind(reader, name)
        weights = contents.size_and_format(reader)
        yield _model(name, revision, status, detail=detail, kind=kind, weights=weights)


def _newest(snapshots: Mapping[str, os.DirEntry[str]]) -> str | None:
    """The snapshot that an entry was added to last."""
    return max(
        snapshots, key=lambda name: snapshots[name].stat(follow_symlinks=False).st_mtime_ns, default=None
    )


def _state(reader: FolderReader, contents: ModelFiles, fetching: int) -> tuple[ModelStatus, str | None]:
    if fetching:
        return ModelStatus.DOWNLOADING, fetch_progress(fetching)
    if not contents.files:
        return ModelStatus.NOT_INSTALLED, "its snapshot is empty"
    lacks = (
        contents.broken_file
        or contents.missing_weights
        or contents.empty_file(reader)
        or contents.damaged_file(reader)
    )
    if lacks:
        return ModelStatus.ERROR, readable(lacks)
    if contents.lacks_weights(reader):
        return ModelStatus.NOT_INSTALLED, "its weights were never fetched, only what describes it"
    return ModelStatus.READY, None


def _model(
    model_id: str,
    revision: str | None,
    status: ModelStatus,
    *,
    detail: str | None = None,
    kind: str = "other",
    weights: tuple[int | None, str | None] = (None, None),
) -> Model:
    source_language, target_language = languages_of(model_id)
    shown = readable(revision) if revision else None
    size_bytes, format_ = weights
    return Model(
        model_id=model_id,
        version=shown[:_VERSION_DIGITS] if shown else UNVERSIONED,
        kind=kind,
        src_lang=source_language,
        tgt_lang=target_language,
        status=status,
        source=SOURCE,
        revision=shown,
        size_bytes=size_bytes,
        format=format_,
        detail=detail,
    )
