import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpu_agent.probe.models.gguf import kind_in


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value.encode())) + value.encode()


def head(*entries: bytes) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", 3, 0, len(entries)) + b"".join(entries)


def named(key: str, value: str) -> bytes:
    return text(key) + struct.pack("<I", 8) + text(value)


def counted(key: str, value: int) -> bytes:
    return text(key) + struct.pack("<II", 4, value)


@pytest.mark.parametrize(
    ("architecture", "kind"), [("llama", "llm"), ("qwen3", "llm"), ("bert", "embedding"), ("whisper", "asr")]
)
def test_the_architecture_tells_the_kind(architecture: str, kind: str) -> None:
    entries = counted("general.quantization_version", 2), named("general.architecture", architecture)
    assert kind_in(head(*entries)) == kind


def test_what_does_not_tell_is_not_known() -> None:
    array = text("tokenizer.ggml.tokens") + struct.pack("<IIQ", 9, 8, 10**9)
    assert kind_in(b"") is None
    assert kind_in(b"not a model at all, though long enough to be one") is None
    assert kind_in(head()) is None
    assert kind_in(head(array, named("general.architecture", "llama"))) is None
    assert kind_in(head(named("general.architecture", "llama"))[:-1]) is None
    assert kind_in(head(struct.pack("<Q", 2**63) + b"x")) is None


@given(st.binary(max_size=200))
def test_no_bytes_make_it_raise(tail: bytes) -> None:
    kind_in(tail)
    kind_in(b"GGUF" + tail)
