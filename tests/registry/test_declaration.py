import gc
import json
import tracemalloc
from typing import Any

import pytest

from gpu_agent.registry import declaration as declared
from gpu_agent.registry.events import RegistrationReceived, Stored
from gpu_agent.registry.fleet import Fleet
from gpu_agent.registry.node import NodeRecord
from gpu_agent.registry.settings import Thresholds
from gpu_agent.wire.codec import decode_from_node
from gpu_agent.wire.heartbeat import Parts
from gpu_agent.wire.messages import GpuDeclaration, Hardware, NodeError, NodeRegister
from tests.registry.harness import Registry, declaration, gpus, hardware, heartbeat, model, node_record

SETTINGS = Thresholds()


def node(message: NodeRegister) -> NodeRecord:
    record = node_record(message)
    declared.write_declaration(record, message, SETTINGS)
    return record


def replace_parts(record: NodeRecord, **brought: Any) -> NodeError | None:  # noqa: ANN401 - any part
    return declared.replace_parts(record, heartbeat(**brought).parts or Parts(), SETTINGS)


def test_gpus_are_keyed_by_uuid_or_by_their_position() -> None:
    found = (
        GpuDeclaration(name="A", memory_gb=24, memory_mb=24564, uuid="GPU-a"),
        GpuDeclaration(name="B", memory_gb=24),
        GpuDeclaration(name="C", uuid="GPU-c", health="lost"),
    )
    record = node(declaration(hardware=Hardware(cpu_cores=1, memory_gb=1, gpus=found)))
    assert [(gpu.uuid, gpu.memory_mb, gpu.health) for gpu in record.gpus.values()] == [
        ("GPU-a", 24564, "ok"),
        ("#1", 24576, "ok"),
        ("GPU-c", None, "lost"),
    ]
    assert record.gpus.usable == 2


def test_the_parent_of_mig_slices_takes_no_job_its_slices_do() -> None:
    found = (
        GpuDeclaration(name="H100", memory_gb=80, uuid="GPU-a"),
        GpuDeclaration(name="H100 1g.10gb", memory_gb=10, uuid="MIG-1", parent_uuid="GPU-a"),
        GpuDeclaration(name="H100 1g.10gb", memory_gb=10, uuid="MIG-2", parent_uuid="GPU-a"),
    )
    record = node(declaration(hardware=Hardware(cpu_cores=1, memory_gb=1, gpus=found)))
    assert record.gpus["GPU-a"].is_parent
    assert record.gpus.usable == 2


def test_models_are_ready_by_capability_state_where_it_speaks_else_by_their_own_status() -> None:
    installed = (model("a"), model("b"), model("c", status="downloading"), model("d", enabled=False))
    assert node(declaration(installed_models=installed)).declared.ready_models == {"a", "b"}
    spoken = declaration(
        installed_models=installed, capability_state={"b": "error", "c": "ready", "d": "ready"}
    )
    assert node(spoken).declared.ready_models == {"a", "c"}


def test_a_model_that_only_capability_state_names_is_not_installed() -> None:
    assert node(declaration(capability_state={"ghost": "ready"})).declared.ready_models == frozenset()


def test_versions_of_one_model_share_an_id_that_is_ready_if_any_is() -> None:
    installed = (model("a", status="error"), model("a"))
    assert node(declaration(installed_models=installed)).declared.ready_models == {"a"}


def test_a6_advanced_features_never_decide_a_base_feature() -> None:
    message = declaration(
        features_supported={"speaker_identification": True, "kv_cache": True, "voice_style_detection": None},
        advanced_features=("emotion_detection", "batched_inference"),
    )
    assert node(message).declared.features == {"speaker_identification", "kv_cache", "batched_inference"}


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ({}, {"emotion_detection"}),
        ({"emotion_detection": None}, {"emotion_detection"}),
        ({"emotion_detection": False}, set()),
    ],
)
def test_a6_a_ready_model_proves_its_base_feature_unless_the_node_declares_it_false(
    flags: dict[str, bool | None], expected: set[str]
) -> None:
    message = declaration(installed_models=(model("e", kind="emotion"),), features_supported=flags)
    assert node(message).declared.features == expected


def test_capacity_is_the_nodes_own_or_the_default() -> None:
    unstated = node(declaration())
    assert unstated.declared.max_concurrent_jobs is None
    assert unstated.slots == SETTINGS.default_max_concurrent_jobs
    assert node(declaration(max_concurrent_jobs=0)).slots == 0


