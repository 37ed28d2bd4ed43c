from dataclasses import replace

from gpu_agent.wire.beat import BeatChanges, Moment, changes, heartbeat
from gpu_agent.wire.codec import encode
from gpu_agent.wire.declaration import Declaration, Owner, declare
from gpu_agent.wire.inventory import (
    Gpu,
    GpuReport,
    Health,
    HealthReason,
    Host,
    Inventory,
    Model,
    Outcome,
)

HOST = Host(
    cpu_logical_cores=16,
    cpu_physical_cores=8,
    memory_total_mb=64_000,
    memory_used_mb=1_000,
    memory_available_mb=63_000,
    platform="linux",
)
MOMENT = Moment(
    timestamp_ms=1,
    cpu_percent=1.0,
    mem_percent=2.0,
    running_jobs=0,
    running_job_ids=None,
    probe_age_seconds=0.5,
)


def inventory(*gpus: Gpu, models: tuple[Model, ...] = ()) -> Inventory:
    return Inventory(host=HOST, gpu=GpuReport(outcome=Outcome.OK, gpus=gpus), models=models)


def declared(*gpus: Gpu, models: tuple[Model, ...] = (), owner: Owner | None = None) -> Declaration:
    return declare(inventory(*gpus, models=models), owner or Owner())


L4 = Gpu(uuid="GPU-1", name="NVIDIA L4", memory_mb=23_034, memory_used_mb=11_517, utilization_percent=30.0)
BLIND = Gpu(uuid="GPU-2", name="NVIDIA GB10")


def test_a_beat_replaces_only_what_changed() -> None:
    told = declared(L4, owner=Owner(labels={"zone": "a"}))
    assert changes(told, told) == BeatChanges()
    moved = declared(L4, owner=Owner(labels={"zone": "b"}, accept_public_jobs=True))
    assert changes(told, moved) == BeatChanges(labels={"zone": "b"}, accept_public_jobs=True)
    grown = declared(L4, models=(Model(model_id="m", version="1"),))
    assert changes(told, grown).capability_state == {"m": "ready"}
    assert changes(told, declared(L4, BLIND)).hardware == declared(L4, BLIND).hardware


def test_unknown_figures_are_absent_from_a_beat_never_zero() -> None:
    beat = heartbeat("n", inventory(BLIND), moment=MOMENT, changed=BeatChanges(), sequence=1)
    assert (beat.resource_usage.gpu_percent, beat.resource_usage.gpu_mem_percent) == (None, None)
    assert "gpu_percent" not in encode(beat)


def test_an_unknown_number_of_jobs_is_absent_and_0_only_for_an_older_scheduler() -> None:
    moment = replace(MOMENT, running_jobs=None)
    beat = heartbeat("n", inventory(BLIND), moment=moment, changed=BeatChanges(), sequence=1)
    assert "running_jobs" not in encode(beat)
    older = heartbeat(
        "n", inventory(BLIND), moment=moment, changed=BeatChanges(), sequence=1, count_required=True
    )
    assert '"running_jobs":0' in encode(older)


def test_a_beat_carries_each_gpus_figures_and_the_reasons_of_its_health() -> None:
    hung = Gpu(
        uuid="GPU-3",
        name="NVIDIA L4",
        health=Health.UNKNOWN,
        reasons=(HealthReason(code="nvml_hung", detail="no answer"),),
    )
    beat = heartbeat("n", inventory(L4, hung), moment=MOMENT, changed=BeatChanges(), sequence=1)
    assert beat.gpus is not None
    assert [(gpu.health, gpu.reasons) for gpu in beat.gpus] == [("ok", ()), ("unknown", ("nvml_hung",))]
    assert beat.resource_usage.gpu_mem_percent == 50.0


def test_the_parent_of_mig_slices_counts_in_no_total() -> None:
    parent = Gpu(uuid="GPU-1", name="A100", memory_mb=40_000, memory_used_mb=40_000)
    piece = Gpu(uuid="MIG-1", name="A100 MIG", memory_mb=10_000, memory_used_mb=0, parent_uuid="GPU-1")
    beat = heartbeat("n", inventory(parent, piece), moment=MOMENT, changed=BeatChanges(), sequence=1)
    assert beat.resource_usage.gpu_mem_percent == 0.0
