import asyncio
import os
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from gpu_agent.node.collecting import Collecting
from gpu_agent.node.prober import Pace, Prober, ReadGpus
from gpu_agent.probe.attempt import Attempt
from gpu_agent.probe.collectors import Installed, Surroundings
from gpu_agent.probe.host import HostProbe
from gpu_agent.probe.models.catalogue import Catalogue
from gpu_agent.probe.models.declared import Declaration
from gpu_agent.probe.models.directory import ModelFolders
from gpu_agent.probe.models.source import Listing, Reading, Root, Unit
from gpu_agent.probe.models.unanswered import DETAIL
from gpu_agent.probe.nvml_report import Missed
from gpu_agent.probe.snapshot import Sources
from gpu_agent.runtime.tasks import Tasks
from gpu_agent.wire.inventory import Gpu, GpuReport, Health, Host, Inventory, Model, ModelStatus, Outcome

GOOD = GpuReport(outcome=Outcome.OK, gpus=(Gpu(uuid="GPU-1", name="A100", memory_mb=81920),))
HUNG = Missed(reason="nvml_hung", since=0.0, detail="no answer")
PACE = Pace(interval_seconds=0.01, deadline_seconds=0.05, stale_after_seconds=60, without_driver_seconds=0.01)


class _HangingSource:
    """A model cache on a disk that does not answer until it is released."""

    name = "hanging"
    places = (Path("/hanging"),)

    def __init__(self) -> None:
        self.release = threading.Event()
        self.looks = 0

    def units(self) -> Listing:
        self.looks += 1
        self.release.wait(30)
        return Listing((), {})

    def read(self, unit: Unit) -> Reading:
        raise AssertionError(unit)


class _OnADisk(_HangingSource):
    """A model on a disk that answers until it is held."""

    def __init__(self) -> None:
        super().__init__()
        self.release.set()

    def units(self) -> Listing:
        super().units()
        return Listing((Unit(Root("/", None), "/found", "found"),), {})

    def read(self, unit: Unit) -> Reading:
        return Reading((Model(model_id=unit.name, version="1", kind="emotion", source=self.name),))


class _CountingHost(HostProbe):
    """A host whose load is the number of its reading, and that does not answer while it is held."""

    def __init__(self, root: Path) -> None:
        super().__init__(root=root)
        self.release = threading.Event()
        self.release.set()
        self._reads = 0

    def read(self) -> Host:
        self._reads += 1
        number = self._reads
        self.release.wait(30)
        return replace(super().read(), load_1m=float(number))


def _always(result: GpuReport | Missed) -> ReadGpus:
    async def read() -> GpuReport | Missed:
        return result

    return read


@asynccontextmanager
async def _probing(
    read: ReadGpus,
    sources: Sources | None = None,
    *,
    pace: Pace = PACE,
    collecting: Collecting | None = None,
) -> AsyncIterator[tuple[Prober, Callable[[], Awaitable[Inventory]]]]:
    found: asyncio.Queue[Inventory] = asyncio.Queue()
    prober = Prober(
        read, sources or Sources(), pace=pace, simulated=True, listener=found.put, collecting=collecting
    )

    async def next_one() -> Inventory:
        async with asyncio.timeout(10):
            return await found.get()

    async with Tasks() as tasks:
        tasks.start("prober", prober.run(tasks))
        yield prober, next_one
        tasks.end()


async def test_each_probe_is_told_with_gpus_host_and_models() -> None:
    catalogue = Catalogue((), (Declaration(model_id="whisper", version="1"),))
    patient = replace(PACE, deadline_seconds=20)
    async with _probing(_always(GOOD), Sources(catalogue=catalogue), pace=patient) as (prober, next_one):
        inventory = await next_one()
        assert [gpu.uuid for gpu in inventory.gpu.gpus] == ["GPU-1"]
        assert [model.model_id for model in inventory.models] == ["whisper"]
        assert inventory.host.memory_total_mb > 0
        assert inventory.simulated
        age = prober.probe_age_seconds
        assert age is not None
        assert 0 <= age < 5
        await next_one()


async def test_before_any_good_reading_there_is_no_age() -> None:
    async with _probing(_always(HUNG)) as (prober, next_one):
        inventory = await next_one()
        assert prober.probe_age_seconds is None
        assert inventory.gpu.outcome is Outcome.DRIVER_BROKEN


