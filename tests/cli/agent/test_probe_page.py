from dataclasses import replace

import pytest

from gpu_agent.cli.agent.probe_page import fitted_page, outcome_sentence, probe_page, trouble_lines
from gpu_agent.cli.output.text import UNICODE_GLYPHS, plain_text, text_width
from gpu_agent.probe.snapshot import exit_code
from gpu_agent.wire.inventory import (
    Gpu,
    GpuReport,
    Health,
    HealthReason,
    Host,
    Inventory,
    Model,
    ModelStatus,
    Outcome,
)
from tests.cli.hosts import HOST as HOSTS_HOST

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
    return [plain_text(one) for one in probe_page(inventory, columns, UNICODE_GLYPHS, now=0.0)]


def test_the_machine_comes_first_and_the_outcome_last() -> None:
    report = GpuReport(outcome=Outcome.OK, gpus=(L4, LOST), driver_version="570.1", cuda_version="12.8")
    said = page(report, Model(model_id="m", version="1"))
    assert said[0] == "gpu-07  driver 570.1, CUDA 12.8"
    assert said[-2:] == [
        "Could register: 1 of the 2 GPUs is usable.",
        "It would offer 1x L4 with 22 GiB in all, and 1 ready model.",
    ]
    heads = [one.split()[0] for one in said if one]
    assert [heads.index(word) for word in ("GPU", "cores", "KIND", "WHAT")] == sorted(
        heads.index(word) for word in ("GPU", "cores", "KIND", "WHAT")
    )


def test_a_broken_driver_is_the_outcome_with_its_next_step() -> None:
    said = page(GpuReport(outcome=Outcome.DRIVER_BROKEN, detail="it is stuck: reboot."))
    assert said[-1] == "Could not register: it is stuck: reboot."


def test_models_that_could_not_be_scanned_are_unknown_and_not_none() -> None:
    host = replace(HOST, unknowns={"models": "the disks did not answer"})
    inventory = Inventory(host=host, gpu=GpuReport(outcome=Outcome.OK, gpus=(L4,)))
    said = [plain_text(one) for one in probe_page(inventory, None, UNICODE_GLYPHS, now=0.0)]
    assert "Models unknown: the disks did not answer" in said
    assert not any("none found" in one for one in said)


def test_a_simulated_machine_says_that_it_does_not_exist() -> None:
    said = page(GpuReport(outcome=Outcome.OK, gpus=(L4,)), simulated=True)
    assert said[1] == "SIMULATED: these GPUs do not exist"


@pytest.mark.parametrize("columns", [30, 40, 80, 200])
def test_no_line_is_wider_than_the_terminal(columns: int) -> None:
    report = GpuReport(outcome=Outcome.OK, gpus=(L4, LOST))
    assert (
        max(map(text_width, page(report, Model(model_id="m" * 50, version="1"), columns=columns))) <= columns
    )


@pytest.mark.parametrize("lines", [3, 8, 12, 20, 60])
def test_a_screen_with_little_room_shows_the_outcome_and_counts_the_rest(lines: int) -> None:
    gpus = tuple(
        Gpu(index=index, uuid=f"GPU-{index}", name="NVIDIA L4", memory_mb=23034) for index in range(16)
    )
    models = tuple(Model(model_id=f"m{number}", version="1") for number in range(9))
    inventory = Inventory(host=HOST, gpu=GpuReport(outcome=Outcome.OK, gpus=gpus), models=models)
    page, left_out = fitted_page(inventory, (80, lines), UNICODE_GLYPHS, now=0.0)
    said = [plain_text(one) for one in page]
    assert len(said) <= lines
    assert any("Could register: all 16" in one for one in said) or lines < 5
    assert sum(one[:1].isdigit() for one in said) == min(16, max(0, lines - 4))
    assert bool(left_out) == (lines < 30)


TROUBLES_LOST = Gpu(
    index=3,
    uuid="GPU-3",
    name="NVIDIA L4",
    memory_mb=23034,
    health=Health.LOST,
    reasons=(
        HealthReason(code="gpu_lost", detail="it fell off the bus", action="reboot the machine", since=1.0),
    ),
)
BROKEN = Model(model_id="a", version="1", status=ModelStatus.ERROR, detail="a shard is missing")


def drawn(*gpus: Gpu, models: tuple[Model, ...] = (), columns: int | None = 80) -> list[str]:
    inventory = Inventory(host=HOSTS_HOST, gpu=GpuReport(outcome=Outcome.OK, gpus=gpus), models=models)
    return [plain_text(one) for one in trouble_lines(inventory, columns, now=2.0)]


def test_a_gpus_reason_is_reported_with_its_code_since_when_and_the_next_step() -> None:
    _, what, step = drawn(TROUBLES_LOST)
    assert what.startswith("GPU 3 is lost: it fell off the bus (gpu_lost, since ")
    assert step == "    next step: reboot the machine"


def test_without_problems_nothing_is_shown() -> None:
    assert drawn(Gpu(uuid="GPU-1", name="NVIDIA L4", memory_mb=23034)) == []


def test_unknown_memory_is_a_trouble_with_its_reason() -> None:
    said = drawn(Gpu(uuid="GPU-1", index=0, name="NVIDIA GB10", unknowns={"memory_mb": "not supported"}))
    assert said[1] == "GPU 0: its memory is unknown (not supported)"
    assert "nvidia-smi" in said[2]


