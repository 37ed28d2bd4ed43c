import contextlib
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpu_agent.wire.codec import (
    MAX_FRAME_BYTES,
    MAX_REPORTED_ERRORS,
    Fault,
    FrameError,
    UnknownMessageError,
    UnsupportedSchemaError,
    decode_from_node,
    decode_from_registry,
    encode,
)
from gpu_agent.wire.messages import NodeControl, NodeRegister

MINIMAL: dict[str, Any] = {
    "type": "node_register",
    "version": "1.0.0",
    "hardware": {"cpu_cores": 8, "memory_gb": 32, "gpus": [{"name": "NVIDIA L4", "memory_gb": 24}]},
    "installed_models": [{"model_id": "m", "version": "1", "enabled": True}],
    "accept_public_jobs": False,
}


def refused(frame: bytes | str) -> FrameError:
    with pytest.raises(FrameError) as caught:
        decode_from_node(frame)
    return caught.value


def changed(**fields: object) -> str:
    return json.dumps({**MINIMAL, **fields})


def test_the_minimal_frame_is_accepted() -> None:
    message = decode_from_node(json.dumps(MINIMAL))
    assert isinstance(message, NodeRegister)
    assert message.hardware.gpus[0].memory_gb == 24


def test_floats_where_integers_belong_are_read() -> None:
    message = decode_from_node(changed(hardware={"cpu_cores": 7.6, "memory_gb": 31.4, "gpus": []}))
    assert isinstance(message, NodeRegister)
    assert (message.hardware.cpu_cores, message.hardware.memory_gb) == (8, 31)


@pytest.mark.parametrize(
    ("frame", "path", "problem"),
    [
        (b"", "$", "not valid JSON"),
        (b"{", "$", "not valid JSON"),
        (b"\xff\xfe{}", "$", "not valid JSON"),
        (b'{"type":"node_register","version":"\\ud800"}', "$", "not valid JSON"),
        (b"[" * 100_000, "$", "recursion limit"),
        ('{"a":' * 500 + "1" + "}" * 500, "$", "recursion limit"),
        (b"[]", "$", "a message is a JSON object"),
        (b"null", "$", "a message is a JSON object"),
        (b'"node_register"', "$", "a message is a JSON object"),
        (b"{}", "$.type", "missing"),
        (b'{"type":null}', "$.type", "no message type"),
        (b'{"type":["node_register"]}', "$.type", "no message type"),
        (changed(version=None), "$.version", "string"),
        (changed(version=2), "$.version", "string"),
        (changed(hardware=None), "$.hardware", "object"),
        (changed(hardware={"memory_gb": 1, "gpus": []}), "$.hardware.cpu_cores", "missing"),
        (changed(hardware={"cpu_cores": "8", "memory_gb": 1}), "$.hardware.cpu_cores", "integer"),
        (changed(hardware={"cpu_cores": True, "memory_gb": 1}), "$.hardware.cpu_cores", "integer"),
        (
            changed(hardware={"cpu_cores": 8, "memory_gb": -1}),
            "$.hardware.memory_gb",
            "greater than or equal",
        ),
        (changed(hardware={"cpu_cores": 8, "memory_gb": 1, "gpus": {}}), "$.hardware.gpus", "array"),
        (
            changed(hardware={"cpu_cores": 8, "memory_gb": 1, "gpus": [{"name": 1}]}),
            "$.hardware.gpus[0].name",
            "string",
        ),
        (changed(installed_models=[{"version": "1"}]), "$.installed_models[0].model_id", "missing"),
        (
            changed(installed_models=[{"model_id": "", "version": "1"}]),
            "$.installed_models[0].model_id",
            "at least 1",
        ),
        (changed(installed_models=[MINIMAL["installed_models"][0], 3]), "$.installed_models[1]", "object"),
        (changed(accept_public_jobs="yes"), "$.accept_public_jobs", "boolean"),
        (changed(features_supported={"a": 1}), "$.features_supported.a", "boolean"),
        (changed(advanced_features=[1]), "$.advanced_features[0]", "string"),
        (changed(labels={"ö ä": 1}), '$.labels["\\u00f6 \\u00e4"]', "string"),
        (changed(node_id="a b"), "$.node_id", "pattern"),
        (changed(capability_state={"m": 1}), "$.capability_state.m", "string"),
        (changed(max_concurrent_jobs="4"), "$.max_concurrent_jobs", "integer"),
        (changed(unheard_of=float("nan")), "$", "NaN"),
        (changed(unheard_of=[{"deep": float("-inf")}]), "$", "Infinity"),
        ('{"type":"node_heartbeat","node_id":"n","timestamp":1}', "$.resource_usage", "missing"),
        (
            '{"type":"node_heartbeat","node_id":"n","timestamp":1,"resource_usage":{"cpu_percent":NaN,"mem_percent":1}}',
            "$.resource_usage.cpu_percent",
            "finite",
        ),
    ],
)
def test_a_malformed_frame_is_refused_with_the_path_of_its_fault(
    frame: bytes | str, path: str, problem: str
) -> None:
    error = refused(frame)
    assert error.fault is Fault.PEER
    assert path in [one.path for one in error.errors]
    assert problem in next(one.problem for one in error.errors if one.path == path)


def test_every_fault_of_a_frame_is_named_at_once() -> None:
    error = refused(changed(version=1, hardware={"cpu_cores": "8", "memory_gb": []}))
    assert [one["path"] for one in error.details()["errors"]] == [
        "$.version",
        "$.hardware.cpu_cores",
        "$.hardware.memory_gb",
    ]


