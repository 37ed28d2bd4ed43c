import json
from dataclasses import fields, replace

import pytest

from gpu_agent.wire.codec import MAX_FRAME_BYTES, decode_from_node, encode
from gpu_agent.wire.declaration import (
    Declaration,
    DeclarationChanges,
    HeartbeatFigures,
    Owner,
    changes,
    declare,
    heartbeat,
    registration,
    whole_gb,
)
from gpu_agent.wire.inventory import (
    Gpu,
    GpuProcess,
    GpuReport,
    Health,
    HealthReason,
    Host,
    Inventory,
    Model,
    ModelStatus,
    Outcome,
)
from gpu_agent.wire.messages import MAX_GPUS, GpuDeclaration, GpuFigures

HOST = Host(
    cpu_logical_cores=16,
    cpu_physical_cores=8,
    memory_total_mb=64_000,
    memory_used_mb=1_000,
    memory_available_mb=63_000,
    platform="linux",
)


def inventory(*gpus: Gpu, models: tuple[Model, ...] = ()) -> Inventory:
    return Inventory(host=HOST, gpu=GpuReport(outcome=Outcome.OK, gpus=gpus), models=models)


def declared(*gpus: Gpu, models: tuple[Model, ...] = (), owner: Owner | None = None) -> Declaration:
    return declare(inventory(*gpus, models=models), owner or Owner())


L4 = Gpu(uuid="GPU-1", name="NVIDIA L4", memory_mb=23_034, memory_used_mb=11_517, utilization_percent=30.0)
BLIND = Gpu(uuid="GPU-2", name="NVIDIA GB10")


@pytest.mark.parametrize(
    ("memory_mb", "expected"), [(24_564, 24), (81_559, 80), (100, 1), (1, 1), (None, None), (1536, 2)]
)
def test_known_memory_rounds_to_at_least_one_gib(memory_mb: int | None, expected: int | None) -> None:
    assert whole_gb(memory_mb) == expected


def test_sizes_and_cores_are_integers_on_the_wire() -> None:
    written = json.loads(encode(registration(declared(L4), node_id=None)))["hardware"]
    assert [type(written[key]) for key in ("cpu_cores", "memory_gb")] == [int, int]
    assert type(written["gpus"][0]["memory_gb"]) is int


def test_a_gpu_of_unknown_memory_is_null_at_1_1_and_left_out_at_1_0() -> None:
    newest = json.loads(encode(registration(declared(L4, BLIND), node_id=None)))
    assert [gpu["memory_gb"] for gpu in newest["hardware"]["gpus"]] == [22, None]
    oldest = json.loads(encode(registration(declared(L4, BLIND), node_id=None, schema_version="1.0")))
    assert oldest["hardware"]["gpus"] == [{"name": "NVIDIA L4", "memory_gb": 22}]


def test_what_a_deployed_scheduler_needs_is_always_sent() -> None:
    model = Model(model_id="m", version="1")
    for version in ("1.0", "1.1"):
        written = json.loads(
            encode(registration(declared(L4, models=(model,)), node_id=None, schema_version=version))
        )
        assert {"platform", "features_supported"} <= written.keys()
        assert "kind" in written["installed_models"][0]


def test_a_machine_of_unknown_memory_declares_0_which_no_known_memory_rounds_to() -> None:
    machine = replace(inventory(L4), host=replace(HOST, memory_total_mb=None))
    assert declare(machine, Owner()).hardware.memory_gb == 0
    assert declare(replace(machine, host=replace(HOST, memory_total_mb=1)), Owner()).hardware.memory_gb == 1


def test_only_gpus_of_known_memory_make_a_declaration_worth_sending() -> None:
    assert declared(L4).has_gpu
    assert not declared().has_gpu
    assert not declared(BLIND).has_gpu


def test_versions_of_one_model_share_a_state_ready_if_any_is() -> None:
    models = (
        Model(model_id="m", version="1", status=ModelStatus.ERROR),
        Model(model_id="m", version="2"),
        Model(model_id="m", version="3", status=ModelStatus.DOWNLOADING),
        Model(model_id="n", version="1", status=ModelStatus.DOWNLOADING),
    )
    assert declared(L4, models=models).capability_state == {"m": "ready", "n": "downloading"}


