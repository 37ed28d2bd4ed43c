"""The weight files of a folder: format, size, what is missing, and what the model is for.

Hub snapshots and plain folders are both such folders. Only the heads of a few files are read: `config.json`,
the model card, the headers of safetensors, GGUF and ONNX files. `split_models` says which files of a folder
are models of their own.
"""

import json
import re
from codecs import BOM_UTF8
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache
from operator import itemgetter
from posixpath import dirname, join

from gpu_agent.probe.models.file_cursor import FileCursor, substitute
from gpu_agent.probe.models.files import FolderReader, FoundFile, read_listed, reason
from gpu_agent.probe.models.gguf import gguf_kind, gguf_problem
from gpu_agent.probe.models.kinds import Facts, kind_of, pipeline_tag_of, strings_in
from gpu_agent.probe.models.onnx import onnx_external_data
from gpu_agent.probe.models.safetensors import (
    USUAL_HEADER_BYTES,
    is_plainly_whole,
    safetensors_problem,
)
from gpu_agent.records import dataclass, replace

_raw_decode = json.JSONDecoder().raw_decode
"""Reads one value in half the time of `json.loads`, which for a small one is spent around it."""
_JSON_SPACE = " \t\n\r"
_MAX_JSON_BYTES = 1 << 20
_MAX_CARD_BYTES = 16_384
_FORMATS = {
    ".safetensors": "safetensors",
    ".gguf": "gguf",
    ".onnx": "onnx",
    ".plan": "tensorrt",
    ".engine": "tensorrt",
    ".bin": "pytorch",
    ".pt": "pytorch",
    ".pth": "pytorch",
    ".ckpt": "pytorch",
    ".nemo": "nemo",
    ".h5": "keras",
    ".msgpack": "flax",
    ".tflite": "tflite",
}
UNFINISHED = (".incomplete", ".part", ".partial", ".download", ".crdownload", ".aria2")
"""What programs that fetch files add to the names of those not yet whole."""

_LARGEST_POINTER_BYTES = 1024
"""Of Git LFS, by its specification."""
_LEAST_WEIGHTS_BYTES = 16 << 20
"""Files that are larger together may hold weights in a format that `_FORMATS` lacks."""
_SHARD = re.compile(r"^(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})(?P<suffix>\.[a-z]+)$")
_INDICES = (".safetensors.index.json", ".bin.index.json")
SAFETENSORS_INDEX = "model.safetensors.index.json"
_MAX_INDEX_BYTES = 8 << 20
_NAME = itemgetter(FoundFile._fields.index("name"))
_USUAL_FILES = 64
"""Of folders with no more files it is remembered what their names say."""
_CONFIG, _CARD, _SENTENCE_ENCODER = "config.json", "README.md", "modules.json"
_COMPANION, _CALIBRATION = "mmproj", "imatrix"
"""In the names of GGUF files that are no models: what sees for one, and what it was quantized with."""