async def test_a_missed_reading_keeps_the_last_good_health_and_the_age_grows() -> None:
    results: list[GpuReport | Missed] = [GOOD]

    async def read() -> GpuReport | Missed:
        return results.pop() if results else HUNG

    async with _probing(read) as (prober, next_one):
        await next_one()
        first = prober.probe_age_seconds
        inventory = await next_one()
        assert inventory.gpu.gpus[0].health is Health.OK
        later = prober.probe_age_seconds
        assert first is not None
        assert later is not None
        assert later > first


async def test_past_its_limit_a_missed_reading_makes_the_gpus_unknown_until_the_driver_answers() -> None:
    answers = asyncio.Event()
    answers.set()

    async def read() -> GpuReport | Missed:
        return GOOD if answers.is_set() else HUNG

    pace = Pace(interval_seconds=0.01, deadline_seconds=1, stale_after_seconds=0.05)
    async with _probing(read, pace=pace) as (_, next_one):
        await next_one()
        answers.clear()
        while (inventory := await next_one()).gpu.gpus[0].health is Health.OK:
            pass
        assert inventory.gpu.gpus[0].health is Health.UNKNOWN
        assert inventory.gpu.gpus[0].reasons[0].code == "nvml_hung"
        answers.set()
        while (await next_one()).gpu.gpus[0].health is not Health.OK:
            pass


async def test_a_disk_that_hangs_holds_neither_the_gpus_up_nor_gathers_threads() -> None:
    source = _HangingSource()
    async with _probing(_always(GOOD), Sources(catalogue=Catalogue((source,)))) as (_, next_one):
        for _ in range(3):
            inventory = await next_one()
            assert inventory.gpu.gpus == GOOD.gpus
            assert inventory.host.memory_total_mb > 0
        assert source.looks == 1
        source.release.set()
        while source.looks < 2:
            await next_one()


async def test_a_disk_that_hangs_leaves_no_stale_figures_of_the_host(tmp_path: Path) -> None:
    source, host = _HangingSource(), _CountingHost(root=tmp_path)
    sources = Sources(host=host, catalogue=Catalogue((source,)))
    async with _probing(_always(GOOD), sources) as (_, next_one):
        loads = [(await next_one()).host.load_1m for _ in range(4)]
        assert loads == sorted(set(loads), key=lambda load: load or 0), "each is of a reading of its own"
        host.release.clear()
        while (await next_one()).host.load_1m is not None:
            pass
        assert (await next_one()).host.memory_used_mb is None
        host.release.set()
        while (await next_one()).host.load_1m is None:
            pass
        source.release.set()


async def test_models_are_ready_no_longer_than_a_disk_that_hangs_can_vouch_for_them() -> None:
    source = _OnADisk()
    catalogue = Catalogue((source,), (Declaration(model_id="stated", version="1"),))
    pace = replace(PACE, deadline_seconds=0.5, stale_after_seconds=1.0)
    async with _probing(_always(GOOD), Sources(catalogue=catalogue), pace=pace) as (_, next_one):
        while not (healthy := await next_one()).models:
            pass
        source.release.clear()
        told = [await next_one()]
        while told[-1].models[1].status is ModelStatus.READY:
            told.append(await next_one())
        hanging = told[-1]
        assert len(told) > 2, "within the limit they stand as they were"
        source.release.set()
        while (again := await next_one()).models[1].status is not ModelStatus.READY:
            pass
    assert hanging.models[0] == healthy.models[0], "the owner's word stands"
    assert (hanging.models[1].status, hanging.models[1].detail) == (ModelStatus.ERROR, DETAIL)
    assert again.models == healthy.models
    proven = [told.features_supported["emotion_detection"] for told in (healthy, hanging, again)]
    assert proven == [True, False, True]


