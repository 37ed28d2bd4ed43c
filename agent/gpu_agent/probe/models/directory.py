"""Models in plain folders that the operator configured.

A model is a folder with a `model.json` that states it, a Triton `config.pbtxt`, or weight files; loose weight
files in a root are one model each, and so are several GGUF files in one folder. A folder that is a model is
not searched for others. Its id is the
stated `model_id`, else the folder's path from the root, else the file's name. A broken `model.json` makes the
model an error; no version is invented: without a stated one or a downloaded revision it is `unversioned`.
"""

import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from gpu_agent.probe.models.files import (
    MAX_DEPTH,
    FolderReader,
    FoundFile,
    is_folder,
    join_path,
    leads_to_folder,
    list_root,
    list_units,
    readable,
    reason,
)
from gpu_agent.probe.models.kinds import languages_of, stated_kind
from gpu_agent.probe.models.source import UNVERSIONED, Listing, Reading, Root, Unit, reportable_models
from gpu_agent.probe.models.weights import (
    SAFETENSORS_INDEX,
    ModelFiles,
    fetch_progress,
    indexed_files,
    read_object,
    split_models,
    stem_of,
    whole_name,
)
from gpu_agent.records import dataclass, field
from gpu_agent.wire.inventory import Model, ModelStatus

SOURCE = "directory"

_STATEMENT = "model.json"
_TRITON = "config.pbtxt"
_SERVED = (".safetensors", ".gguf", ".onnx", ".plan", ".engine")
_VERSION_DIGITS = 12
_NOTES = (".cache", "huggingface", "download")
"""Where the hub's downloader notes the commit of each file, as the first line of `<file>.metadata`."""
_NOTE = ".metadata"
_REVISION = re.compile(rb"[0-9a-f]{40}(?=\s|$)")
_NOTE_BYTES = 64


class ModelFolders:
    """The models below one or more configured folders."""

    name = SOURCE

    def __init__(self, roots: Sequence[Path], *, cross_file_systems: bool = False) -> None:
        """`roots` are folders that hold models, each in a folder of its own or loose."""
        self.paths = tuple(roots)
        self._cross_file_systems = cross_file_systems

    def units(self) -> Listing:
        """One unit for what lies loose in a root, and one per folder in it."""
        return list_units(self.paths, _units_of, cross_file_systems=self._cross_file_systems)

    def read(self, unit: Unit) -> Reading:
        """The models in one folder of a root, however deep, or those loose in the root."""
        search = _FolderSearch(FolderReader(unit.root, watch_files=True))
        found = search.loose(unit) if unit.path == unit.root.path else search.below(unit.path, unit.name)
        models, unreportable = reportable_models(found, readable(unit.name) or ".")
        return Reading(models, search.reader.watched, {**search.problems, **unreportable})


def _units_of(root: Root) -> Iterator[Unit]:
    entries = list_root(root)
    yield Unit(root, root.path, "")
    if not any(entry.name in (_STATEMENT, _TRITON) for entry in entries.shown):
        yield from (Unit(root, entry.path, entry.name) for entry in entries.shown if leads_to_folder(entry))
    entries.check()


@dataclass(frozen=True, slots=True)
class _FolderSearch:
    reader: FolderReader
    problems: dict[str, str] = field(default_factory=dict)

    def loose(self, unit: Unit) -> Iterator[Model]:
        """The root itself if it is a model, else its files of weights, parts of one model together."""
        try:
            files = [
                self.reader.measure(entry)
                for entry in self.reader.list_folder(unit.path)
                if not is_folder(entry)
            ]
        except OSError as error:
            self.problems["."] = reason(error)
            return
        if any(file.name in (_STATEMENT, _TRITON) for file in files):
            yield from self._model(unit.path, unit.path.rpartition(os.sep)[2])
            return
        groups: dict[str, list[FoundFile]] = {}
        for file in files:
            if _is_served(file.name):
                groups.setdefault(stem_of(whole_name(file.name)), []).append(file)
        beside = {file.name: file for file in files}
        for stem, parts in groups.items():
            yield _described(self.reader, stem, ModelFiles(parts, beside=beside))

    def below(self, path: str, name: str, depth: int = 0) -> Iterator[Model]:
        """The folder if it is a model, else the models in the folders below it."""
        try:
            entries = self.reader.list_folder(path)
        except FileNotFoundError:
            return  # it went away while it was read
        except OSError as error:
            self.problems[readable(name)] = reason(error)
            return
        if any(_makes_a_model(entry) for entry in entries):
            yield from self._model(path, name)
        elif depth == MAX_DEPTH:
            self.problems[readable(name)] = f"it is {MAX_DEPTH} folders deep; add it as a root of its own"
        else:
            for entry in entries:
                if leads_to_folder(entry) and not entry.name.startswith("."):
                    yield from self.below(entry.path, f"{name}/{entry.name}", depth + 1)

    def _model(self, path: str, name: str) -> Iterator[Model]:
        try:
            files = self.reader.find_files(path)
        except FileNotFoundError:
            return
        except OSError as error:
            yield _in_error(name, reason(error))
            return
        stated = any(file.name in (_STATEMENT, _TRITON) for file in files)
        models = {"": ModelFiles(files)} if stated else split_models(files)
        for below, contents in models.items():
            yield _described(self.reader, f"{name}/{below}".rstrip("/"), contents, folder=path)