class ModelFiles:
    """The files of one folder: what they say, judged by names, sizes and a few heads."""

    def __init__(self, files: Sequence[FoundFile], *, beside: Mapping[str, FoundFile] | None = None) -> None:
        """Sort them out: a cache has tens of thousands.

        `beside`, by name, are files that are no part of the model unless its own files name them.
        """
        self.files = files
        self._beside = beside or {}
        self._broken = [file for file in files if file.problem]
        self._layout = _layout_of(tuple(map(_NAME, files)))
        self._weights = [(format_, files[at]) for format_, at in self._layout.weights]
        self._sizes: dict[str, int] | None = None
        """Bytes of weights by their format, once they were measured."""
        self._empty: list[tuple[str, FoundFile]] = []
        self._damage: list[str] | None = None
        """What is wrong within the files of weights, once they were looked into."""
        self._bytes: dict[str, int] = {}
        """Sizes of the files that were opened."""
        self._external: dict[str, FoundFile] = {}
        """The files that hold weights of ONNX files, likewise."""

    def size_and_format(self, reader: FolderReader) -> tuple[int, str | None]:
        """The bytes of its weights, and the format that most of them are in.

        Where no file is of a known format it is what all files hold, in none.
        """
        sizes = self._measured(reader)
        if not sizes:
            return sum(map(reader.size_of, self.files)), None
        return sum(sizes.values()), max(sizes, key=lambda name: sizes[name])

    def empty_file(self, reader: FolderReader) -> str | None:
        """The first file that holds nothing, of the format that most of the weights are in."""
        self._measured(reader)
        if not self._empty:
            return None
        _, most = self.size_and_format(reader)
        empty = next((file for name, file in self._empty if name == most), None)
        return f"{empty.name}: it is empty" if empty else None

    def damaged_file(self, reader: FolderReader) -> str | None:
        """The first file of weights that ends before its header says, or that is no such file at all."""
        if self._damage is None:
            self._damage = []
            for format_, file in self._weights:
                if file.problem or (format_ == "safetensors" and self._is_plainly_whole(reader, file)):
                    continue
                if format_ in _CHECKED or self._may_be_a_pointer(reader, file):
                    damage = self._damage_of(reader, file, format_)
                    if damage:
                        self._damage.append(f"{file.name}: {damage}")
        return self._damage[0] if self._damage else None

    def _is_plainly_whole(self, reader: FolderReader, file: FoundFile) -> bool:
        try:
            head, size = reader.read_start(file, USUAL_HEADER_BYTES)
        except OSError:
            return False  # a closer look tells why
        self._bytes[file.name] = size
        return is_plainly_whole(head, size)

    def _may_be_a_pointer(self, reader: FolderReader, file: FoundFile) -> bool:
        """Whether a file is so small that something else may be here in its place."""
        size = self._bytes[file.name] = reader.size_of(file)
        return 0 < size <= _LARGEST_POINTER_BYTES

    def _damage_of(self, reader: FolderReader, file: FoundFile, format_: str) -> str | None:
        def look(cursor: FileCursor) -> str | Mapping[str, int] | None:
            self._bytes[file.name] = cursor.size
            if cursor.size == 0:
                return None  # `empty_file` reports it
            return _CHECKED.get(format_, _substitute_in)(cursor)

        try:
            needed = reader.look_into(file.path, look)
        except OSError as error:
            return reason(error)
        if needed is None or isinstance(needed, str):
            return needed
        folder = dirname(file.name)
        lacks = (self._lacks(reader, join(folder, name), whole) for name, whole in needed.items())
        return next((lack for lack in lacks if lack), None)

    def _lacks(self, reader: FolderReader, name: str, whole: int) -> str | None:
        """What a file lacks that holds weights of another; from now on it counts as part of that other."""
        broken = next((file for file in self._broken if file.name == name), None)
        file = broken or self.file(name) or self._beside.get(name)
        if file is None:
            return f"its weights in {name} are not here"
        if file.problem:
            return f"its weights in {name}: {file.problem}"
        self._external[name] = file
        size = reader.size_of(file)
        return None if size >= whole else f"its weights in {name}: {size} of {whole} bytes are here"

    @property
    def broken_file(self) -> str | None:
        """The first file that is not whole, with its reason and how many there are."""
        if not self._broken:
            return None
        first, others = self._broken[0], len(self._broken) - 1
        more = f" (and {others} more)" if others else ""
        return f"{first.name}: {first.problem}{more}"

    @property
    def missing_weights(self) -> str | None:
        """Which weights the folder's own files say should be here and are not."""
        if self._layout.missing_parts:
            return self._layout.missing_parts
        if not self._weights and any(not self.files[at].problem for at in self._layout.indices):
            return "the index of its weights is here, the weights are not"
        return None

    def lacks_weights(self, reader: FolderReader) -> bool:
        """Whether only its description is here, as a program leaves it that wants a tokenizer or a config."""
        if self._weights:
            return False
        described = any(strings_in(read_object(reader, self.file(_CONFIG)).get("architectures")))
        return described and sum(map(reader.size_of, self.files)) < _LEAST_WEIGHTS_BYTES

    def _measured(self, reader: FolderReader) -> Mapping[str, int]:
        if self._sizes is None:
            self.damaged_file(reader)
            external = self._external
            sizes = {"onnx": sum(map(reader.size_of, external.values()))} if external else {}
            for name, file in self._weights:
                if file.name in external:
                    continue
                size = self._bytes[file.name] if file.name in self._bytes else reader.size_of(file)
                sizes[name] = sizes.get(name, 0) + size
                if not size:
                    self._empty.append((name, file))
            self._sizes = sizes
        return self._sizes

    @property
    def unfinished(self) -> int:
        """How many files are still being fetched, by their names."""
        return sum(file.name.endswith(UNFINISHED) for file in self.files)

    def file(self, name: str) -> FoundFile | None:
        """The whole file of that name at the top of the folder."""
        at = self._layout.places.get(name)
        return None if at is None or self.files[at].problem else self.files[at]

    def kind(self, reader: FolderReader, name: str) -> str:
        """What the model `name` is for, by its own files; each is read only if those before do not say."""

        def read_card() -> bytes:
            card = self.file(_CARD)
            return _head(reader, card, _MAX_CARD_BYTES) if card else b""

        kind = _stated_kind(
            read_object(reader, self.file(_CONFIG)),
            name,
            sentence_encoder=self.file(_SENTENCE_ENCODER) is not None,
            read_card=read_card,
        )
        return self._kind_in_gguf(reader) or kind if kind == "other" else kind

    def _kind_in_gguf(self, reader: FolderReader) -> str | None:
        file = next((file for format_, file in self._weights if format_ == "gguf" and not file.problem), None)
        if file is None:
            return None
        try:
            return reader.look_into(file.path, gguf_kind)
        except OSError:
            return None