def test_a_part_of_the_machine_that_could_not_be_looked_at_is_reported_beside_gpus_that_work() -> None:
    detail = "The AMD GPU at 0000:03:00.0 has no driver: load it with `modprobe amdgpu`."
    well = Gpu(uuid="GPU-1", name="NVIDIA L4", memory_mb=23034)
    for report, shown in (
        (GpuReport(outcome=Outcome.OK, gpus=(well,), detail=detail), True),
        (GpuReport(outcome=Outcome.NO_DRIVER, detail=detail), False),
    ):
        said = [
            plain_text(one) for one in trouble_lines(Inventory(host=HOSTS_HOST, gpu=report), None, now=2.0)
        ]
        assert said.count(detail) == int(shown)


def test_folders_that_could_not_be_scanned_are_shown_the_first_of_many() -> None:
    places = {f"/srv/{number}\x1b": "permission denied" for number in range(7)}
    inventory = Inventory(
        host=HOSTS_HOST, gpu=GpuReport(outcome=Outcome.OK), models_unsearched=places, models_complete=False
    )
    said = [plain_text(one) for one in trouble_lines(inventory, None, now=2.0)]
    assert r"/srv/4\x1b could not be scanned for models: permission denied" in said
    assert r"/srv/5\x1b could not be scanned for models: permission denied" not in said
    assert "2 more folders could not be scanned for models" in said
    assert "the scan for models ran out of its time: there may be more than are listed" in said


def test_a_model_that_may_not_be_read_is_no_matter_of_its_download_alone() -> None:
    closed = replace(BROKEN, detail="model.safetensors: permission denied")
    read = "let the agent's user read what it may not"
    assert read not in " ".join(map(str.strip, drawn(models=(BROKEN,))))
    assert read in " ".join(map(str.strip, drawn(models=(BROKEN, closed))))


def test_models_that_cannot_serve_are_counted() -> None:
    assert drawn(models=(BROKEN,))[1] == "1 model cannot serve: the table above says why"
    assert drawn(models=(BROKEN, BROKEN))[1] == "2 models cannot serve: the table above says why"


def test_nothing_is_wider_than_the_terminal() -> None:
    assert max(map(len, drawn(TROUBLES_LOST, models=(BROKEN,), columns=30))) <= 30


def test_the_one_who_failed_to_look_for_gpus_comes_first() -> None:
    report = GpuReport(
        outcome=Outcome.OK,
        gpus=(TROUBLES_LOST,),
        detail="The collector 'x' failed (OSError): update its package.",
    )
    lines = [plain_text(one) for one in trouble_lines(Inventory(host=HOSTS_HOST, gpu=report), 80, now=2.0)]
    assert lines[1] == "The collector 'x' failed (OSError): update its package."


def test_why_there_is_no_gpu_at_all_is_part_of_the_outcome() -> None:
    report = GpuReport(outcome=Outcome.OK, detail="The NVIDIA driver works and found no GPU.")
    assert trouble_lines(Inventory(host=HOSTS_HOST, gpu=report), 80, now=2.0) == []


GOOD = Gpu(uuid="GPU-1", name="NVIDIA L4", memory_mb=23034)
BLIND = Gpu(uuid="GPU-2", name="NVIDIA L4", unknowns={"memory_mb": "not supported"})
VERDICT_LOST = Gpu(uuid="GPU-3", name="NVIDIA L4", memory_mb=23034, health=Health.LOST)


def sentence(*gpus: Gpu, outcome: Outcome = Outcome.OK, detail: str | None = None) -> str:
    inventory = Inventory(host=HOSTS_HOST, gpu=GpuReport(outcome=outcome, gpus=gpus, detail=detail))
    said = outcome_sentence(inventory)
    assert said.startswith("Could register:") == (exit_code(inventory) == 0)
    return said


def test_r01_a_gpu_of_unknown_memory_does_not_count_as_usable() -> None:
    assert sentence(GOOD, BLIND) == (
        "Could register: 1 of the 2 GPUs is usable; the memory of 1 is unknown (not supported)."
    )


def test_r01_where_no_memory_is_known_the_reason_is_memory_not_health() -> None:
    said = sentence(BLIND, VERDICT_LOST)
    assert "memory of the usable GPUs is unknown (not supported)" in said
    assert "nvidia-smi" in said
    assert "health" not in said


def test_where_no_gpu_is_well_its_health_is_pointed_at() -> None:
    assert "see its health above" in sentence(VERDICT_LOST)


@pytest.mark.parametrize(
    ("outcome", "detail", "words"),
    [
        (Outcome.NO_DRIVER, "no driver here", "Could not register: no driver here"),
        (Outcome.DRIVER_BROKEN, "reboot", "Could not register: reboot"),
        (Outcome.OK, None, "it sees no GPU"),
    ],
)
def test_a_machine_that_cannot_register_says_why(outcome: Outcome, detail: str | None, words: str) -> None:
    assert words in sentence(outcome=outcome, detail=detail)


def test_graphics_that_are_not_offered_are_listed_and_counted_nowhere() -> None:
    own = Gpu(index=1, uuid="AMD-1", name="Radeon 780M", memory_mb=81_920, offered=False)
    said = page(GpuReport(outcome=Outcome.OK, gpus=(L4, own)), columns=120)
    assert "part of the processor, not offered" in "\n".join(said)
    assert said[-2:] == [
        "Could register: the GPU is usable.",
        "It would offer 1x L4 with 22 GiB in all, and 0 ready models.",
    ]