def test_a_frame_over_the_limit_leaves_out_disabled_then_unready_models_and_says_so() -> None:
    def many(prefix: str, **fields: object) -> tuple[Model, ...]:
        return tuple(Model(model_id=f"{prefix}{i}-{'x' * 300}", version="1", **fields) for i in range(1200))  # type: ignore[arg-type]  # fields of Model

    ready, disabled, broken = many("r"), many("d", enabled=False), many("b", status=ModelStatus.ERROR)
    declaration = declared(L4, models=(*disabled, *broken, *ready))
    frame = encode(registration(declaration, node_id="n" * 128))
    assert len(frame.encode()) <= MAX_FRAME_BYTES
    decode_from_node(frame)
    included = {model.model_id for model in declaration.installed_models}
    assert {model.model_id for model in ready} <= included
    assert {model.model_id for model in disabled} <= set(declaration.left_out)


def test_the_owners_words_take_room_from_the_models() -> None:
    models = tuple(Model(model_id=f"m{i}-{'x' * 300}", version="1") for i in range(2500))
    wordy = Owner(labels={f"label-{n}-{'k' * 900}": "v" * 1000 for n in range(256)})
    declaration = declared(L4, models=models, owner=wordy)
    assert len(encode(registration(declaration, node_id="n" * 128)).encode()) <= MAX_FRAME_BYTES
    assert declaration.left_out


def test_a_model_that_no_reader_would_take_is_left_out_and_said_so() -> None:
    models = (
        Model(model_id="", version="1"),
        Model(model_id="good", version="1"),
        Model(model_id="x" * 2000, version="1"),
    )
    declaration = declared(L4, models=models)
    assert [model.model_id for model in declaration.installed_models] == ["good"]
    assert declaration.left_out == ("", "x" * 2000)


MOMENT = HeartbeatFigures(
    timestamp_ms=1,
    cpu_percent=1.0,
    mem_percent=2.0,
    running_jobs=0,
    running_job_ids=None,
    probe_age_seconds=0.5,
)


def test_a_heartbeat_replaces_only_what_changed() -> None:
    sent = declared(L4, owner=Owner(labels={"zone": "a"}))
    assert changes(sent, sent) == DeclarationChanges()
    moved = declared(L4, owner=Owner(labels={"zone": "b"}, accept_public_jobs=True))
    assert changes(sent, moved) == DeclarationChanges(labels={"zone": "b"}, accept_public_jobs=True)
    grown = declared(L4, models=(Model(model_id="m", version="1"),))
    assert changes(sent, grown).capability_state == {"m": "ready"}
    assert changes(sent, declared(L4, BLIND)).hardware == declared(L4, BLIND).hardware


def test_unknown_figures_are_absent_from_a_heartbeat_never_zero() -> None:
    message = heartbeat("n", inventory(BLIND), moment=MOMENT, changed=DeclarationChanges(), sequence=1)
    assert (message.resource_usage.gpu_percent, message.resource_usage.gpu_mem_percent) == (None, None)
    assert "gpu_percent" not in encode(message)


def test_an_unknown_number_of_jobs_is_absent_and_0_only_for_an_older_scheduler() -> None:
    moment = replace(MOMENT, running_jobs=None)
    message = heartbeat("n", inventory(BLIND), moment=moment, changed=DeclarationChanges(), sequence=1)
    assert "running_jobs" not in encode(message)
    older = heartbeat(
        "n",
        inventory(BLIND),
        moment=moment,
        changed=DeclarationChanges(),
        sequence=1,
        job_count_required=True,
    )
    assert '"running_jobs":0' in encode(older)


def test_a_heartbeat_carries_each_gpus_figures_and_the_reasons_of_its_health() -> None:
    hung = Gpu(
        uuid="GPU-3",
        name="NVIDIA L4",
        health=Health.UNKNOWN,
        reasons=(HealthReason(code="nvml_hung", detail="no answer"),),
    )
    message = heartbeat("n", inventory(L4, hung), moment=MOMENT, changed=DeclarationChanges(), sequence=1)
    assert message.gpus is not None
    assert [(gpu.health, gpu.reasons) for gpu in message.gpus] == [("ok", ()), ("unknown", ("nvml_hung",))]
    assert message.resource_usage.gpu_mem_percent == 50.0


NOT_SENT = frozenset(
    {"memory_free_mb", "memory_reserved_mb", "memory_utilization_percent", "power_limit_w", "clock_sm_mhz"}
    | {"clock_memory_mhz", "energy_mj", "ecc_uncorrected", "retirement_pending", "recovery_action"}
    | {"throttle_reasons", "mig_enabled", "asleep", "visible", "offered", "events", "unknowns"}
    | {"sram_threshold_exceeded", "compute_mode", "fabric_faults", "nvlinks_up", "nvlinks_down"}
    | {"nvlink_errors", "pcie_generation", "pcie_generation_max", "pcie_width", "pcie_width_max"}
    | {
        "pcie_replays",
        "remapped_rows_correctable",
        "remapped_rows_uncorrectable",
        "row_remap_failed",
        "gpu_instance",
    }
)
"""What stays on the machine: `gpu-agent probe` and `status` show it, health judges it."""


