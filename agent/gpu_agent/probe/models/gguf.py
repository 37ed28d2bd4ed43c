"""GGUF files: where their last tensor ends, and what kind of model they hold.

The format is that of `docs/gguf.md` in github.com/ggml-org/ggml: little-endian, versions 2 and 3. Sizes of
tensors follow `GGML_QUANT_SIZES` of its Python package `gguf` 0.19, and `ggml/src/ggml-common.h`.
"""

from struct import Struct

from gpu_agent.probe.models.file_cursor import FileCursor, ForeignFileError, foreign_content

_MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_STRING, _ARRAY = 8, 9
_VALUE_BYTES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
_UINT32 = 4
_ALIGNMENT_KEY = b"general.alignment"
_ARCHITECTURE_KEY = b"general.architecture"
_USUAL_ALIGNMENT = 32
_MOST_ENTRIES = 65_536
"""Entries of metadata, and tensors, in one file; known ones have up to 100, and up to 3 000."""
_MOST_WORDS = 1 << 21
"""Texts in one array; the largest known vocabulary has half a million."""
_LONGEST_KEY = 65_535
_LONGEST_TEXT = 4_096
_MOST_DIMENSIONS = 8
_DEEPEST_ARRAY = 4
_U64 = Struct("<Q")

_BLOCKS: dict[int, tuple[int, int]] = {
    0: (1, 4),  # F32
    1: (1, 2),  # F16
    2: (32, 18),  # Q4_0
    3: (32, 20),  # Q4_1
    6: (32, 22),  # Q5_0
    7: (32, 24),  # Q5_1
    8: (32, 34),  # Q8_0
    9: (32, 36),  # Q8_1, as ggml-common.h has it; it occurs in memory only
    10: (256, 84),  # Q2_K
    11: (256, 110),  # Q3_K
    12: (256, 144),  # Q4_K
    13: (256, 176),  # Q5_K
    14: (256, 210),  # Q6_K
    15: (256, 292),  # Q8_K
    16: (256, 66),  # IQ2_XXS
    17: (256, 74),  # IQ2_XS
    18: (256, 98),  # IQ3_XXS
    19: (256, 50),  # IQ1_S
    20: (32, 18),  # IQ4_NL
    21: (256, 110),  # IQ3_S
    22: (256, 82),  # IQ2_S
    23: (256, 136),  # IQ4_XS
    24: (1, 1),  # I8
    25: (1, 2),  # I16
    26: (1, 4),  # I32
    27: (1, 8),  # I64
    28: (1, 8),  # F64
    29: (256, 56),  # IQ1_M
    30: (1, 2),  # BF16
    34: (256, 54),  # TQ1_0
    35: (256, 66),  # TQ2_0
    39: (32, 17),  # MXFP4
    40: (64, 36),  # NVFP4
    41: (128, 18),  # Q1_0
}
"""Type of a tensor → elements and bytes of a block of it."""

