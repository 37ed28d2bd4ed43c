"""Models in Ollama's folders: manifests beside the blobs that they name.

A model is one tag, `manifests/HOST/NAMESPACE/NAME/TAG`. It is ready when every blob that its manifest names
is here with the stated size; a blob of which only the `-partial` file exists makes it `downloading`, a
missing blob or one of another size an `error`. Its version is the id that `ollama list` shows: the head of
the manifest's digest.

Weights in GGUF must be as long as their header says. Blobs are not hashed, no link is followed out of the
root, and a first download has no name: Ollama writes the manifest last, and a partial blob without one
belongs to no model.
"""

import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

from gpu_agent.probe.models.files import (
    FolderReader,
    FoundFile,
    is_folder,
    join_path,
    list_units,
    readable,
    reason,
)
from gpu_agent.probe.models.gguf import gguf_problem, kind_of_gguf_architecture
from gpu_agent.probe.models.kinds import languages_of
from gpu_agent.probe.models.source import UNVERSIONED, Listing, Mark, Reading, Root, Unit, reportable_models
from gpu_agent.probe.models.weights import fetch_progress, parse_object
from gpu_agent.records import dataclass, replace
from gpu_agent.wire.inventory import Model, ModelStatus

SOURCE = "ollama"

_LEVELS = 3
"""Folders from `manifests` down to a model's own: host, namespace, name."""
_USUAL = "registry.ollama.ai/library/"
_USUAL_HOST = "registry.ollama.ai/"
_PARTIAL = "-partial"
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_SHOWN_DIGITS = 12
_MAX_MANIFEST_BYTES = 1 << 20
_MAX_CONFIG_BYTES = 16_384
_WEIGHTS = ("application/vnd.ollama.image.model", "application/vnd.ollama.image.projector")
_USUAL_FORMAT = "gguf"
"""Of weights whose format is not stated."""
_NO_BLOBS = "its manifest names no blobs; pull the model again"


class OllamaStore:
    """The tags of one or more model folders of Ollama."""

    name = SOURCE

    def __init__(self, roots: Sequence[Path], *, cross_file_systems: bool = False) -> None:
        """`roots` are folders that hold `manifests` and `blobs`."""
        self.paths = tuple(roots)
        self._cross_file_systems = cross_file_systems

    def units(self) -> Listing:
        """One unit per model name, with all its tags."""
        folders: dict[str, Mark | None] = {}
        units_of = partial(_units_of, folders=folders)
        listing = list_units(self.paths, units_of, cross_file_systems=self._cross_file_systems)
        return replace(listing, folders=folders)

    def read(self, unit: Unit) -> Reading:
        """The models of one name."""
        reader = FolderReader(unit.root, watch_files=True)
        name = readable(unit.name)
        try:
            entries = reader.list_folder(unit.path)
        except FileNotFoundError:
            return Reading()  # it went away while it was read
        except OSError as error:
            return Reading((), reader.watched, {name: reason(error)})
        closed = _closed(reader, unit.root)
        tags = [entry for entry in entries if not is_folder(entry) and not entry.name.startswith(".")]
        found = (
            _Tag(reader, unit.root, name, readable(tag.name), closed).model(reader.measure(tag))
            for tag in tags
        )
        reportable, problems = reportable_models((model for model in found if model), name)
        return Reading(reportable, reader.watched, problems)


def _units_of(root: Root, *, folders: dict[str, Mark | None]) -> Iterator[Unit]:
    manifests = Unit(root, join_path(root.path, "manifests"), "")
    return _names_below(manifests, levels=_LEVELS, folders=folders)


def _names_below(above: Unit, *, levels: int, folders: dict[str, Mark | None]) -> Iterator[Unit]:
    """The folders `levels` deep; one above them that cannot be listed is a unit too, which says why.

    Those that were listed are added to `folders`.
    """
    root, path, name = above.root, above.path, above.name
    reader = FolderReader(root)
    try:
        entries = reader.list_folder(path)
    except FileNotFoundError:
        return
    except OSError:
        yield Unit(root, path, name or "manifests")
        return
    finally:
        folders.update(reader.watched)
    for entry in entries:
        named = f"{name}/{entry.name}".lstrip("/")
        below = Unit(root, entry.path, named)
        if entry.is_symlink() or (levels == 1 and is_folder(entry)):
            yield below
        elif is_folder(entry):
            yield from _names_below(below, levels=levels - 1, folders=folders)


def _closed(reader: FolderReader, root: Root) -> str | None:
    """Why the blobs may not be read, if so: their folder may be a link that leads out of the root."""
    try:
        reader.check_folder(join_path(root.path, "blobs"))
    except FileNotFoundError:
        return None  # each blob is reported as missing
    except OSError as error:
        return reason(error)
    return None


