import asyncio
import threading
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from gpu_agent.node import model_watch as sources
from gpu_agent.node.model_watch import (
    MAX_LOGGED,
    PAUSE_SECONDS,
    SETTLE_SECONDS,
    ModelWatcher,
    UnreadableLog,
    open_sources,
    reopen_sources,
)
from gpu_agent.node.settings import AgentSettings, load
from gpu_agent.probe.models import inotify as notices_module
from gpu_agent.probe.models.directory import ModelFolders
from gpu_agent.probe.models.files import open_root
from gpu_agent.probe.models.inotify import InotifyWatcher
from gpu_agent.probe.models.scanner import DISK_SILENT, ModelScanner, Scan
from gpu_agent.probe.snapshot import Sources
from gpu_agent.runtime.tasks import Tasks
from tests.hung_disk import hung
from tests.node.prober_harness import GOOD, PACE, always, probing
from tests.probe.models.random_trees import Metered, in_ten_seconds
from tests.waiting import patience, until


@pytest.mark.parametrize(
    ("simulate", "models"),
    [
        (None, ["declared", "found"]),
        ("1xL4", ["declared", "found"]),
        ("1xL4; models: stated=asr", ["declared", "stated"]),
        ("1xL4; models:", ["declared"]),
    ],
)
def test_a_simulations_models_replace_those_on_the_disks(
    tmp_path: Path, simulate: str | None, models: list[str]
) -> None:
    folder = tmp_path / "found"
    folder.mkdir()
    (folder / "model.json").write_text('{"model_id": "found", "version": "1", "kind": "llm"}')
    settings = load(
        {
            "registry_url": "ws://localhost/",
            "simulate": simulate,
            "hub_roots": (),
            "ollama_roots": (),
            "model_directories": (tmp_path,),
            "declared_models": ({"model_id": "declared", "version": "1"},),
        }
    )
    scan = open_sources(settings).scanner.scan()
    assert sorted(model.model_id for model in scan.models) == models


def _with_models(folder: Path, count: int) -> AgentSettings:
    for number in range(count):
        (folder / f"model-{number}").mkdir()
        stated = f'{{"model_id": "model-{number}", "version": "1", "kind": "llm"}}'
        (folder / f"model-{number}" / "model.json").write_text(stated)
    places = {"hub_roots": (), "ollama_roots": (), "model_directories": (folder,)}
    return load({"registry_url": "ws://localhost/", **places})


async def test_new_sources_are_scanned_before_they_are_used(tmp_path: Path) -> None:
    settings = _with_models(tmp_path, 20)
    no_time = 0.0
    assert len(open_sources(settings).scanner.scan(no_time).models) < 20
    renewed = await reopen_sources(settings, ModelScanner(()))
    assert len(renewed.scanner.scan(no_time).models) == 20


