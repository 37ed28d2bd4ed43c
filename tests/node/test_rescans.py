import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from gpu_agent.node.rescans import PAUSE_SECONDS, SETTLE_SECONDS, Rescans
from gpu_agent.probe.models import notices as notices_module
from gpu_agent.probe.models.catalogue import Catalogue
from gpu_agent.probe.models.directory import ModelFolders
from gpu_agent.probe.models.notices import Notices
from gpu_agent.runtime.tasks import Tasks

HAS_NOTICES = pytest.mark.skipif(Notices.open() is None, reason="only Linux has inotify")


class _Looks:
    """Counts what is asked for, and scans as the probe would."""

    def __init__(self, root: Path) -> None:
        self.catalogue = Catalogue([ModelFolders([root])])
        self.asked: asyncio.Queue[float] = asyncio.Queue()
        self.rescans = Rescans(lambda: self.asked.put_nowait(time.monotonic()), every_seconds=5)

    def scan(self) -> None:
        self.catalogue.scan(follow=self.rescans.follow)
        self.rescans.scanned()

    async def next_one(self) -> float:
        async with asyncio.timeout(5):
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
async def test_folders_that_are_followed_from_now_on_are_looked_at_once_more(tmp_path: Path) -> None:
    async with _looking(tmp_path) as looks:
        await looks.next_one()
        looks.scan()
        assert looks.asked.empty()


@HAS_NOTICES
async def test_a_change_is_looked_at_within_two_seconds_and_a_crowd_of_them_once(tmp_path: Path) -> None:
    async with _looking(tmp_path) as looks:
        await looks.next_one()
        began = time.monotonic()
        for number in range(100):
            (tmp_path / f"{number}.gguf").write_text("x")
        assert await looks.next_one() - began < 2
        looks.scan()
        assert looks.asked.empty()


@HAS_NOTICES
async def test_changes_without_end_are_looked_at_once_a_second(tmp_path: Path) -> None:
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
async def test_new_folders_without_end_are_looked_at_once_a_second(tmp_path: Path) -> None:
    async with _looking(tmp_path) as looks:
        first = await looks.next_one()
        (tmp_path / "1").mkdir()
        looks.scan()
        assert await looks.next_one() - first >= (SETTLE_SECONDS + PAUSE_SECONDS) * 0.99


@HAS_NOTICES
async def test_where_there_are_no_more_notices_it_is_told_once_and_nothing_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(Notices, "open", classmethod(lambda _: None))
    async with _looking(tmp_path) as looks:
        looks.scan()
        looks.scan()
        assert looks.asked.empty()
    assert caplog.messages == ["models_polled"]
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
        looks.catalogue = Catalogue(places)
        looks.scan()
        assert listening() == before + 2
        while not looks.asked.empty():
            looks.asked.get_nowait()
        (tmp_path / "more" / "new.gguf").touch()
        await looks.next_one()
    assert listening() == before


@HAS_NOTICES
async def test_a_limit_is_told_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(notices_module, "MOST_FOLDERS", 1)
    (tmp_path / "a").mkdir()
    async with _looking(tmp_path) as looks:
        looks.scan()
        looks.scan()
    assert caplog.messages == ["models_polled"]
