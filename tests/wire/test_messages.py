import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field, ValidationError

from gpu_agent.wire.codec import FrameError, decode_from_node, decode_from_registry, encode
from gpu_agent.wire.messages import (
    Check,
    FeatureNames,
    Flag,
    GpuDeclaration,
    GpuFigures,
    Hardware,
    InstalledModel,
    Listed,
    Mapped,
    NodeCheck,
    NodeControl,
    NodeError,
    NodeHeartbeat,
    NodeId,
    NodeRegister,
    NodeRegisterAck,
    NodeStatusMessage,
    NodeUnregister,
    ResourceUsage,
    SchemaVersion,
    StatusDetails,
    SuggestedNodeId,
    WireInt,
    WireModel,
)

GOLDEN = Path(__file__).parent.parent / "golden"
GPU = "GPU-8f6d0c2e-52d1-4b6e-9a3c-0d9f3a6b1c00"

FROM_NODE: dict[str, WireModel] = {
    "node_register_1_0": NodeRegister(
        version="0.1.0",
        capability_schema_version="1.0",
        node_id=None,
        platform="linux",
        hardware=Hardware(cpu_cores=16, memory_gb=64, gpus=(GpuDeclaration(name="NVIDIA L4", memory_gb=24),)),
        installed_models=(
            InstalledModel(
                model_id="Helsinki-NLP/opus-mt-zh-en", version="3b1ad1f0a2c4", kind="nmt", src_lang="zh"
            ),
        ),
        features_supported={"emotion_detection": False},
        advanced_features=("batched_inference",),
        accept_public_jobs=True,
        capability_state={"Helsinki-NLP/opus-mt-zh-en": "ready"},
    ),
    "node_register_1_1": NodeRegister(
        version="0.1.0",
        capability_schema_version="1.1",
        node_id="node-3ECEA4E2",
        platform="linux",
        hardware=Hardware(
            cpu_cores=128,
            memory_gb=1024,
            gpus=(
                GpuDeclaration(
                    name="NVIDIA H100 80GB HBM3",
                    memory_gb=80,
                    uuid=GPU,
                    vendor="nvidia",
                    index=0,
                    memory_mb=81559,
                    memory_kind="dedicated",
                    compute_capability="9.0",
                    pci_bus_id="00000000:1B:00.0",
                    health="ok",
                ),
                GpuDeclaration(name="NVIDIA GB10", memory_gb=None, uuid="GPU-2", memory_kind="unknown"),
            ),
            driver_version="570.86.15",
            cuda_version="12.8",
        ),
        installed_models=(
            InstalledModel(
                model_id="openai/whisper-large-v3", version="06f233fe06e7", kind="asr", size_bytes=3094016
            ),
        ),
        labels={"zone": "a"},
        max_concurrent_jobs=8,
        endpoint="http://10.0.0.7:9000",
        simulated=True,
        running_jobs=("job-1",),
    ),
    "node_heartbeat": NodeHeartbeat(
        node_id="node-3ECEA4E2",
        timestamp=1795517679123,
        resource_usage=ResourceUsage(
            cpu_percent=12.5, mem_percent=50.1, gpu_percent=40.0, gpu_mem_percent=33.2, running_jobs=1
        ),
        gpus=(
            GpuFigures(
                uuid=GPU,
                utilization_percent=40.0,
                memory_used_mb=20480,
                memory_total_mb=81559,
                temperature_c=55.0,
                power_w=300.5,
            ),
            GpuFigures(uuid="GPU-2", health="unknown", reasons=("nvml_hung",)),
        ),
        probe_age_seconds=0.4,
        running_jobs=("job-1",),
        sequence=7,
    ),
    "node_heartbeat_with_processes": NodeHeartbeat(
        node_id="node-3ECEA4E2",
        timestamp=1795517679123,
        resource_usage=ResourceUsage(cpu_percent=12.5, mem_percent=50.1, gpu_percent=40.0, running_jobs=1),
        gpus=(
            GpuFigures(uuid=GPU, processes=2, utilization_percent=40.0, memory_used_mb=20480),
            GpuFigures(uuid="GPU-2", processes=0),
        ),
        probe_age_seconds=0.4,
        running_jobs=("job-1",),
        sequence=8,
    ),
    "node_heartbeat_with_checks": NodeHeartbeat(
        node_id="node-3ECEA4E2",
        timestamp=1795517679123,
        resource_usage=ResourceUsage(cpu_percent=12.5, mem_percent=50.1, running_jobs=0),
        sequence=1,
        checks=(
            NodeCheck(name="hook", ok=False, detail="exit status 1: GPU 3 is slow", at=1795517678.5),
            NodeCheck(name="pcie_link", scope=GPU, ok=True, detail="x16 of x16", at=1795517670.0),
        ),
    ),
    "node_register_with_hostname": NodeRegister(
        version="0.2.0",
        capability_schema_version="1.1",
        node_id="node-3ECEA4E2",
        platform="linux",
        hardware=Hardware(
            cpu_cores=16,
            memory_gb=64,
            gpus=(GpuDeclaration(name="NVIDIA L4", memory_gb=24, uuid=GPU, index=0, memory_mb=23034),),
        ),
        hostname="rack7-03.example.org",
    ),
    "node_unregister": NodeUnregister(
        node_id="node-3ECEA4E2", reason="shutdown", drain=True, deadline_seconds=30.0
    ),
    "node_fault": NodeError(node_id="node-3ECEA4E2", code="GPU_LOST", message="GPU 3 fell off the bus"),
}