async def test_a_disk_that_hangs_is_told_of_once_and_again_when_it_answers(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO", "gpu_agent")
    source = _HangingSource()
    async with _probing(_always(GOOD), Sources(catalogue=Catalogue((source,)))) as (_, next_one):
        for _ in range(5):
            await next_one()
        assert caplog.messages.count("surroundings_overdue") == 1
        source.release.set()
        while source.looks < 2:
            await next_one()
    assert caplog.messages.count("surroundings_answered") == 1


async def test_a_place_that_cannot_be_searched_for_models_is_told_of_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").touch()
    catalogue = Catalogue([ModelFolders([tmp_path / "file"])])
    async with _probing(_always(GOOD), Sources(catalogue=catalogue)) as (_, next_one):
        for _ in range(3):
            await next_one()
    assert caplog.messages == ["models_unsearched"]


async def test_a_host_that_hangs_from_the_start_is_data_and_gathers_no_threads(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    boot_id = tmp_path / "proc/sys/kernel/random/boot_id"
    boot_id.parent.mkdir(parents=True)
    os.mkfifo(boot_id)  # opening it hangs, as a file on a dead mount does
    looks = 0

    async def read() -> GpuReport:
        nonlocal looks
        looks += 1
        if looks == 10:
            with boot_id.open("w") as pipe:
                pipe.write("a-boot-id")
        return GOOD

    before = {thread.ident for thread in threading.enumerate()}
    async with _probing(read, Sources(host=HostProbe(root=tmp_path))) as (_, next_one):
        inventory = await next_one()
        assert looks >= 10, "nothing is declared of a host that did not answer"
        assert inventory.host.boot_id == "a-boot-id"
        assert inventory.gpu.gpus == GOOD.gpus
        assert len({thread.ident for thread in threading.enumerate()} - before) <= 1
    assert caplog.messages.count("surroundings_overdue") == 1


async def test_a_probe_can_be_asked_for_before_its_turn() -> None:
    pace = Pace(interval_seconds=3600, deadline_seconds=1, stale_after_seconds=60)
    async with _probing(_always(GOOD), pace=pace) as (prober, next_one):
        await next_one()
        prober.probe_now()
        await next_one()


@pytest.mark.parametrize(("outcome", "seconds"), [(Outcome.NO_DRIVER, 30.0), (Outcome.DRIVER_BROKEN, 30.0)])
async def test_a_driver_that_is_not_there_is_looked_for_at_a_calmer_pace(
    outcome: Outcome, seconds: float
) -> None:
    pace = Pace(interval_seconds=5, deadline_seconds=1, stale_after_seconds=60)
    async with _probing(_always(GpuReport(outcome=outcome)), pace=pace) as (prober, next_one):
        await next_one()
        assert prober._interval() == seconds


async def test_a_driver_that_arrives_later_is_found(tmp_path: Path) -> None:
    arrived = tmp_path / "libnvidia-ml.so"

    async def read() -> GpuReport:
        return GOOD if arrived.exists() else GpuReport(outcome=Outcome.NO_DRIVER)

    async with _probing(read) as (_, next_one):
        assert (await next_one()).gpu.outcome is Outcome.NO_DRIVER
        arrived.touch()
        while (await next_one()).gpu.outcome is not Outcome.OK:
            pass


class _Radeon:
    """A collector with one GPU."""

    interface = 1

    def __init__(self, surroundings: Surroundings) -> None:
        assert surroundings == Surroundings()

    def read(self, deadline_seconds: float) -> GpuReport:
        assert deadline_seconds > 0
        gpu = Gpu(uuid="AMD-1", name="Radeon", memory_mb=24576, vendor="amd")
        return GpuReport(outcome=Outcome.OK, gpus=(gpu,))


def _collecting_a_radeon() -> Collecting:
    return Collecting((Attempt(Installed("amd", lambda: _Radeon), Surroundings()),), deadline_seconds=20)


async def test_gpus_of_collectors_stand_beside_nvmls_and_are_as_fresh() -> None:
    collecting = Collecting(
        (Attempt(Installed("amd", lambda: _Radeon), Surroundings()),), deadline_seconds=20
    )
    async with _probing(_always(GOOD), collecting=collecting) as (prober, next_one):
        inventory = await next_one()
        assert [gpu.uuid for gpu in inventory.gpu.gpus] == ["GPU-1", "AMD-1"]
        assert (prober.probe_age_seconds or 0) < 5


async def test_without_an_nvidia_driver_collectors_are_asked_at_their_pace_and_nvml_at_its_own() -> None:
    looks: list[int] = []

    async def read() -> GpuReport:
        looks.append(1)
        return GpuReport(outcome=Outcome.NO_DRIVER, detail="no driver")

    collecting = Collecting(
        (Attempt(Installed("amd", lambda: _Radeon), Surroundings()),), deadline_seconds=20
    )
    pace = Pace(interval_seconds=0.01, deadline_seconds=20, stale_after_seconds=60, without_driver_seconds=60)
    async with _probing(read, pace=pace, collecting=collecting) as (prober, next_one):
        for _ in range(5):
            assert [gpu.uuid for gpu in (await next_one()).gpu.gpus] == ["AMD-1"]
        assert len(looks) == 1
        age = prober.probe_age_seconds
        assert age is not None
        assert age < 20
        prober.probe_now()
        while len(looks) == 1:
            await next_one()


async def test_with_polling_off_the_gpus_are_read_once_and_then_only_when_asked() -> None:
    reads = 0

    async def read() -> GpuReport | Missed:
        nonlocal reads
        reads += 1
        return replace(GOOD, gpus=(replace(GOOD.gpus[0], temperature_c=40 + reads),))

    async with _probing(read, pace=replace(PACE, deadline_seconds=20, poll_gpus=False)) as (prober, next_one):
        first = await next_one()
        resting = [await next_one() for _ in range(3)]
        assert reads == 1
        assert prober.probe_age_seconds is None
        prober.probe_now()
        while (asked := (await next_one()).gpu.gpus[0].temperature_c) is None:
            pass
    assert first.gpu.gpus[0].temperature_c == 41
    assert {each.gpu.gpus[0].temperature_c for each in resting} == {None}
    assert {each.gpu.gpus[0].health for each in resting} == {Health.OK}
    assert asked == 42
    assert reads == 2


@pytest.mark.parametrize(
    "unread", [HUNG, GpuReport(outcome=Outcome.NO_DRIVER), GpuReport(outcome=Outcome.OK)]
)
async def test_with_polling_off_gpus_are_looked_for_until_they_are_there(unread: GpuReport | Missed) -> None:
    answers = iter((unread, unread, GOOD))

    async def read() -> GpuReport | Missed:
        return next(answers)

    async with _probing(read, pace=replace(PACE, poll_gpus=False)) as (_, next_one):
        while not (await next_one()).gpu.usable:
            pass
    assert next(answers, None) is None


async def test_where_gpus_are_not_polled_collectors_leave_theirs_alone_too() -> None:
    looks: list[int] = []

    class Counting(_Radeon):
        def read(self, deadline_seconds: float) -> GpuReport:
            looks.append(1)
            return super().read(deadline_seconds)

    attempt = Attempt(Installed("amd", lambda: Counting), Surroundings())
    pace = replace(PACE, deadline_seconds=20, poll_gpus=False)
    collecting = Collecting((attempt,), deadline_seconds=20)
    absent = GpuReport(outcome=Outcome.NO_DRIVER, detail="no driver")
    async with _probing(_always(absent), pace=pace, collecting=collecting) as (prober, next_one):
        for _ in range(4):
            assert [gpu.uuid for gpu in (await next_one()).gpu.gpus] == ["AMD-1"]
        assert len(looks) == 1
        prober.probe_now()
        while len(looks) == 1:
            await next_one()


async def test_new_places_are_looked_at_at_once_and_whoever_named_them_waits_until_they_are_told() -> None:
    calm = replace(PACE, interval_seconds=30, deadline_seconds=20)
    async with _probing(_always(GOOD), pace=calm) as (prober, next_one):
        assert (await next_one()).models == ()
        await prober.renew(Sources(catalogue=Catalogue((), (Declaration(model_id="new", version="1"),))))
        assert [model.model_id for model in (await next_one()).models] == ["new"]


async def test_whoever_names_new_places_waits_for_no_disk_that_hangs() -> None:
    source = _HangingSource()
    pace = replace(PACE, interval_seconds=0.01, without_driver_seconds=0.01)
    async with _probing(_always(GOOD), pace=pace) as (prober, next_one):
        await next_one()
        async with asyncio.timeout(10):
            await prober.renew(Sources(catalogue=Catalogue((source,))))
        assert source.looks == 1
        source.release.set()


async def test_a_turn_that_is_due_in_half_a_minute_can_be_made_a_quick_one() -> None:
    async with _probing(_always(GOOD), pace=replace(PACE, interval_seconds=30)) as (prober, next_one):
        await next_one()
        prober.repace(0.01)
        await next_one()
        await next_one()