def test_each_field_of_a_gpu_is_on_the_wire_or_listed_as_not_sent() -> None:
    known = {each.name for each in fields(Gpu)}
    sent = {*GpuDeclaration.model_fields, *GpuFigures.model_fields} & known
    assert sent | NOT_SENT == known, "a new field is declared, or a figure, or belongs in NOT_SENT"
    assert not sent & NOT_SENT


def test_a_figure_that_the_wire_has_under_the_inventorys_name_arrives() -> None:
    gpu = replace(
        L4,
        temperature_c=41.0,
        power_w=72.5,
        processes=(GpuProcess(pid=1), GpuProcess(pid=2)),
        health=Health.DEGRADED,
        reasons=(HealthReason(code="hot", detail="it is hot"),),
    )
    message = heartbeat("n", inventory(gpu), moment=MOMENT, changed=DeclarationChanges(), sequence=1)
    assert message.gpus is not None
    assert message.gpus[0].model_dump() == {
        "uuid": "GPU-1",
        "utilization_percent": 30.0,
        "memory_used_mb": 11_517,
        "memory_total_mb": 23_034,
        "temperature_c": 41.0,
        "power_w": 72.5,
        "processes": 2,
        "health": "degraded",
        "reasons": ("hot",),
    }


def test_no_more_gpus_are_declared_or_reported_than_a_registry_takes() -> None:
    found = [replace(L4, uuid=f"GPU-{place}") for place in range(MAX_GPUS + 44)]
    assert len(declared(*found).hardware.gpus) == MAX_GPUS
    moment = HeartbeatFigures(
        timestamp_ms=0,
        cpu_percent=1.0,
        mem_percent=1.0,
        running_jobs=None,
        running_job_ids=None,
        probe_age_seconds=None,
    )
    sent = heartbeat("node-1", inventory(*found), moment=moment, changed=DeclarationChanges(), sequence=1)
    assert len(sent.gpus or ()) == MAX_GPUS


def test_the_parent_of_mig_devices_counts_in_no_total() -> None:
    parent = Gpu(uuid="GPU-1", name="A100", memory_mb=40_000, memory_used_mb=40_000)
    piece = Gpu(uuid="MIG-1", name="A100 MIG", memory_mb=10_000, memory_used_mb=0, parent_uuid="GPU-1")
    found = inventory(parent, piece)
    message = heartbeat("n", found, moment=MOMENT, changed=DeclarationChanges(), sequence=1)
    assert message.resource_usage.gpu_mem_percent == 0.0


@pytest.mark.parametrize(
    ("health", "usable"),
    [(Health.OK, True), (Health.DEGRADED, True), (Health.LOST, False), (Health.UNKNOWN, False)],
)
def test_only_ok_and_degraded_gpus_are_usable(health: Health, *, usable: bool) -> None:
    assert health.usable is usable


def test_the_parent_of_mig_devices_takes_no_job_but_its_slices_do() -> None:
    parent = Gpu(uuid="GPU-1", name="A100")
    piece = Gpu(uuid="MIG-1", name="A100 MIG 1g.10gb", parent_uuid="GPU-1")
    lost = Gpu(uuid="GPU-2", name="A100", health=Health.LOST)
    report = GpuReport(outcome=Outcome.OK, gpus=(parent, piece, lost))
    assert report.usable == (piece,)


def test_a_gpu_that_is_not_offered_is_neither_declared_nor_reported_nor_counted() -> None:
    own = Gpu(uuid="AMD-1", name="Radeon", memory_mb=80_000, utilization_percent=90.0, offered=False)
    found = inventory(own, L4)
    message = heartbeat("n", found, moment=MOMENT, changed=DeclarationChanges(), sequence=1)
    assert [gpu.uuid for gpu in declare(found, Owner()).hardware.gpus] == ["GPU-1"]
    assert [gpu.uuid for gpu in message.gpus or ()] == ["GPU-1"]
    assert message.resource_usage.gpu_percent == 30.0
    assert found.gpu.usable == (L4,)
    assert not declare(inventory(own), Owner()).has_gpu