FROM_REGISTRY: dict[str, WireModel] = {
    "node_register_ack": NodeRegisterAck(
        node_id="node-3ECEA4E2",
        capability_schema_version="1.1",
        heartbeat_interval_seconds=15.0,
        warmup_heartbeat_interval_seconds=2.0,
        heartbeat_timeout_seconds=45.0,
        session_epoch=3,
    ),
    "node_error": NodeError(
        node_id=None,
        code="INVALID_MESSAGE",
        message="$.version: required, but missing. Send it as a string.",
        details={"errors": [{"path": "$.version", "problem": "required, but missing"}]},
    ),
    "node_status": NodeStatusMessage(
        node_id="node-3ECEA4E2",
        status="ready",
        reason="3 healthy beats in a row",
        timestamp=1795517679.0,
        previous_status="registering",
        reason_code="health_checks_passed",
        since=1795517679.0,
        heartbeat_interval_seconds=15.0,
        details=StatusDetails(
            checks=(Check(name="gpu_usable", ok=True, detail="8 of 8"),),
            healthy_beats=3,
            beats_needed=3,
            in_flight_jobs=0,
        ),
    ),
    "node_control": NodeControl(command="refresh", reason="operator asked"),
    "node_control_check": NodeControl(command="check", reason="operator asked"),
}


def golden(name: str) -> bytes:
    return (GOLDEN / f"{name}.json").read_bytes()


@pytest.mark.parametrize("name", FROM_NODE)
def test_a_nodes_message_is_written_and_read_as_released(name: str) -> None:
    assert encode(FROM_NODE[name]).encode() == golden(name)
    assert decode_from_node(golden(name)) == FROM_NODE[name]


@pytest.mark.parametrize("name", FROM_REGISTRY)
def test_a_registrys_message_is_written_and_read_as_released(name: str) -> None:
    assert encode(FROM_REGISTRY[name]).encode() == golden(name)
    assert decode_from_registry(golden(name)) == FROM_REGISTRY[name]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("ack", {"node_id": "node-3ECEA4E2", "status": "registering"}),
        ("no_gpu", {"code": "NO_GPU_AVAILABLE"}),
        ("schema", {"code": "INVALID_CAPABILITY_SCHEMA"}),
        ("conflict", {"code": "NODE_ID_CONFLICT"}),
        ("status", {"status": "ready", "reason": "健康检查通过", "timestamp": 1795517679.0}),
    ],
)
def test_frames_of_an_older_scheduler_are_understood(name: str, expected: dict[str, Any]) -> None:
    message = decode_from_registry(golden(f"older_scheduler_{name}"))
    assert {field: getattr(message, field) for field in expected} == expected


def test_frames_of_an_older_node_are_understood() -> None:
    register = decode_from_node(golden("older_node_register"))
    assert isinstance(register, NodeRegister)
    assert (register.capability_schema_version, register.capability_state) == (None, None)
    message = decode_from_node(golden("older_node_heartbeat"))
    assert isinstance(message, NodeHeartbeat)
    assert (message.resource_usage.gpu_percent, message.gpus) == (None, None)


def test_a_token_is_not_in_the_representation_of_an_ack() -> None:
    assert "s3cret" not in repr(NodeRegisterAck(node_id="n", node_token="s3cret"))


