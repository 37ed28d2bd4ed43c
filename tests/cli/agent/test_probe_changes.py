from dataclasses import replace

from gpu_agent.cli.agent.probe_page import machine_changes
from gpu_agent.cli.output.text import plain_text
from gpu_agent.wire.inventory import (
    Gpu,
    GpuReport,
    Health,
    HealthReason,
    Inventory,
    Model,
    ModelStatus,
    Outcome,
)
from tests.cli.hosts import HOST

FIRST = Gpu(index=0, uuid="GPU-1", name="NVIDIA L4", memory_mb=23034)
SECOND = Gpu(index=1, uuid="GPU-2", name="NVIDIA L4", memory_mb=23034)
LOST = replace(
    SECOND,
    health=Health.LOST,
    reasons=(HealthReason(code="gpu_lost", detail="it fell off the bus", action="reboot"),),
)
ASR = Model(model_id="m", version="1", kind="asr")
WELL = Inventory(host=HOST, gpu=GpuReport(outcome=Outcome.OK, gpus=(FIRST, SECOND)), models=(ASR,))


def changes(after: Inventory, before: Inventory = WELL) -> list[str]:
    return [plain_text(one) for one in machine_changes(before, after)]


def of(*gpus: Gpu) -> Inventory:
    return replace(WELL, gpu=GpuReport(outcome=Outcome.OK, gpus=gpus))


def test_figures_that_drift_are_no_change() -> None:
    assert changes(of(replace(FIRST, temperature_c=60, utilization_percent=9), SECOND)) == []


def test_a_gpu_that_is_lost_is_reported_with_the_next_step_and_its_return_too() -> None:
    assert changes(of(FIRST, LOST)) == [
        "GPU 1: ok → lost: it fell off the bus (gpu_lost); next step: drain the node, then reboot it",
    ]
    assert changes(WELL, of(FIRST, LOST)) == ["GPU 1: lost → ok"]


def test_another_reason_for_the_same_health_is_reported() -> None:
    again = replace(LOST, reasons=(HealthReason(code="gpu_reset_required", detail="it wants a reset"),))
    assert changes(of(FIRST, again), of(FIRST, LOST)) == [
        "GPU 1 is still lost: it wants a reset (gpu_reset_required)"
    ]


def test_gpus_that_come_and_go_are_reported() -> None:
    assert changes(of(FIRST)) == ["GPU 1 is gone: L4 GPU-2"]
    assert changes(WELL, of(FIRST)) == ["GPU 1 is there: L4, ok"]


def test_what_follows_for_the_registration_is_reported() -> None:
    broken = replace(WELL, gpu=GpuReport(outcome=Outcome.DRIVER_BROKEN, detail="reboot."))
    assert changes(broken)[-1] == "Could not register: reboot."
    assert changes(WELL, broken)[-1] == "Could register: all 2 GPUs are usable."


def test_models_that_come_go_and_break_are_reported() -> None:
    broken = replace(ASR, status=ModelStatus.ERROR, detail="a shard is missing")
    assert changes(replace(WELL, models=(broken,))) == ["model m 1: ready → error: a shard is missing"]
    assert changes(replace(WELL, models=())) == ["model m 1 is gone"]
    assert changes(WELL, replace(WELL, models=())) == ["model m 1 is there: ready"]
    assert changes(replace(WELL, models=(replace(ASR, enabled=False),))) == [
        "model m 1: ready → ready disabled"
    ]