def plain_weights(names: tuple[str, ...], places: Sequence[str], name: str) -> tuple[int, str] | None:
    """Bytes and kind of the model `name`, if all its weights are safetensors files that are plainly whole.

    `None` where that takes a closer look. `places` are its files, in the order of their names; a listing said
    that each is a file.
    """
    layout = _layout_of(names)
    if not layout.is_plain:
        return None
    size_bytes = 0
    try:
        for _, at in layout.weights:
            head, length = read_listed(places[at], USUAL_HEADER_BYTES)
            if not is_plainly_whole(head, length):
                return None
            size_bytes += length
        config = layout.places.get(_CONFIG)
        card = layout.places.get(_CARD)
        kind = _stated_kind(
            {} if config is None else parse_object(read_listed(places[config], _MAX_JSON_BYTES)[0]),
            name,
            sentence_encoder=_SENTENCE_ENCODER in layout.places,
            read_card=lambda: b"" if card is None else read_listed(places[card], _MAX_CARD_BYTES)[0],
        )
    except OSError:
        return None
    return size_bytes, kind


def split_models(files: Sequence[FoundFile]) -> Mapping[str, ModelFiles]:
    """The models among the files of one folder: `""` → the folder itself, else a name below it → that model.

    A GGUF file is whole in itself, with its shards if it has any. So where there are several, or weights in
    another format, each is a model of its own, and what it needs not is none of its faults.
    """
    if not _layout_of(tuple(map(_NAME, files))).may_be_several:
        return {"": ModelFiles(files)}
    files = _without_calibration(files)
    own: dict[str, list[FoundFile]] = {}
    companions, others = [], []
    for file in files:
        name = whole_name(file.name)
        if format_of(name) != "gguf":
            others.append(file)
        elif _COMPANION in name.lower():
            companions.append(file)
        else:
            own.setdefault(stem_of(name), []).append(file)
    has_others = any(format_of(whole_name(file.name)) for file in others)
    if len(own) + has_others <= 1:
        return {"": ModelFiles(files)}
    shared = [
        *companions,
        *(
            file
            for file in others
            if not file.problem and whole_name(file.name) == file.name and not format_of(file.name)
        ),
    ]
    rest = {"": ModelFiles(others)} if has_others else {}
    return rest | {stem: ModelFiles([*parts, *shared]) for stem, parts in own.items()}


def _without_calibration(files: Sequence[FoundFile]) -> Sequence[FoundFile]:
    """Leave out what models were quantized with: they run without it. Where it is all there is, it stays."""
    rest = [
        file
        for file in files
        if _CALIBRATION not in file.name.lower() or format_of(whole_name(file.name)) != "gguf"
    ]
    return rest if any(format_of(whole_name(file.name)) for file in rest) else files


def format_of(name: str) -> str | None:
    """The format of a file of weights, by its name; `None` for any other file."""
    return _FORMATS.get(name[name.rfind(".") :].lower())


@dataclass(frozen=True, slots=True, kw_only=True)
class _Layout:
    """What the names of a folder's files say. Files are numbered by their place in the list."""

    places: Mapping[str, int]
    weights: tuple[tuple[str, int], ...]
    """Files of weights, with their formats."""
    missing_parts: str | None
    """Which shards are not here while others of them are."""
    indices: tuple[int, ...]
    may_be_several: bool
    """There are GGUF files, or will be."""
    is_plain: bool
    """All weights that should be here are, in safetensors files."""


def _layout_of(names: tuple[str, ...]) -> _Layout:
    return _usual_layout(names) if len(names) <= _USUAL_FILES else _layout(names)


