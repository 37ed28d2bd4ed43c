"""The weight files of a folder: format, size, what is missing, and what the model is for.

Hub snapshots and plain folders are both such folders. Only the heads of a few files are read: `config.json`,
the model card, the headers of safetensors and GGUF files.
"""

import json
import re
import struct
from codecs import BOM_UTF8
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import lru_cache

from gpu_agent.probe.models.files import FolderReader, FoundFile, reason
from gpu_agent.probe.models.kinds import Facts, kind_of, pipeline_tag_of, strings_in
from gpu_agent.records import replace

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

_LEAST_WEIGHTS_BYTES = 16 << 20
"""Files that are larger together may hold weights in a format that `_FORMATS` lacks."""
_SHARD = re.compile(r"^(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})(?P<suffix>\.[a-z]+)$")
_INDICES = (".safetensors.index.json", ".bin.index.json")


class ModelFiles:
    """The files of one folder: what they say, judged by names, sizes and a few heads."""

    def __init__(self, files: Sequence[FoundFile]) -> None:
        """Sort them out in one pass: a cache has tens of thousands."""
        self.files = files
        self._by_name: dict[str, FoundFile] = {}
        self._weights: list[tuple[str, FoundFile]] = []
        self._broken: list[FoundFile] = []
        self._sizes: dict[str, int] | None = None
        """Bytes of weights by their format, once they were measured."""
        self._empty: list[tuple[str, FoundFile]] = []
        for file in files:
            name = file.name
            if file.problem:
                self._broken.append(file)
            else:
                self._by_name[name] = file
            format_ = format_of(name)
            if format_:
                self._weights.append((format_, file))

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
        counted: dict[tuple[str, str, int], int] = {}
        for match in filter(None, [_SHARD.match(file.name) for _, file in self._weights]):
            whole = match["stem"], match["suffix"], int(match["count"])
            counted[whole] = counted.get(whole, 0) + 1
        for (stem, suffix, count), here in sorted(counted.items()):
            if here < count:
                return f"{here} of {count} parts of {stem}{suffix} are here"
        if not self._weights and any(name.endswith(_INDICES) for name in self._by_name):
            return "the index of its weights is here, the weights are not"
        return None

    def lacks_weights(self, reader: FolderReader) -> bool:
        """Whether only its description is here, as a program leaves it that wants a tokenizer or a config."""
        if self._weights:
            return False
        described = any(strings_in(read_object(reader, self.file("config.json")).get("architectures")))
        return described and sum(map(reader.size_of, self.files)) < _LEAST_WEIGHTS_BYTES

    def _measured(self, reader: FolderReader) -> Mapping[str, int]:
        if self._sizes is None:
            sizes: dict[str, int] = {}
            for name, file in self._weights:
                size = reader.size_of(file)
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
        return self._by_name.get(name)

    def kind(self, reader: FolderReader, name: str) -> str:
        """What the model `name` is for, by its own files; each is read only if those before do not say."""
        facts = self._facts(reader, name)
        kind = kind_of(facts)
        if kind == "other":
            kind = kind_of(replace(facts, pipeline_tag=self._pipeline_tag(reader)))
        return self._kind_in_gguf(reader) or kind if kind == "other" else kind

    def _facts(self, reader: FolderReader, name: str) -> Facts:
        config = read_object(reader, self.file("config.json"))
        model_type = config.get("model_type")
        return Facts(
            name=name,
            architectures=(*strings_in(config.get("architectures")), *_built_from(config)),
            model_type=model_type if isinstance(model_type, str) else None,
            sentence_encoder=self.file("modules.json") is not None,
        )

    def _pipeline_tag(self, reader: FolderReader) -> str | None:
        card = self.file("README.md")
        return (
            pipeline_tag_of(_head(reader, card, _MAX_CARD_BYTES).decode(errors="replace")) if card else None
        )

    def _kind_in_gguf(self, reader: FolderReader) -> str | None:
        file = next((file for file in self.files if file.name.endswith(".gguf") and not file.problem), None)
        return gguf_kind(_head(reader, file, GGUF_HEAD_BYTES)) if file else None


@lru_cache(maxsize=4096)  # the same few names stand in thousands of folders
def format_of(name: str) -> str | None:
    """The format of a file of weights, by its name; `None` for any other file."""
    return _FORMATS.get(name[name.rfind(".") :].lower())


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
        value = json.loads(
            text.removeprefix(BOM_UTF8).decode()
        )  # of bytes it guesses, and loads what it guessed
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def fetch_progress(unfinished: int) -> str:
    """The detail of a model that is being fetched."""
    return (
        "1 file is still being fetched" if unfinished == 1 else f"{unfinished} files are still being fetched"
    )