def test_a_flood_of_faults_is_reported_in_part() -> None:
    assert len(refused(changed(labels={f"label-{n}": n for n in range(200)})).errors) == MAX_REPORTED_ERRORS


@pytest.mark.parametrize(
    "fields",
    [
        {"running_jobs": [1] * 100_000},
        {"installed_models": [{}] * 100_000},
        {"hardware": {"cpu_cores": 1, "memory_gb": 1, "gpus": [1] * 100_000}},
    ],
    ids=lambda fields: next(iter(fields)),
)
def test_a_list_ends_being_read_at_its_first_fault(fields: dict[str, object]) -> None:
    """Collecting a fault for each of many items made every other node wait for seconds."""
    assert len(refused(changed(**fields)).errors) <= 2


@pytest.mark.parametrize("name", ["labels", "features_supported", "capability_state"])
def test_an_object_of_too_many_entries_is_refused_before_any_is_looked_at(name: str) -> None:
    (error,) = refused(changed(**{name: dict.fromkeys(map(str, range(50_000)), 5)})).errors
    assert error.path == f"$.{name}"
    assert "at most" in error.problem


@pytest.mark.parametrize(
    "fields",
    [
        {"labels": {"a" * 500_000: 5}},
        {"labels": {"ö" * 500_000: 5}},
        {"version": ["x" * 900_000]},
        {"hardware": [["x" * 300_000] * 3]},
        {"node_id": "x" * 900_000},
    ],
    ids=["long name", "odd long name", "long value", "deep value", "long id"],
)
def test_a_refusal_stays_short_whatever_it_quotes(fields: dict[str, object]) -> None:
    assert len(json.dumps(refused(changed(**fields)).details())) < 2000


@pytest.mark.parametrize(
    "fields",
    [
        {"version": "v" * 2000},
        {"labels": {f"label-{n}": "x" for n in range(1000)}},
        {"running_jobs": ["j"] * 30_000},
        {"endpoint": "http://" + "x" * 5000},
    ],
    ids=lambda fields: next(iter(fields)),
)
def test_what_the_reader_would_have_to_keep_is_bounded(fields: dict[str, object]) -> None:
    assert "at most" in str(refused(changed(**fields)))


@pytest.mark.parametrize("figure", ["1e308", "-1e300", "1e16"])
def test_a_figure_that_cannot_be_reckoned_with_is_refused(figure: str) -> None:
    heartbeat = (
        '{"type":"node_heartbeat","node_id":"n","timestamp":1,'
        f'"resource_usage":{{"cpu_percent":1,"mem_percent":1,"gpu_mem_percent":{figure}}}}}'
    )
    assert "$.resource_usage.gpu_mem_percent" in str(refused(heartbeat))


def test_r05_a_registration_of_another_structure_that_says_so_is_recognized() -> None:
    with pytest.raises(UnsupportedSchemaError) as caught:
        decode_from_node(changed(capability_schema_version="9.9", hardware={"accelerators": 8}))
    assert caught.value.version == "9.9"
    assert not isinstance(
        refused(changed(capability_schema_version="1.1", hardware={})), UnsupportedSchemaError
    )


def test_what_would_have_been_a_registration_is_recognized() -> None:
    heartbeat = '{"type":"node_heartbeat"}'
    assert refused(changed(version=7)).is_registration
    assert refused(changed(capability_schema_version="9.9", version=7)).is_registration
    assert not refused(heartbeat).is_registration
    assert not refused("[]").is_registration


def test_a_long_value_is_not_echoed_whole() -> None:
    assert len(str(refused(changed(version=["x" * 100_000])))) < 300


def test_the_words_of_non_numbers_may_stand_in_strings() -> None:
    message = decode_from_node(changed(version="NaN Infinity"))
    assert isinstance(message, NodeRegister)
    assert message.version == "NaN Infinity"


def test_a_type_of_the_future_is_not_a_malformed_frame() -> None:
    with pytest.raises(UnknownMessageError, match="node_teleport"):
        decode_from_registry('{"type":"node_teleport"}')


def test_an_older_schedulers_error_reads_as_node_error() -> None:
    message = decode_from_registry('{"type":"error","code":"NO_GPU_AVAILABLE","message":"x"}')
    assert message.type == "error"


def test_a_message_over_the_limit_is_our_fault() -> None:
    with pytest.raises(FrameError) as caught:
        encode(NodeControl(command="refresh", reason="ä" * MAX_FRAME_BYTES))
    assert caught.value.fault is Fault.OURS


def test_a_message_under_the_limit_is_written_whole() -> None:
    text = encode(NodeControl(command="refresh", reason="x" * (MAX_FRAME_BYTES // 2)))
    assert decode_from_registry(text) == NodeControl(command="refresh", reason="x" * (MAX_FRAME_BYTES // 2))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=10,
)


@given(st.dictionaries(st.sampled_from([*MINIMAL, "labels", "node_id", "running_jobs", "x"]), JSON))
def test_no_json_makes_reading_fail_in_another_way(fields: dict[str, object]) -> None:
    with contextlib.suppress(FrameError):
        decode_from_node(json.dumps({**MINIMAL, **fields}))


@given(st.binary(max_size=64))
def test_no_bytes_make_reading_fail_in_another_way(frame: bytes) -> None:
    for decode in (decode_from_node, decode_from_registry):
        with pytest.raises(FrameError):
            decode(frame)