def _with_checks(*checks: dict[str, object]) -> str:
    heartbeat = json.loads(golden("node_heartbeat_with_checks"))
    return json.dumps({**heartbeat, "checks": checks})


def test_a_check_without_a_scope_is_of_the_whole_node_and_no_checks_are_not_an_empty_list() -> None:
    read = decode_from_node(_with_checks({"name": "hook", "ok": True, "at": 1.0}))
    assert isinstance(read, NodeHeartbeat)
    assert read.checks == (NodeCheck(name="hook", scope="node", ok=True, at=1.0),)
    none = decode_from_node(golden("node_heartbeat"))
    empty = decode_from_node(_with_checks())
    assert isinstance(none, NodeHeartbeat)
    assert isinstance(empty, NodeHeartbeat)
    assert (none.checks, empty.checks) == (None, ())


@pytest.mark.parametrize(
    "checks",
    [
        [{"name": "x" * 65, "ok": True, "at": 1.0}],
        [{"name": "", "ok": True, "at": 1.0}],
        [{"name": "hook", "scope": "", "ok": True, "at": 1.0}],
        [{"name": "hook", "ok": True, "at": 1.0, "detail": "x" * 257}],
        [{"name": "hook", "ok": "yes", "at": 1.0}],
        [{"name": "hook", "ok": True, "at": 1e300}],
        [{"name": "hook", "ok": True}],
        [{"name": "hook", "scope": f"GPU-{place}", "ok": True, "at": 1.0} for place in range(2049)],
        [{"name": "hook", "ok": True, "at": 1.0, "detail": "x" * 256} for _ in range(512)],
    ],
    ids=["long name", "no name", "no scope", "detail", "ok", "at", "no at", "number", "text"],
)
def test_checks_beyond_their_bounds_are_refused(checks: list[dict[str, object]]) -> None:
    with pytest.raises(FrameError) as refused:
        decode_from_node(_with_checks(*checks))
    assert refused.value.errors[0].path.startswith("$.checks")


def test_unknown_fields_are_ignored_at_every_level() -> None:
    text = golden("node_register_1_0").decode()
    newer = text.replace("{", '{"of_2031":{"deep":[1]},')
    read = decode_from_node(
        newer.replace('"capability_state":{"of_2031":{"deep":[1]},', '"capability_state":{')
        .replace('"features_supported":{"of_2031":{"deep":[1]},', '"features_supported":{')
        .replace('"labels":{"of_2031":{"deep":[1]},}', '"labels":{}')
    )
    assert read == FROM_NODE["node_register_1_0"]


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


NAMES = st.text(max_size=8)
NUMBERS = st.integers(0, 2**53) | st.floats(0, 2**52)
GPUS = st.builds(
    GpuDeclaration,
    name=NAMES,
    memory_gb=st.none() | NUMBERS,
    uuid=st.none() | NAMES,
    memory_mb=st.none() | NUMBERS,
    health=st.none() | NAMES,
)
MODELS = st.builds(
    InstalledModel, model_id=st.text(min_size=1, max_size=8), version=NAMES, kind=st.none() | NAMES
)
REGISTRATIONS = st.builds(
    NodeRegister,
    version=NAMES,
    node_id=st.none() | st.just("node-1"),
    hardware=st.builds(Hardware, cpu_cores=NUMBERS, memory_gb=NUMBERS, gpus=st.lists(GPUS, max_size=3)),
    installed_models=st.lists(MODELS, max_size=3),
    features_supported=st.dictionaries(NAMES, st.none() | st.booleans(), max_size=3),
    advanced_features=st.lists(NAMES, max_size=3),
    capability_state=st.none() | st.dictionaries(NAMES, NAMES, max_size=3),
    labels=st.dictionaries(NAMES, NAMES, max_size=3),
    running_jobs=st.none() | st.tuples(NAMES),
)


@given(REGISTRATIONS)
def test_a_registration_is_written_as_its_model_writes_it(message: NodeRegister) -> None:
    assert message.as_json() == message.model_dump(mode="json")
    assert encode(message) == message.model_dump_json()


@pytest.mark.parametrize("message", [*FROM_NODE.values(), *FROM_REGISTRY.values()])
def test_every_message_is_written_as_its_model_writes_it(message: WireModel) -> None:
    assert message.as_json() == message.model_dump(mode="json")
    assert encode(message) == message.model_dump_json()