def _built_from(config: Mapping[str, object]) -> Iterable[str]:
    """The architecture that a TensorRT engine was built from."""
    built_from = config.get("pretrained_config")
    return strings_in([built_from.get("architecture")]) if isinstance(built_from, dict) else ()


def _head(reader: FolderReader, file: FoundFile, limit: int) -> bytes:
    try:
        return reader.read_head(file.path, limit)
    except OSError:
        return b""


# ---- safetensors: the header of a file says where its last tensor ends


SAFETENSORS_SUFFIX = ".safetensors"
SAFETENSORS_INDEX = "model.safetensors.index.json"

_LENGTH_BYTES = 8
_MAX_HEADER_BYTES = 1 << 20
_MAX_INDEX_BYTES = 8 << 20


def safetensors_problem(reader: FolderReader, file: FoundFile) -> str | None:
    """What a file lacks of what its header says.

    `None` when it is whole, or its header is too long to read.
    """
    size = reader.size_of(file)
    try:
        length = int.from_bytes(reader.read_head(file.path, _LENGTH_BYTES), "little")
        if size < _LENGTH_BYTES or length > size - _LENGTH_BYTES:
            return "it ends within its header"
        if length > _MAX_HEADER_BYTES:
            return None
        header = reader.read_head(file.path, _LENGTH_BYTES + length)[_LENGTH_BYTES:]
    except OSError as error:
        return reason(error)
    if not header.startswith(b"{"):
        return "it has no header of a safetensors file"
    whole = _LENGTH_BYTES + length + _end_of_last_tensor(header)
    return None if size >= whole else f"{size} of {whole} bytes are here"


def indexed_files(reader: FolderReader, index: FoundFile) -> frozenset[str]:
    """The files that an index names."""
    try:
        text = reader.read_head(index.path, _MAX_INDEX_BYTES)
    except OSError:
        return frozenset()
    parts = parse_object(text).get("weight_map")
    return frozenset(strings_in(list(parts.values()))) if isinstance(parts, dict) else frozenset()


def _end_of_last_tensor(header: bytes) -> int:
    """Where the last tensor ends, counted from the header's own end; 0 when the header does not say."""
    ends = [0]
    for tensor in parse_object(header).values():
        match tensor:
            case {"data_offsets": [int(), int(end)]}:
                ends.append(end)
            case _:
                pass  # the metadata, or nothing that this reader knows
    return max(ends)


# ---- GGUF: the metadata before the tensors names the architecture


GGUF_HEAD_BYTES = 65_536
"""How much of a file holds its architecture: writers put it first."""

_GGUF_MAGIC = b"GGUF"
_STRING, _ARRAY = 8, 9
_GGUF_SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
_MAX_STRING = 4_096

_GGUF_KINDS = {
    "whisper": "asr",
    "bert": "embedding",
    "nomic-bert": "embedding",
    "nomic-bert-moe": "embedding",
    "jina-bert-v2": "embedding",
    "jina-bert-v3": "embedding",
    "gemma-embedding": "embedding",
    "t5encoder": "embedding",
    "outetts": "tts",
    "wavtokenizer-dec": "tts",
    "clip": "vision",
}


def gguf_kind(head: bytes) -> str | None:
    """The kind of model in a GGUF file that begins with `head`; `None` when the head does not say."""
    try:
        for key, value in _gguf_strings(head):
            if key == "general.architecture":
                return kind_of_gguf_architecture(value)
    except (struct.error, UnicodeDecodeError, ValueError):
        return None  # the head ends inside the metadata, or is no metadata
    return None


def kind_of_gguf_architecture(name: str) -> str:
    """The kind of model of an architecture, as the makers of GGUF files name them."""
    return _GGUF_KINDS.get(name, "llm")


def _gguf_strings(head: bytes) -> Iterator[tuple[str, str]]:
    """Key and value of each metadata entry that is a string."""
    if head[:4] != _GGUF_MAGIC:
        return
    (entries,) = struct.unpack_from("<Q", head, 16)
    at = 24
    for _ in range(entries):
        key, at = _gguf_string(head, at)
        (kind,) = struct.unpack_from("<I", head, at)
        at += 4
        if kind == _STRING:
            value, at = _gguf_string(head, at)
            yield key, value
        elif kind in _GGUF_SIZES:
            at += _GGUF_SIZES[kind]
        else:
            return  # an array: a vocabulary, longer than any head


def _gguf_string(head: bytes, at: int) -> tuple[str, int]:
    (length,) = struct.unpack_from("<Q", head, at)
    if length > _MAX_STRING:
        raise ValueError("a string too long for a name")
    end = at + 8 + length
    if end > len(head):
        raise ValueError("the head ends inside a string")
    return head[at + 8 : end].decode(), end
