import os
import struct
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpu_agent.probe.models.file_cursor import FileCursor
from gpu_agent.probe.models.gguf import gguf_kind, gguf_problem
from tests.probe.models.caches import GGUF

STRING, ARRAY, UINT8, UINT32 = 8, 9, 0, 4


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value.encode())) + value.encode()


def head(*entries: bytes, tensors: Sequence[bytes] = (), version: int = 3) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", version, len(tensors), len(entries)) + b"".join((*entries, *tensors))


def named(key: str, value: str) -> bytes:
    return text(key) + struct.pack("<I", STRING) + text(value)


def counted(key: str, value: int) -> bytes:
    return text(key) + struct.pack("<II", UINT32, value)


def listed(key: str, kind: int, count: int, content: bytes) -> bytes:
    return text(key) + struct.pack("<IIQ", ARRAY, kind, count) + content


def tensor(name: str, *shape: int, kind: int = 0, offset: int = 0) -> bytes:
    return text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, offset)


def judged(folder: Path, content: bytes, *, longer_by: int = 0) -> str | None:
    """What is wrong with a file of that content, and then as many bytes of nothing."""
    path = folder / "m.gguf"
    path.write_bytes(content)
    os.truncate(path, len(content) + longer_by)
    with path.open("rb") as file:
        try:
            return gguf_problem(FileCursor(file.fileno(), len(content) + longer_by))
        except OSError as error:
            return str(error)


def kind(folder: Path, content: bytes) -> str | None:
    (folder / "m.gguf").write_bytes(content)
    with (folder / "m.gguf").open("rb") as file:
        return gguf_kind(FileCursor(file.fileno(), len(content)))


@pytest.mark.parametrize(
    ("architecture", "found"),
    [("llama", "llm"), ("qwen3", "llm"), ("bert", "embedding"), ("whisper", "asr")],
)
def test_the_architecture_gives_the_kind(tmp_path: Path, architecture: str, found: str) -> None:
    entries = counted("general.quantization_version", 2), named("general.architecture", architecture)
    words = listed("tokenizer.ggml.tokens", STRING, 2, text("a") + text("b"))
    assert kind(tmp_path, head(words, *entries)) == found


def test_a_file_without_an_architecture_has_no_kind(tmp_path: Path) -> None:
    endless = listed("tokenizer.ggml.tokens", STRING, 10**9, b"")
    for content in (
        b"",
        b"not a model at all, though long enough to be one",
        head(),
        head(endless, named("general.architecture", "llama")),
        head(named("general.architecture", "llama"))[:-1],
        head(counted("general.architecture", 7)),
        head(struct.pack("<Q", 2**63) + b"x"),
    ):
        assert kind(tmp_path, content) is None


def test_tensors_begin_at_the_alignment_and_their_padding_may_be_absent(tmp_path: Path) -> None:
    for alignment, entries in ((32, ()), (64, (counted("general.alignment", 64),))):
        content = head(*entries, tensors=[tensor("a", 3), tensor("b", 5, offset=alignment)])
        begin = -(-len(content) // alignment) * alignment
        whole = begin + alignment + 5 * 4
        assert judged(tmp_path, content, longer_by=whole - len(content)) is None
        short = judged(tmp_path, content, longer_by=whole - len(content) - 1)
        assert short == f"{whole - 1} of {whole} bytes are here"


def test_both_versions_are_read_and_others_are_refused_with_the_reason(tmp_path: Path) -> None:
    assert judged(tmp_path, head(version=2)) is judged(tmp_path, GGUF) is None
    for version in (0x02000000, 0x03000000):
        assert str(judged(tmp_path, head(version=version))).startswith("it is big-endian")
    for version in (1, 4):
        assert f"version {version};" in str(judged(tmp_path, head(version=version)))


def test_a_tensor_of_a_type_that_is_not_known_needs_what_is_certain(tmp_path: Path) -> None:
    content = head(tensors=[tensor("a", 10**9, kind=999)])
    assert judged(tmp_path, content, longer_by=64) is None
    assert judged(tmp_path, content) == f"{len(content)} of {-(-len(content) // 32) * 32 + 1} bytes are here"


def test_metadata_of_every_shape_is_gone_past(tmp_path: Path) -> None:
    nested = listed(
        "a", ARRAY, 2, struct.pack("<IQ", UINT8, 3) + b"abc" + struct.pack("<IQ", STRING, 1) + text("x")
    )
    long = named("b", "x" * 200_000)
    words = listed("c", STRING, 50_000, text("word") * 50_000)
    numbers = listed("d", UINT32, 70_000, bytes(280_000))
    content = head(nested, long, words, numbers, tensors=[tensor("t", 1)])
    assert judged(tmp_path, content, longer_by=64) is None
    assert str(judged(tmp_path, content)).endswith("bytes are here")
    assert judged(tmp_path, content[:-50]) == "it ends within its header"


@pytest.mark.parametrize(
    "content",
    [
        b"GGUF" + struct.pack("<IQQ", 3, 2**40, 0),
        b"GGUF" + struct.pack("<IQQ", 3, 0, 2**40),
        head(struct.pack("<Q", 2**63)),
        head(text("a") + struct.pack("<I", 77)),
        head(listed("a", ARRAY, 2**60, b"")),
        head(listed("a", ARRAY, 1, struct.pack("<IQ", ARRAY, 1) * 10)),
        head(listed("a", STRING, 2**60, b"")),
        head(counted("general.alignment", 0)),
        head(tensors=[text("t") + struct.pack("<I", 2**31)]),
    ],
)
def test_a_header_without_end_or_sense_is_refused_before_a_terabyte_is_read(
    tmp_path: Path, content: bytes
) -> None:
    assert judged(tmp_path, content, longer_by=1 << 40)


@given(st.binary(max_size=200))
def test_no_bytes_make_it_raise_anything_else(tmp_path_factory: pytest.TempPathFactory, tail: bytes) -> None:
    folder = tmp_path_factory.getbasetemp()
    for content in (tail, b"GGUF" + tail, GGUF[:8] + tail):
        judged(folder, content)
        kind(folder, content)


def test_a_list_of_more_texts_than_any_vocabulary_has_is_refused_at_once(tmp_path: Path) -> None:
    content = head(listed("tokenizer.ggml.tokens", STRING, 1 << 63, b""))
    assert judged(tmp_path, content, longer_by=1 << 40) == f"its metadata holds a list of {1 << 63} texts"
