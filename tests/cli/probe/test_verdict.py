import pytest

from gpu_agent.cli.probe.verdict import verdict
from gpu_agent.probe.snapshot import exit_code
from gpu_agent.wire.inventory import Gpu, GpuReport, Health, Inventory, Outcome
from tests.cli.hosts import HOST

GOOD = Gpu(uuid="GPU-1", name="NVIDIA L4", memory_mb=23034)
BLIND = Gpu(uuid="GPU-2", name="NVIDIA L4", unknowns={"memory_mb": "not supported"})
LOST = Gpu(uuid="GPU-3", name="NVIDIA L4", memory_mb=23034, health=Health.LOST)


def told(*gpus: Gpu, outcome: Outcome = Outcome.OK, detail: str | None = None) -> str:
    inventory = Inventory(host=HOST, gpu=GpuReport(outcome=outcome, gpus=gpus, detail=detail))
    said = verdict(inventory)
    assert said.startswith("Could register:") == (exit_code(inventory) == 0)
    return said


def test_r01_a_gpu_of_unknown_memory_does_not_count_as_usable() -> None:
    assert told(GOOD, BLIND) == (
        "Could register: 1 of 2 GPUs are usable; the memory of 1 is unknown (not supported)."
    )


def test_r01_where_no_memory_is_known_the_reason_is_memory_not_health() -> None:
    said = told(BLIND, LOST)
    assert "memory of the usable GPUs is unknown (not supported)" in said
    assert "nvidia-smi" in said
    assert "health" not in said


def test_where_no_gpu_is_well_its_health_is_pointed_at() -> None:
    assert "see its health above" in told(LOST)


@pytest.mark.parametrize(
    ("outcome", "detail", "words"),
    [
        (Outcome.NO_DRIVER, "no driver here", "Could not register: no driver here"),
        (Outcome.DRIVER_BROKEN, "reboot", "Could not register: reboot"),
        (Outcome.OK, None, "it sees no GPU"),
    ],
)
def test_a_machine_that_cannot_register_says_why(outcome: Outcome, detail: str | None, words: str) -> None:
    assert words in told(outcome=outcome, detail=detail)
