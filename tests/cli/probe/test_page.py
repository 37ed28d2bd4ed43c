from dataclasses import replace

import pytest

from gpu_agent.cli.bars import RICH
from gpu_agent.cli.lines import plain, room
from gpu_agent.cli.probe.page import fitted_page, probe_page
from gpu_agent.wire.inventory import Gpu, GpuReport, Health, HealthReason, Host, Inventory, Model, Outcome

HOST = Host(
    cpu_logical_cores=4,
    cpu_physical_cores=2,
    memory_total_mb=8192,
    memory_used_mb=None,
    memory_available_mb=None,
    platform="linux",
    hostname="gpu-07",
)
L4 = Gpu(index=0, uuid="GPU-1", name="NVIDIA L4", memory_mb=23034)
LOST = Gpu(
    index=1,
    uuid="GPU-2",
    name="NVIDIA L4",
    health=Health.LOST,
    reasons=(HealthReason(code="gpu_lost", detail="it fell off the bus", action="reboot"),),
)


def page(report: GpuReport, *models: Model, columns: int | None = 80, simulated: bool = False) -> list[str]:
    inventory = Inventory(host=HOST, gpu=report, models=models, simulated=simulated)
    return [plain(one) for one in probe_page(inventory, columns, RICH, now=0.0)]


def test_the_machine_comes_first_and_the_verdict_last() -> None:
    report = GpuReport(outcome=Outcome.OK, gpus=(L4, LOST), driver_version="570.1", cuda_version="12.8")
    said = page(report, Model(model_id="m", version="1"))
    assert said[0] == "gpu-07  driver 570.1, CUDA 12.8"
    assert said[-2:] == [
        "Could register: 1 of 2 GPUs are usable.",
        "It would offer 1x L4 with 22 GiB in all, and 1 ready model.",
    ]
    heads = [one.split()[0] for one in said if one]
    assert [heads.index(word) for word in ("GPU", "cores", "KIND", "WHAT")] == sorted(
        heads.index(word) for word in ("GPU", "cores", "KIND", "WHAT")
    )


def test_a_broken_driver_is_the_verdict_with_its_next_step() -> None:
    said = page(GpuReport(outcome=Outcome.DRIVER_BROKEN, detail="it is stuck: reboot."))
    assert said[-1] == "Could not register: it is stuck: reboot."


def test_models_that_could_not_be_looked_for_are_not_said_to_be_none() -> None:
    host = replace(HOST, unknowns={"models": "the disks did not answer"})
    inventory = Inventory(host=host, gpu=GpuReport(outcome=Outcome.OK, gpus=(L4,)))
    said = [plain(one) for one in probe_page(inventory, None, RICH, now=0.0)]
    assert "Models unknown: the disks did not answer" in said
    assert not any("none found" in one for one in said)


def test_a_simulated_machine_says_that_it_does_not_exist() -> None:
    said = page(GpuReport(outcome=Outcome.OK, gpus=(L4,)), simulated=True)
    assert said[1] == "SIMULATED: these GPUs do not exist"


@pytest.mark.parametrize("columns", [30, 40, 80, 200])
def test_no_line_is_wider_than_the_terminal(columns: int) -> None:
    report = GpuReport(outcome=Outcome.OK, gpus=(L4, LOST))
    assert max(map(room, page(report, Model(model_id="m" * 50, version="1"), columns=columns))) <= columns


@pytest.mark.parametrize("lines", [3, 8, 12, 20, 60])
def test_a_screen_with_little_room_keeps_the_verdict_and_says_what_is_left_out(lines: int) -> None:
    gpus = tuple(
        Gpu(index=index, uuid=f"GPU-{index}", name="NVIDIA L4", memory_mb=23034) for index in range(16)
    )
    models = tuple(Model(model_id=f"m{number}", version="1") for number in range(9))
    inventory = Inventory(host=HOST, gpu=GpuReport(outcome=Outcome.OK, gpus=gpus), models=models)
    said = [plain(one) for one in fitted_page(inventory, (80, lines), RICH, now=0.0)]
    assert len(said) <= lines
    assert any("Could register: 16 of 16" in one for one in said)
    assert any("no room here" in one for one in said) == (4 < lines < 40)