@dataclass(frozen=True, slots=True)
class _Tag:
    reader: FolderReader
    root: Root
    name: str
    tag: str
    closed: str | None
    """Why no blob may be looked at."""

    def model(self, manifest: FoundFile) -> Model | None:
        """The model that its manifest states; `None` when it went away."""
        if manifest.problem or self.closed:
            why = f"its manifest: {manifest.problem}" if manifest.problem else f"its blobs: {self.closed}"
            return self._model(ModelStatus.ERROR, detail=why)
        try:
            text = self.reader.read_head(manifest.path, _MAX_MANIFEST_BYTES)
        except FileNotFoundError:
            return None
        except OSError as error:
            return self._model(ModelStatus.ERROR, detail=reason(error))
        digest = hashlib.sha256(text).hexdigest()
        blobs = _blobs(parse_object(text))
        if not blobs:
            return self._model(ModelStatus.ERROR, digest=digest, detail=_NO_BLOBS)
        config = self._config(parse_object(text))
        status, detail = self._state(blobs)
        if status is ModelStatus.READY and config.get("model_format", _USUAL_FORMAT) == _USUAL_FORMAT:
            detail = next(filter(None, map(self._damage, _weights(parse_object(text)))), None)
            status = ModelStatus.ERROR if detail else status
        return self._model(
            status,
            digest=digest,
            detail=detail,
            kind=kind_of_gguf_architecture(config["model_family"]) if "model_family" in config else "other",
            format=config.get("model_format"),
            size_bytes=sum(blobs.values()),
        )

    def _state(self, blobs: Mapping[str, int]) -> tuple[ModelStatus, str | None]:
        fetching = 0
        lacks: str | None = None
        for digest, size in blobs.items():
            path = self._place(digest)
            found = self.reader.find_file(path, digest)
            if found is None and self.reader.find_file(path + _PARTIAL, digest) is not None:
                fetching += 1
            elif found is None:
                lacks = lacks or f"blob {_shown(digest)} is not here; pull the model again"
            elif found.problem:
                lacks = lacks or f"blob {_shown(digest)}: {found.problem}"
            elif found.size != size:
                lacks = lacks or f"blob {_shown(digest)} has {found.size} bytes in place of {size}"
        if lacks:
            return ModelStatus.ERROR, lacks
        return (ModelStatus.DOWNLOADING, fetch_progress(fetching)) if fetching else (ModelStatus.READY, None)

    def _damage(self, digest: str) -> str | None:
        """What a blob of weights lacks of what its header says."""
        try:
            damage = self.reader.look_into(self._place(digest), gguf_problem)
        except OSError as error:
            damage = reason(error)
        return f"blob {_shown(digest)}: {damage}; pull the model again" if damage else None

    def _config(self, manifest: Mapping[str, object]) -> Mapping[str, str]:
        """The texts of the small file in which Ollama notes what a model is."""
        stated = _blob(manifest.get("config"))
        if stated is None:
            return {}
        found = self.reader.find_file(self._place(stated[0]), stated[0])
        if found is None or found.problem:
            return {}  # reported among the blobs
        try:
            text = self.reader.read_head(found.path, _MAX_CONFIG_BYTES)
        except OSError:
            return {}
        return {key: value for key, value in parse_object(text).items() if isinstance(value, str) and value}

    def _place(self, digest: str) -> str:
        return join_path(self.root.path, "blobs", digest.replace(":", "-"))

    def _model(
        self,
        status: ModelStatus,
        *,
        digest: str | None = None,
        detail: str | None = None,
        kind: str = "other",
        format: str | None = None,  # noqa: A002  the field's name on the wire
        size_bytes: int | None = None,
    ) -> Model:
        source_language, target_language = languages_of(self.name)
        return Model(
            model_id=f"{_short(self.name)}:{self.tag}",
            version=digest[:_SHOWN_DIGITS] if digest else UNVERSIONED,
            kind=kind,
            src_lang=source_language,
            tgt_lang=target_language,
            status=status,
            source=SOURCE,
            revision=digest,
            size_bytes=size_bytes,
            format=format,
            detail=detail,
        )


def _short(name: str) -> str:
    """The name as Ollama's own commands show it: what everybody's models begin with is left out."""
    return name.removeprefix(_USUAL).removeprefix(_USUAL_HOST)


def _blobs(manifest: Mapping[str, object]) -> dict[str, int]:
    """Digest → size of all blobs that a manifest names; empty when one of them is not well named."""
    layers = manifest.get("layers")
    stated = [manifest.get("config"), *(layers if isinstance(layers, list) else ())]
    blobs = [_blob(one) for one in stated]
    return dict(blob for blob in blobs if blob) if None not in blobs and len(blobs) > 1 else {}


def _weights(manifest: Mapping[str, object]) -> Iterator[str]:
    """The digests of the blobs that are GGUF files."""
    layers = manifest.get("layers")
    for layer in layers if isinstance(layers, list) else ():
        blob = _blob(layer)
        if blob and layer.get("mediaType") in _WEIGHTS:
            yield blob[0]


def _blob(stated: object) -> tuple[str, int] | None:
    match stated:
        case {"digest": str(digest), "size": int(size)} if _DIGEST.fullmatch(digest) and size >= 0:
            return digest, size
        case _:
            return None


def _shown(digest: str) -> str:
    return digest.partition(":")[2][:_SHOWN_DIGITS]
