"""The head of a GGUF file: what architecture it says it is.

Reads the metadata that stands before the tensors, from the first bytes that the caller hands in.
It refuses to follow the metadata past those bytes: what is not among them is not known.
"""

import struct
from collections.abc import Iterator

HEAD_BYTES = 65_536
"""How much of a file holds its architecture: writers put it first."""

_MAGIC = b"GGUF"
_STRING, _ARRAY = 8, 9
_SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
_MAX_STRING = 4_096

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


def kind_in(head: bytes) -> str | None:
    """The kind of model in a GGUF file that begins with `head`; `None` when it does not tell."""
    try:
        for key, value in _texts(head):
            if key == "general.architecture":
                return kind_of_architecture(value)
    except (struct.error, UnicodeDecodeError, ValueError):
        return None  # the head ends inside the metadata, or is no metadata
    return None


def kind_of_architecture(name: str) -> str:
    """The kind of model of an architecture, as the makers of GGUF files name them."""
    return _KINDS.get(name, "llm")


def _texts(head: bytes) -> Iterator[tuple[str, str]]:
    """Key and value of each metadata entry that is a string."""
    if head[:4] != _MAGIC:
        return
    (entries,) = struct.unpack_from("<Q", head, 16)
    at = 24
    for _ in range(entries):
        key, at = _string(head, at)
        (kind,) = struct.unpack_from("<I", head, at)
        at += 4
        if kind == _STRING:
            value, at = _string(head, at)
            yield key, value
        elif kind in _SIZES:
            at += _SIZES[kind]
        else:
            return  # an array: a vocabulary, longer than any head


def _string(head: bytes, at: int) -> tuple[str, int]:
    (length,) = struct.unpack_from("<Q", head, at)
    if length > _MAX_STRING:
        raise ValueError("a string too long for a name")
    end = at + 8 + length
    if end > len(head):
        raise ValueError("the head ends inside a string")
    return head[at + 8 : end].decode(), end
