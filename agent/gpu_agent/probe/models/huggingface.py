"""Models in Hugging Face hub caches, found without the library that made them.

A model is one snapshot of a repository `models--org--name`, or a ref whose snapshot is not there
(yet). It is ready when every entry of the snapshot resolves; while the repository holds an
`*.incomplete` blob, the snapshot being filled is `downloading`; a dangling link or ref is `error`.

It refuses to follow a link out of the cache, to write, and to take datasets for models.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from gpu_agent.probe.models.contents import Contents, progress
from gpu_agent.probe.models.kinds import languages_of
from gpu_agent.probe.models.roots import entries_of, list_units
from gpu_agent.probe.models.source import UNVERSIONED, Listing, Reading, Root, Unit
from gpu_agent.probe.models.tellable import tellable
from gpu_agent.probe.models.tree import Tree, below, readable, reason
from gpu_agent.wire.inventory import Model, ModelStatus

SOURCE = "huggingface"

_REPOSITORY = "models--"
_INCOMPLETE = ".incomplete"
_REVISION = re.compile(r"^[0-9a-f]{40}$")
_VERSION_DIGITS = 12
_MAX_REF_BYTES = 256


def default_roots(environ: Mapping[str, str], home: Path | None) -> tuple[Path, ...]:
    """Where hub caches are by custom: each place that the environment names, and the usual one."""
    places = []
    if environ.get("HF_HUB_CACHE"):
        places.append(Path(environ["HF_HUB_CACHE"]))
    if environ.get("HF_HOME"):
        places.append(Path(environ["HF_HOME"]) / "hub")
    if home is not None:
        places.append(home / ".cache" / "huggingface" / "hub")
    return tuple(dict.fromkeys(places))


class HubCache:
    """The repositories of one or more hub caches."""

    name = SOURCE

    def __init__(self, roots: Sequence[Path]) -> None:
        """`roots` are hub caches: the folders that hold `models--…`."""
        self._roots = tuple(roots)

    def units(self) -> Listing:
        """One unit per repository."""
        return list_units(self._roots, _units_of)

    def read(self, unit: Unit) -> Reading:
        """The models of one repository."""
        tree = Tree(unit.root)
        model_id = readable(unit.name.removeprefix(_REPOSITORY).replace("--", "/"))
        try:
            models = tuple(_Repository(tree, unit.path, model_id).models())
        except FileNotFoundError:
            models = ()  # it went away while it was read
        except OSError as error:
            models = (_model(model_id, None, ModelStatus.ERROR, detail=reason(error)),)
        told, problems = tellable(models, readable(unit.name))
        return Reading(told, tree.watched, problems)


def _units_of(root: Root) -> Iterator[Unit]:
    for entry in entries_of(root):
        if entry.name.startswith(_REPOSITORY):
            yield Unit(root, entry.path, entry.name)


@dataclass(frozen=True, slots=True)
class _Repository:
    tree: Tree
    path: str
    model_id: str

    def models(self) -> Iterator[Model]:
        parts = {entry.name: entry for entry in self.tree.folder(self.path)}
        snapshots = self._snapshots() if "snapshots" in parts else {}
        refs = self._refs() if "refs" in parts else {}
        fetching = self._fetching() if "blobs" in parts else 0
        awaited = sorted(set(refs.values()) - set(snapshots))
        filling = None if awaited else max(snapshots, key=lambda name: snapshots[name], default=None)
        for revision in awaited:
            yield self._awaited(revision, refs, fetching)
        for revision in sorted(snapshots):
            yield self._snapshot(revision, fetching if revision == filling else 0)
        if fetching and not snapshots and not refs:
            yield _model(self.model_id, None, ModelStatus.DOWNLOADING, detail=progress(fetching))

    def _snapshots(self) -> dict[str, int]:
        """Revision → when an entry was last added to it (ns)."""
        entries = self.tree.folder(below(self.path, "snapshots"))
        return {
            entry.name: entry.stat(follow_symlinks=False).st_mtime_ns
            for entry in entries
            if not entry.is_file(follow_symlinks=False) and not entry.name.startswith(".")
        }

    def _refs(self) -> dict[str, str]:
        """Name of a ref → the revision it holds, or what it holds instead of one."""
        refs = {}
        for file in self.tree.files(below(self.path, "refs")):
            try:
                refs[file.name] = self.tree.head(file.path, _MAX_REF_BYTES).decode(errors="replace").strip()
            except OSError:
                refs[file.name] = ""
        return refs

    def _fetching(self) -> int:
        """How many blobs are still being fetched."""
        blobs = self.tree.folder(below(self.path, "blobs"))
        return sum(blob.name.endswith(_INCOMPLETE) for blob in blobs)

    def _awaited(self, revision: str, refs: Mapping[str, str], fetching: int) -> Model:
        """A ref's revision that has no snapshot."""
        if fetching:
            return _model(self.model_id, revision, ModelStatus.DOWNLOADING, detail=progress(fetching))
        names = ", ".join(readable(name) for name, held in sorted(refs.items()) if held == revision)
        whole = _REVISION.match(revision)
        detail = (
            f"ref {names} names a snapshot that is not here" if whole else f"ref {names} holds no revision"
        )
        return _model(self.model_id, revision if whole else None, ModelStatus.ERROR, detail=detail)

    def _snapshot(self, revision: str, fetching: int) -> Model:
        try:
            found = tuple(self.tree.files(below(self.path, "snapshots", revision)))
        except OSError as error:
            return _model(self.model_id, revision, ModelStatus.ERROR, detail=reason(error))
        contents = Contents(found)
        status, detail = _state(contents, fetching)
        return _model(
            self.model_id,
            revision,
            status,
            detail=detail,
            contents=contents,
            kind=contents.kind(self.tree, self.model_id),
        )


def _state(contents: Contents, fetching: int) -> tuple[ModelStatus, str | None]:
    if fetching:
        return ModelStatus.DOWNLOADING, progress(fetching)
    if not contents.files:
        return ModelStatus.NOT_INSTALLED, "its snapshot is empty"
    lacks = contents.broken or contents.missing
    return (ModelStatus.ERROR, readable(lacks)) if lacks else (ModelStatus.READY, None)


def _model(
    model_id: str,
    revision: str | None,
    status: ModelStatus,
    *,
    detail: str | None = None,
    contents: Contents | None = None,
    kind: str = "other",
) -> Model:
    source_language, target_language = languages_of(model_id)
    return Model(
        model_id=model_id,
        version=readable(revision)[:_VERSION_DIGITS] if revision else UNVERSIONED,
        kind=kind,
        src_lang=source_language,
        tgt_lang=target_language,
        status=status,
        source=SOURCE,
        revision=readable(revision) if revision else None,
        size_bytes=contents.size_bytes if contents else None,
        format=contents.format if contents else None,
        detail=detail,
    )
