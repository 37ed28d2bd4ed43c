import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field, ValidationError

from gpu_agent.wire.fields import (
    FeatureNames,
    Flag,
    Listed,
    Mapped,
    NodeId,
    SchemaVersion,
    SuggestedNodeId,
    WireInt,
    WireModel,
)


class Sample(WireModel):
    number: WireInt = 0
    flag: Flag = False
    names: FeatureNames = ()
    listed: Listed[str] = ()
    mapped: Mapped[str] = Field(default_factory=dict)
    version: SchemaVersion = None
    suggested: SuggestedNodeId = None
    node_id: NodeId | None = None
    memory_gb: WireInt | None = None


def read(text: str) -> Sample:
    return Sample.model_validate_json(text)


@given(st.floats(min_value=0, max_value=2**52))
def test_a_fractional_integer_is_rounded(value: float) -> None:
    assert read(f'{{"number": {value!r}}}').number == round(value)


@pytest.mark.parametrize("wrong", ['"8"', "true", "-1", "null", "[]", "{}", "9007199254740994000"])
def test_what_is_no_whole_number_is_refused(wrong: str) -> None:
    with pytest.raises(ValidationError):
        read(f'{{"number": {wrong}}}')


def test_null_stands_for_absent() -> None:
    assert (
        read('{"flag":null,"names":null,"listed":null,"mapped":null,"version":null,"suggested":null}')
        == Sample()
    )


def test_an_empty_version_or_id_is_absent() -> None:
    sample = read('{"version":"","suggested":""}')
    assert (sample.version, sample.suggested) == (None, None)


def test_advanced_features_are_read_in_both_forms() -> None:
    assert read('{"names":["kv_cache"]}').names == ("kv_cache",)
    assert read('{"names":{"kv_cache":true,"streaming_tts":false,"x":null}}').names == ("kv_cache",)


@pytest.mark.parametrize("wrong", ['{"kv_cache":3}', '"kv_cache"', "[1]", "7"])
def test_advanced_features_in_no_known_form_are_refused(wrong: str) -> None:
    with pytest.raises(ValidationError):
        read(f'{{"names":{wrong}}}')


@pytest.mark.parametrize("wrong", ["a b", "ä", "x" * 129, "a/b", "a\\u0000"])
def test_an_id_outside_its_alphabet_is_refused(wrong: str) -> None:
    for field in ("node_id", "suggested"):
        with pytest.raises(ValidationError):
            read(f'{{"{field}":"{wrong}"}}')


def test_what_is_none_is_not_written_unless_the_protocol_wants_null() -> None:
    written = Sample().model_dump()
    assert written["memory_gb"] is None
    assert written["node_id"] is None
    assert "version" not in written


def test_messages_cannot_be_changed() -> None:
    with pytest.raises(ValidationError):
        Sample().number = 3  # type: ignore[misc]  # that is what must not work
