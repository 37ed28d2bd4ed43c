"""The writer commits off the loop, one commit at a time, and says why one failed."""

import asyncio
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from gpu_agent.registry.actions import Change, DocumentKind
from gpu_agent.server.writer import Writer
from gpu_agent.store.base import Batch, StoreError
from gpu_agent.store.memory import MemoryStore
from gpu_agent.wire.api import RegistryEvent
from tests.waiting import patience


class Disk(MemoryStore):
    """Can be full or broken, and waits while it does not turn."""

    def __init__(self) -> None:
        super().__init__()
        self.full = self.broken = False
        self.turning = threading.Event()
        self.turning.set()

    def save(self, batches: Sequence[Batch]) -> None:
        self.turning.wait(patience(10))
        if self.broken:
            raise ZeroDivisionError
        if self.full:
            raise StoreError("full")
        super().save(batches)

    @property
    def keys(self) -> list[str]:
        return [change.key for change in self.load().changes]


async def committed(writer: Writer, *batches: Batch) -> str | None:
    done: asyncio.Future[str | None] = asyncio.get_running_loop().create_future()
    writer.commit(batches, done.set_result)
    return await asyncio.wait_for(done, patience(5))


def batch(*keys: str) -> Batch:
    return Batch([Change(DocumentKind.NODE, key, {}) for key in keys])


async def test_a_commit_stores_all_its_batches() -> None:
    disk = Disk()
    writer = Writer(disk)
    assert await committed(writer, batch("a"), batch("b", "c")) is None
    assert disk.keys == ["a", "b", "c"]
    assert (writer.stored, writer.failed) == (2, 0)


async def test_a_commit_that_fails_says_why_and_may_be_repeated() -> None:
    disk = Disk()
    writer = Writer(disk)
    disk.full = True
    assert await committed(writer, batch("a")) == "full"
    disk.full, disk.broken = False, True
    assert "the store broke: ZeroDivisionError" in str(await committed(writer, batch("a")))
    disk.broken = False
    assert await committed(writer, batch("a")) is None
    assert (writer.stored, writer.failed) == (1, 2)


async def test_what_no_store_can_hold_is_left_out_and_told_and_the_rest_is_stored(
    caplog: pytest.LogCaptureFixture,
) -> None:
    disk = Disk()
    odd = Batch(
        [Change(DocumentKind.NODE, "odd", {"set": {1}}), Change(DocumentKind.NODE, "good", {})],
        [RegistryEvent(1.0, "odd", fields={"set": {1}}, id=1), RegistryEvent(1.0, "good", id=2)],
    )
    assert await committed(Writer(disk), batch("a"), odd) is None
    assert disk.keys == ["a", "good"]
    assert [event.event for event in disk.load().recent] == ["good"]
    assert [one.getMessage() for one in caplog.records] == ["save_impossible"] * 2


async def test_it_shows_since_when_a_commit_runs() -> None:
    disk = Disk()
    writer = Writer(disk)
    before = time.monotonic()
    disk.turning.clear()
    done = asyncio.ensure_future(committed(writer, batch("a")))
    await asyncio.sleep(0)
    began = writer.busy_since
    assert began is not None
    assert before <= began <= time.monotonic()
    disk.turning.set()
    await done
    ended = writer.busy_since
    assert ended is None


async def test_closing_waits_for_the_commit_that_runs_but_not_for_ever() -> None:
    disk = Disk()
    writer = Writer(disk)
    disk.turning.clear()
    done = asyncio.ensure_future(committed(writer, batch("a")))
    await asyncio.sleep(0)
    assert not await writer.close(within_seconds=0.05)
    disk.turning.set()
    assert await writer.close(within_seconds=5)
    assert await done is None
    with pytest.raises(StoreError, match="closed"):
        await writer.load()


async def test_a_store_whose_commit_outlasts_the_close_is_closed_after_it_and_nothing_holds_it() -> None:
    before = set(threading.enumerate())
    disk = Disk()
    writer = Writer(disk)
    disk.turning.clear()
    writer.commit([batch("a")], lambda _: None)
    (thread,) = set(threading.enumerate()) - before
    assert not await writer.close(within_seconds=0.05)
    disk.turning.set()
    await asyncio.to_thread(thread.join, patience(5))
    assert not thread.is_alive()
    with pytest.raises(StoreError, match="closed"):
        disk.load()


async def test_a_backup_is_the_stores_business(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="memory only"):
        await Writer(MemoryStore()).backup(tmp_path / "copy.db")