def _described(reader: FolderReader, name: str, contents: ModelFiles, *, folder: str | None = None) -> Model:
    statement = contents.file(_STATEMENT)
    stated = read_object(reader, statement)
    stated_id = _text(stated.get("model_id"))
    if statement and stated_id is None:
        return _in_error(name, "its model.json is no JSON object with a model_id")
    model_id = stated_id or readable(name)
    revision = downloaded_revision(reader, folder) if folder else None
    status, detail = _state(reader, contents)
    size_bytes, format_ = contents.size_and_format(reader)
    source_language, target_language = languages_of(model_id)
    return Model(
        model_id=model_id,
        version=_text(stated.get("version")) or _version(contents, revision),
        kind=stated_kind(stated["kind"]) if "kind" in stated else contents.kind(reader, model_id),
        src_lang=_text(stated.get("src_lang")) or source_language,
        tgt_lang=_text(stated.get("tgt_lang")) or target_language,
        dialect=_text(stated.get("dialect")),
        status=status,
        source=SOURCE,
        revision=revision,
        size_bytes=size_bytes,
        format=format_,
        detail=detail,
    )


def _state(reader: FolderReader, contents: ModelFiles) -> tuple[ModelStatus, str | None]:
    if contents.unfinished:
        return ModelStatus.DOWNLOADING, fetch_progress(contents.unfinished)
    lacks = (
        contents.broken_file
        or contents.missing_weights
        or contents.empty_file(reader)
        or _unindexed(reader, contents)
        or contents.damaged_file(reader)
    )
    if not lacks and contents.file(_TRITON) and not _triton_versions(contents):
        lacks = "it has no numbered version folder"
    return (ModelStatus.ERROR, readable(lacks)) if lacks else (ModelStatus.READY, None)


def _unindexed(reader: FolderReader, contents: ModelFiles) -> str | None:
    """Which of the files that an index names are not here."""
    index = contents.file(SAFETENSORS_INDEX)
    named = indexed_files(reader, index) if index else frozenset()
    here = named.intersection(file.name for file in contents.files)
    return f"{len(here)} of {len(named)} files that its index names are here" if here != named else None


def _version(contents: ModelFiles, revision: str | None) -> str:
    versions = _triton_versions(contents) if contents.file(_TRITON) else ()
    if versions:
        return str(max(versions))
    return revision[:_VERSION_DIGITS] if revision else UNVERSIONED


def _triton_versions(contents: ModelFiles) -> tuple[int, ...]:
    tops = {file.name.partition("/")[0] for file in contents.files if "/" in file.name}
    return tuple(int(top) for top in tops if top.isdecimal() and len(top) < _VERSION_DIGITS)


def _makes_a_model(entry: os.DirEntry[str]) -> bool:
    return (entry.name in (_STATEMENT, _TRITON) or _is_served(entry.name)) and not is_folder(entry)


def _is_served(name: str) -> bool:
    return whole_name(name).lower().endswith(_SERVED)


def _in_error(name: str, detail: str) -> Model:
    return Model(
        model_id=readable(name), version=UNVERSIONED, status=ModelStatus.ERROR, source=SOURCE, detail=detail
    )


def _text(value: object) -> str | None:
    """A stated text, made readable; a number counts as text, anything else as not stated."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)
    return readable(value).strip() or None if isinstance(value, str) else None


# ---- the revision that `hf download --local-dir` notes in a folder


def downloaded_revision(reader: FolderReader, folder: str) -> str | None:
    """The revision that the first note of a folder states."""
    try:
        for depth in range(1, len(_NOTES)):
            reader.check_folder(join_path(folder, *_NOTES[:depth]))  # a link on the way would lead out
        for entry in reader.list_folder(join_path(folder, *_NOTES)):
            if entry.name.endswith(_NOTE):
                match = _REVISION.match(reader.read_head(entry.path, _NOTE_BYTES))
                return match.group().decode() if match else None
    except OSError:
        return None  # no notes, or none that may be read
    return None