def _layout(names: tuple[str, ...]) -> _Layout:
    weights = tuple((format_, at) for at, name in enumerate(names) if (format_ := format_of(name)))
    missing_parts = _missing_parts(names[at] for _, at in weights)
    may_be_several = ".gguf" in "/".join(names).lower()
    return _Layout(
        places={name: at for at, name in enumerate(names)},
        weights=weights,
        missing_parts=missing_parts,
        indices=tuple(at for at, name in enumerate(names) if name.endswith(_INDICES)),
        may_be_several=may_be_several,
        is_plain={format_ for format_, _ in weights} == {"safetensors"}
        and not (missing_parts or may_be_several),
    )


_usual_layout = lru_cache(maxsize=128)(_layout)
"""Thousands of models consist of the same few sets of names."""


def _missing_parts(weights: Iterable[str]) -> str | None:
    counted: dict[tuple[str, str, int], int] = {}
    for name in weights:
        whole = _shards_of(name)
        if whole:
            counted[whole] = counted.get(whole, 0) + 1
    for (stem, suffix, count), here in sorted(counted.items()):
        if here < count:
            return f"{here} of {count} parts of {stem}{suffix} are here"
    return None


def _shards_of(name: str) -> tuple[str, str, int] | None:
    """Stem and ending of the shards that a file is one of, and how many there are."""
    match = _SHARD.match(name)
    return (match["stem"], match["suffix"], int(match["count"])) if match else None


def whole_name(name: str) -> str:
    """The name that a file has, or will have when it is fetched."""
    return next((name.removesuffix(ending) for ending in UNFINISHED if name.endswith(ending)), name)


def stem_of(name: str) -> str:
    """A weights file's name without its ending and without its part's number."""
    match = _SHARD.match(name)
    return match["stem"] if match else name.rpartition(".")[0]


def read_object(reader: FolderReader, file: FoundFile | None) -> Mapping[str, object]:
    """A small JSON object; what is not one, or cannot be read, is empty."""
    return {} if file is None else parse_object(_head(reader, file, _MAX_JSON_BYTES))


def parse_object(text: bytes) -> Mapping[str, object]:
    """A JSON object in UTF-8; what is not one is empty."""
    try:
        whole = text.removeprefix(BOM_UTF8).decode().strip(_JSON_SPACE)
        value, end = _raw_decode(whole)
    except (ValueError, RecursionError):
        return {}
    return value if end == len(whole) and isinstance(value, dict) else {}


def fetch_progress(unfinished: int) -> str:
    """The detail of a model that is being fetched."""
    return (
        "1 file is still being fetched" if unfinished == 1 else f"{unfinished} files are still being fetched"
    )


def _stated_kind(
    config: Mapping[str, object], name: str, *, sentence_encoder: bool, read_card: Callable[[], bytes]
) -> str:
    """The kind by a model's configuration; the card is read only if that does not say."""
    model_type = config.get("model_type")
    facts = Facts(
        name=name,
        architectures=(*strings_in(config.get("architectures")), *_built_from(config)),
        model_type=model_type if isinstance(model_type, str) else None,
        sentence_encoder=sentence_encoder,
    )
    kind = kind_of(facts)
    if kind != "other":
        return kind
    return kind_of(replace(facts, pipeline_tag=pipeline_tag_of(read_card().decode(errors="replace"))))


def _built_from(config: Mapping[str, object]) -> Iterable[str]:
    """The architecture that a TensorRT engine was built from."""
    built_from = config.get("pretrained_config")
    return strings_in([built_from.get("architecture")]) if isinstance(built_from, dict) else ()


def _head(reader: FolderReader, file: FoundFile, limit: int) -> bytes:
    try:
        return reader.read_start(file, limit)[0]
    except OSError:
        return b""


def indexed_files(reader: FolderReader, index: FoundFile) -> frozenset[str]:
    """The files that an index names."""
    try:
        text = reader.read_head(index.path, _MAX_INDEX_BYTES)
    except OSError:
        return frozenset()
    parts = parse_object(text).get("weight_map")
    return frozenset(strings_in(list(parts.values()))) if isinstance(parts, dict) else frozenset()


def _substitute_in(cursor: FileCursor) -> str | None:
    return substitute(cursor.peek(512))


_CHECKED: Mapping[str, Callable[[FileCursor], str | Mapping[str, int] | None]] = {
    "safetensors": safetensors_problem,
    "gguf": gguf_problem,
    "onnx": onnx_external_data,
}
"""Formats whose header says how long the file is → what it lacks, or the files that it needs besides."""