_KINDS = {
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


def gguf_problem(cursor: FileCursor) -> str | None:
    """What the file lacks of what its header states; `None` when it is whole.

    Raises:
        CutShortError: it ends within its header.
        ForeignFileError: it is no file of this format that can be used.
    """
    tensors, entries = _counts(cursor)
    alignment = _USUAL_ALIGNMENT
    for _ in range(entries):
        key, value = _entry(cursor)
        if key == _ALIGNMENT_KEY:
            alignment = value if isinstance(value, int) else 0
            if alignment < 1 or alignment & (alignment - 1):
                raise ForeignFileError("its alignment is no power of two")
    ends = [_end_of_tensor(cursor) for _ in range(tensors)]
    if not ends:
        return None
    whole = -(-cursor.position // alignment) * alignment + max(ends)
    return None if cursor.size >= whole else f"{cursor.size} of {whole} bytes are here"


def gguf_kind(cursor: FileCursor) -> str | None:
    """The kind of model in a file; `None` when it does not say."""
    try:
        _, entries = _counts(cursor)
        for _ in range(entries):
            key, value = _entry(cursor)
            if key == _ARCHITECTURE_KEY:
                return kind_of_gguf_architecture(value.decode()) if isinstance(value, bytes) else None
    except (OSError, UnicodeDecodeError):
        return None
    return None


def kind_of_gguf_architecture(name: str) -> str:
    """The kind of model of an architecture, as the makers of GGUF files name them."""
    return _KINDS.get(name, "llm")


def _counts(cursor: FileCursor) -> tuple[int, int]:
    """How many tensors and entries of metadata follow."""
    head = cursor.peek(512)
    if not _MAGIC.startswith(head[:4]):
        raise ForeignFileError(foreign_content(head) or "it does not begin as a GGUF file does")
    cursor.read(4)
    version = cursor.read_u32()
    if version & 0xFFFF == 0:
        raise ForeignFileError("it is big-endian; GPU machines read the little-endian form")
    if version not in _VERSIONS:
        raise ForeignFileError(f"it is of GGUF version {version}; versions 2 and 3 can be read")
    tensors, entries = cursor.read_u64(), cursor.read_u64()
    if tensors > _MOST_ENTRIES or entries > _MOST_ENTRIES:
        raise ForeignFileError(f"its header states {tensors} tensors and {entries} entries of metadata")
    return tensors, entries


def _entry(cursor: FileCursor) -> tuple[bytes, bytes | int | None]:
    """Key and value of an entry of metadata; the value where it is a short text, or a 32-bit number."""
    key = _text(cursor, longest=_LONGEST_KEY)
    kind = cursor.read_u32()
    if kind == _UINT32:
        return key, cursor.read_u32()
    if kind == _STRING:
        length = cursor.read_u64()
        if length <= _LONGEST_TEXT:
            return key, cursor.read(length)
        cursor.move_to(cursor.position + length)
    elif kind == _ARRAY:
        _skip_array(cursor)
    else:
        cursor.move_to(cursor.position + _bytes_of(kind))
    return key, None


def _text(cursor: FileCursor, *, longest: int) -> bytes:
    length = cursor.read_u64()
    if length > longest:
        raise ForeignFileError(f"its header states a name of {length} bytes")
    return cursor.read(length)


def _skip_array(cursor: FileCursor, depth: int = 1) -> None:
    kind, count = cursor.read_u32(), cursor.read_u64()
    if kind == _STRING and count > _MOST_WORDS:
        raise ForeignFileError(f"its metadata holds a list of {count} texts")
    if kind == _STRING:
        _skip_strings(cursor, count)
    elif kind != _ARRAY:
        cursor.move_to(cursor.position + count * _bytes_of(kind))
    elif depth == _DEEPEST_ARRAY or count > _MOST_ENTRIES:
        raise ForeignFileError("its metadata holds arrays of arrays without end")
    else:
        for _ in range(count):
            _skip_array(cursor, depth + 1)


def _skip_strings(cursor: FileCursor, count: int) -> None:
    """Go past a vocabulary: hundreds of thousands of words, each with its length before it."""
    length_at = _U64.unpack_from
    while count:
        data, at = cursor.window(8)
        before, last = at, len(data) - 8
        while count and at <= last:
            at += 8 + length_at(data, at)[0]
            count -= 1
        cursor.move_to(cursor.position + at - before)


def _end_of_tensor(cursor: FileCursor) -> int:
    """Where a tensor ends, counted from where the first begins; of an unknown type, what is certain."""
    _text(cursor, longest=_LONGEST_KEY)
    dimensions = cursor.read_u32()
    if dimensions > _MOST_DIMENSIONS:
        raise ForeignFileError(f"its header states a tensor of {dimensions} dimensions")
    elements = 1
    for _ in range(dimensions):
        elements *= cursor.read_u64()
    block, block_bytes = _BLOCKS.get(cursor.read_u32(), (elements or 1, 1))
    return cursor.read_u64() + -(-elements // block) * block_bytes


def _bytes_of(kind: int) -> int:
    if kind not in _VALUE_BYTES:
        raise ForeignFileError(f"its metadata holds a value of the unknown type {kind}")
    return _VALUE_BYTES[kind]