def test_a_heartbeat_that_brings_nothing_replaces_nothing() -> None:
    record = node(declaration(labels={"zone": "a"}))
    before = record.declared.registration
    assert not replace_parts(record)
    assert record.declared.registration is before


@pytest.mark.parametrize(
    "part",
    [
        {"capability_state": {"a": "ready"}},
        {"installed_models": (model("a"),), "capability_state": {"a": "ready"}},
        {"labels": {"zone": "a"}, "hardware": hardware(2), "max_concurrent_jobs": 3},
    ],
)
def test_a_part_that_is_as_it_was_leaves_the_declaration_and_the_gpus_as_they_are(
    part: dict[str, Any],
) -> None:
    whole: dict[str, Any] = {
        "installed_models": (model("a"),),
        "labels": {"zone": "a"},
        "max_concurrent_jobs": 3,
    }
    record = node(declaration(**whole, hardware=hardware(2), capability_state={"a": "ready"}))
    before = record.declared, record.gpus
    assert not replace_parts(record, **part)
    assert (record.declared, record.gpus) == before
    assert record.declared is before[0]
    assert record.gpus is before[1]
    replace_parts(record, capability_state={"a": "error"})
    assert record.declared is not before[0]


def test_an_older_capability_state_does_not_speak_for_newer_models() -> None:
    record = node(declaration(installed_models=(model("a"),), capability_state={"a": "error", "b": "error"}))
    replace_parts(record, installed_models=(model("b"),))
    assert record.declared.ready_models == {"b"}
    replace_parts(record, capability_state={"b": "downloading"})
    assert record.declared.ready_models == frozenset()


def test_new_hardware_replaces_every_gpu() -> None:
    record = node(declaration(hardware=hardware(2)))
    replace_parts(record, hardware=hardware(3))
    assert (len(record.gpus), record.declared.registration.hardware) == (3, hardware(3))
    assert record.declared.registration.hardware == hardware(3)


def test_r03_every_gpu_of_a_node_is_recorded() -> None:
    registry = Registry()
    registry.register(hardware=hardware(8))
    assert list(registry.node().gpus) == [gpu.uuid for gpu in gpus(8)]


@pytest.mark.parametrize("letter", ["a", "é", "漢", "😀"])
def test_the_length_of_a_frame_changes_no_refusal_for_size(letter: str) -> None:
    refused = 0
    for kib in (40, 80, 120, 155, 165, 240, 320, 470, 490):
        name = letter * (1000 // len(letter.encode()))
        models = [{"model_id": name, "version": "1", "size_bytes": 1e15} for _ in range(kib)]
        gpu = {"name": "A", "memory_gb": 1e15}
        written = {
            "type": "node_register",
            "version": "1",
            "hardware": {"cpu_cores": 1, "memory_gb": 1, "gpus": [gpu]},
            "installed_models": models,
        }
        frame = json.dumps(written, ensure_ascii=False, separators=(",", ":")).encode()
        message = decode_from_node(frame)
        assert isinstance(message, NodeRegister)
        exact = declared.refusal_of(message, allow_simulated=False)
        assert declared.refusal_of(message, allow_simulated=False, frame_bytes=len(frame)) == exact
        refused += exact is not None
    assert 0 < refused < 9


def test_a_registration_of_4096_models_takes_at_most_400_bytes_a_model() -> None:
    count = 4096
    models = [
        {"model_id": f"organisation/model-{number:06}-instruct", "version": "main", "kind": "llm"}
        for number in range(count)
    ]
    frame = json.dumps({**declaration().as_json(), "installed_models": models}).encode()
    fleet = Fleet(SETTINGS, lambda: 0.5, auth_off=True)
    fleet.handle(RegistrationReceived(1, declaration(), "node-1"), 0.0)  # what the first one takes once
    tracemalloc.start()
    try:
        message = decode_from_node(frame)
        assert isinstance(message, NodeRegister)
        output = fleet.handle(RegistrationReceived(2, message, "node-2"), 0.0)
        assert output.number is not None
        fleet.handle(Stored(output.number), 0.0)
        del message, output
        gc.collect()
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    record = fleet.node("node-2")
    assert record is not None
    assert len(record.declared.ready_models) == count
    assert held / count <= 400