async def test_a_hung_disk_does_not_delay_new_sources(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = _with_models(tmp_path, 1)
    monkeypatch.setattr(sources, "FIRST_SCAN_SECONDS", 0.05)
    release = threading.Event()

    def hanging(_scanner: ModelScanner, _budget_seconds: float) -> Scan:
        release.wait(patience(30))
        return Scan()

    with monkeypatch.context() as held:
        held.setattr(ModelScanner, "scan", hanging)
        renewed = await reopen_sources(settings, ModelScanner(()))
    release.set()
    assert [model.model_id for model in renewed.scanner.scan().models] == ["model-0"]


async def test_sources_that_stay_keep_their_state(tmp_path: Path) -> None:
    settings = _with_models(tmp_path, 3)
    before = open_sources(settings).scanner
    before.scan()
    (tmp_path / "more").mkdir()
    more = settings.model_copy(update={"model_directories": (tmp_path, tmp_path / "more")})
    after = (await reopen_sources(more, before)).scanner
    assert after.states[0] is before.states[0]
    assert len(after.states) == 2


async def test_a_place_on_a_disk_that_hangs_neither_holds_a_reload_up_nor_gathers_threads(
    tmp_path: Path,
) -> None:
    dead, well = tmp_path / "dead", tmp_path / "well"
    dead.mkdir()
    well.mkdir()
    settings = _with_models(well, 2).model_copy(
        update={"model_directories": (dead, well), "deadline_seconds": 0.5}
    )
    with hung(dead):
        threads = set(threading.enumerate())
        scanner = ModelScanner(())
        for _ in range(3):
            async with asyncio.timeout(patience(15)):
                scanner = (await reopen_sources(settings, scanner)).scanner
            assert len(scanner.scan().models) == 2
        await until(lambda: len(set(threading.enumerate()) - threads) == 1)
    await until(lambda: not scanner.states[0].busy)
    assert scanner.scan().complete


HAS_NOTICES = pytest.mark.skipif(InotifyWatcher.open() is None, reason="only Linux has inotify")


class _Looks:
    """Counts what is asked for, and scans as the probe would."""

    def __init__(self, root: Path) -> None:
        self.scanner = ModelScanner([ModelFolders([root])])
        self.asked: asyncio.Queue[float] = asyncio.Queue()
        self.rescans = ModelWatcher(lambda: self.asked.put_nowait(time.monotonic()))

    def scan(self) -> None:
        self.scanner.scan(after_read=self.rescans.follow)
        self.rescans.after_scan(every_seconds=5)

    async def next_one(self) -> float:
        async with asyncio.timeout(patience(5)):
            return await self.asked.get()


@asynccontextmanager
async def _looking(root: Path) -> AsyncIterator[_Looks]:
    looks = _Looks(root)
    async with Tasks() as tasks:
        tasks.start("rescans", looks.rescans.run())
        await asyncio.sleep(0)  # its first step opens what it listens to
        looks.scan()
        yield looks
        tasks.end()


@HAS_NOTICES
async def test_newly_watched_folders_are_scanned_once_more(tmp_path: Path) -> None:
    async with _looking(tmp_path) as looks:
        await looks.next_one()
        looks.scan()
        assert looks.asked.empty()


@HAS_NOTICES
async def test_a_burst_of_changes_is_scanned_once_within_two_seconds(tmp_path: Path) -> None:
    async with _looking(tmp_path) as looks:
        await looks.next_one()
        began = time.monotonic()
        for number in range(100):
            (tmp_path / f"{number}.gguf").write_text("x")
        assert await looks.next_one() - began < patience(2)
        looks.scan()
        assert looks.asked.empty()


@HAS_NOTICES
async def test_a_place_is_not_listed_again_while_the_kernel_reports_nothing(tmp_path: Path) -> None:
    if not open_root(tmp_path).local:
        pytest.skip("temporary files are on no local file system that is known")
    metered = Metered(ModelFolders([tmp_path]))
    async with _looking(tmp_path) as looks:
        looks.scanner = ModelScanner([metered], wall_ns=in_ten_seconds)
        looks.scan()
        await looks.next_one()
        looks.scan()
        listed = metered.listings
        looks.scan()
        looks.scan()
        assert metered.listings == listed
        while not looks.asked.empty():
            looks.asked.get_nowait()
        (tmp_path / "new.gguf").touch()
        await looks.next_one()
        looks.scan()
        assert metered.listings == listed + 1
    looks.scan()
    assert metered.listings == listed + 2, "nobody takes notifications any more"


@HAS_NOTICES
async def test_endless_changes_are_scanned_once_a_second(tmp_path: Path) -> None:
    async with _looking(tmp_path) as looks:
        await looks.next_one()
        (tmp_path / "1.gguf").touch()
        first = await looks.next_one()
        (tmp_path / "2.gguf").touch()
        second = await looks.next_one()
        assert second - first >= (SETTLE_SECONDS + PAUSE_SECONDS) * 0.99


async def test_where_there_are_no_notices_nothing_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.delattr("select.epoll", raising=False)
    async with _looking(tmp_path) as looks:
        looks.scan()
        assert looks.asked.empty()
    assert caplog.messages == []


@HAS_NOTICES
async def test_endless_new_folders_are_scanned_once_a_second(tmp_path: Path) -> None:
    async with _looking(tmp_path) as looks:
        first = await looks.next_one()
        (tmp_path / "1").mkdir()
        looks.scan()
        assert await looks.next_one() - first >= (SETTLE_SECONDS + PAUSE_SECONDS) * 0.99


@HAS_NOTICES
async def test_without_inotify_instances_one_line_is_logged_and_no_scan_requested(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(InotifyWatcher, "open", classmethod(lambda _: None))
    async with _looking(tmp_path) as looks:
        looks.scan()
        looks.scan()
        assert looks.asked.empty()
    assert caplog.messages == ["model_watch_unavailable"]
    assert "max_user_instances" in str(caplog.records[0].__dict__)


@HAS_NOTICES
async def test_each_place_has_notices_of_its_own_which_go_with_it(tmp_path: Path) -> None:
    def listening() -> int:
        files = [file for file in tuple(Path("/proc/self/fd").iterdir()) if file.is_symlink()]
        return sum("inotify" in str(file.readlink()) for file in files)

    before = listening()
    async with _looking(tmp_path) as looks:
        assert listening() == before + 1
        (tmp_path / "more").mkdir()
        places = [ModelFolders([tmp_path]), ModelFolders([tmp_path / "more"])]
        looks.scanner = ModelScanner(places)
        looks.scan()
        assert listening() == before + 2
        while not looks.asked.empty():
            looks.asked.get_nowait()
        (tmp_path / "more" / "new.gguf").touch()
        await looks.next_one()
    assert listening() == before


@HAS_NOTICES
async def test_a_limit_of_inotify_is_logged_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(notices_module, "MOST_FOLDERS", 1)
    (tmp_path / "a").mkdir()
    async with _looking(tmp_path) as looks:
        looks.scan()
        looks.scan()
    assert caplog.messages == ["model_watch_unavailable"]


@HAS_NOTICES
async def test_after_a_reload_the_log_states_the_new_interval_of_the_model_scan(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(InotifyWatcher, "open", classmethod(lambda _: None))
    patient = replace(PACE, interval_seconds=30, deadline_seconds=20)
    async with probing(always(GOOD), pace=patient) as (prober, next_one):
        await next_one()
        prober.set_interval(20)
        await prober.replace_sources(Sources(scanner=ModelScanner([ModelFolders([tmp_path])])))
    (logged,) = [one for one in caplog.records if one.message == "model_watch_unavailable"]
    assert logged.__dict__["fields"]["every_seconds"] == 20


PLACES = (Path("/a"), Path("/b"))
LINK = "it is a link; add the folder it leads to as a root of its own"


def test_a_folder_is_logged_once_for_each_reason_and_again_after_a_recovery(
    caplog: pytest.LogCaptureFixture,
) -> None:
    unsearched = UnreadableLog()
    for problems in ({"/a": LINK}, {"/a": LINK}, {"/a": "permission denied"}, {}, {"/a": LINK}):
        unsearched.note(problems, PLACES)
    assert caplog.messages == ["model_scan_failed"] * 3


def test_a_recovered_disk_is_logged_whatever_the_scan_finds(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO", "gpu_agent")
    unsearched = UnreadableLog()
    for problems in (
        {"/a": DISK_SILENT, "/b": DISK_SILENT},
        {"/a": DISK_SILENT, "/b": LINK},
        {"/b": LINK},
        {},
    ):
        unsearched.note(problems, PLACES)
    answered = ["model_disk_recovered", "model_scan_failed", "model_disk_recovered"]
    assert caplog.messages == ["model_scan_failed"] * 2 + answered


def test_of_many_folders_a_few_are_logged_and_the_rest_counted(caplog: pytest.LogCaptureFixture) -> None:
    UnreadableLog().note({f"/{number}": LINK for number in range(MAX_LOGGED + 7)}, ())
    assert len(caplog.records) == MAX_LOGGED
    assert "'others': 7" in str(caplog.records[0].__dict__)


def test_a_folder_that_is_no_longer_scanned_is_not_recovered(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO", "gpu_agent")
    unsearched = UnreadableLog()
    unsearched.note({"/a": DISK_SILENT}, PLACES)
    unsearched.note({}, PLACES[1:])
    assert caplog.messages == ["model_scan_failed"]
