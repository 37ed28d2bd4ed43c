from gpu_agent.cli.lines import plain
from gpu_agent.cli.probe.troubles import trouble_lines
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

LOST = Gpu(
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
    inventory = Inventory(host=HOST, gpu=GpuReport(outcome=Outcome.OK, gpus=gpus), models=models)
    return [plain(one) for one in trouble_lines(inventory, columns, now=2.0)]


def test_a_gpus_reason_is_told_with_its_code_since_when_and_the_next_step() -> None:
    _, what, step = drawn(LOST)
    assert what.startswith("GPU 3 is lost: it fell off the bus (gpu_lost, since ")
    assert step == "    next step: reboot the machine"


def test_where_all_is_well_nothing_is_said() -> None:
    assert drawn(Gpu(uuid="GPU-1", name="NVIDIA L4", memory_mb=23034)) == []


def test_unknown_memory_is_a_trouble_with_its_reason() -> None:
    said = drawn(Gpu(uuid="GPU-1", index=0, name="NVIDIA GB10", unknowns={"memory_mb": "not supported"}))
    assert said[1] == "GPU 0: its memory is unknown (not supported)"
    assert "nvidia-smi" in said[2]


def test_a_part_of_the_machine_that_could_not_be_looked_at_is_told_beside_gpus_that_work() -> None:
    detail = "The AMD GPU at 0000:03:00.0 has no driver: load it with `modprobe amdgpu`."
    well = Gpu(uuid="GPU-1", name="NVIDIA L4", memory_mb=23034)
    for report, told in (
        (GpuReport(outcome=Outcome.OK, gpus=(well,), detail=detail), True),
        (GpuReport(outcome=Outcome.NO_DRIVER, detail=detail), False),
    ):
        said = [plain(one) for one in trouble_lines(Inventory(host=HOST, gpu=report), None, now=2.0)]
        assert said.count(detail) == int(told)


def test_places_that_could_not_be_searched_are_told_the_first_of_many() -> None:
    places = {f"/srv/{number}\x1b": "permission denied" for number in range(7)}
    inventory = Inventory(
        host=HOST, gpu=GpuReport(outcome=Outcome.OK), models_unsearched=places, models_complete=False
    )
    said = [plain(one) for one in trouble_lines(inventory, None, now=2.0)]
    assert r"/srv/4\x1b could not be searched for models: permission denied" in said
    assert r"/srv/5\x1b could not be searched for models: permission denied" not in said
    assert "2 more places could not be searched for models" in said
    assert "the search for models ran out of its time: more may be there than are listed" in said


def test_models_that_cannot_serve_are_counted() -> None:
    assert drawn(models=(BROKEN,))[1] == "1 model cannot serve: the table above says why"
    assert drawn(models=(BROKEN, BROKEN))[1] == "2 models cannot serve: the table above says why"


def test_nothing_is_wider_than_the_terminal() -> None:
    assert max(map(len, drawn(LOST, models=(BROKEN,), columns=30))) <= 30


def test_whoever_failed_to_look_for_gpus_comes_first() -> None:
    report = GpuReport(
        outcome=Outcome.OK, gpus=(LOST,), detail="The collector 'x' failed (OSError): update its package."
    )
    lines = [plain(one) for one in trouble_lines(Inventory(host=HOST, gpu=report), 80, now=2.0)]
    assert lines[1] == "The collector 'x' failed (OSError): update its package."


def test_why_there_is_no_gpu_at_all_is_the_verdicts_to_say() -> None:
    report = GpuReport(outcome=Outcome.OK, detail="The NVIDIA driver works and found no GPU.")
    assert trouble_lines(Inventory(host=HOST, gpu=report), 80, now=2.0) == []
