import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import pytest
from pydantic_settings import BaseSettings, SettingsConfigDict

from gpu_agent.runtime import reload as reloading
from gpu_agent.runtime.config.load import SettingsError
from gpu_agent.runtime.reload import Reloaded, SettingsReloader, merge_reloaded
from gpu_agent.runtime.sdnotify import SystemdNotifier
from gpu_agent.runtime.tasks import Tasks
from gpu_agent.wire.settings import Setting
from tests.service_manager import ServiceManager, service_manager
from tests.waiting import patience, until


class Few(BaseSettings):
    model_config = SettingsConfigDict(frozen=True)

    colour: Annotated[str, Setting("its colour", reload=True)] = "red"
    size: Annotated[int, Setting("its size", reload=True)] = 1
    place: Annotated[str, Setting("where it is")] = "here"


def test_what_can_hold_at_once_does() -> None:
    result = merge_reloaded(Few(), Few(colour="blue", size=2))
    assert result == Reloaded(Few(colour="blue", size=2), ("colour", "size"))


def test_what_cannot_is_named_and_stays_as_it_was() -> None:
    result = merge_reloaded(Few(), Few(colour="blue", place="there"))
    assert result == Reloaded(Few(colour="blue"), ("colour",), ("place",))


def test_what_waits_is_named_by_every_reload_until_the_restart() -> None:
    first = merge_reloaded(Few(), Few(place="there"))
    assert merge_reloaded(first.settings, Few(place="there")).waiting == ("place",)
    assert merge_reloaded(first.settings, Few()).waiting == ()


@dataclass
class _Program:
    """A program that takes settings over."""

    reloads: SettingsReloader[Few]
    manager: ServiceManager
    taken: "asyncio.Queue[Reloaded[Few]]" = field(default_factory=asyncio.Queue)

    async def reload(self) -> list[str]:
        """Ask for a reload, wait until systemd has received its end; returns what systemd received."""
        before = len(self.manager.received)
        self.reloads.request()
        await until(lambda: "READY=1" in self.manager.received_so_far()[before:])
        return [message.split("\n")[0] for message in self.manager.received[before:]]


@asynccontextmanager
async def _program(folder: Path, read: Callable[[], Few]) -> AsyncIterator[_Program]:
    with service_manager(folder) as manager:
        taken: asyncio.Queue[Reloaded[Few]] = asyncio.Queue()
        systemd = SystemdNotifier(manager.environment)
        reloads = SettingsReloader(Few(), read=read, take_over=taken.put, systemd=systemd)
        async with Tasks() as tasks:
            tasks.start("reloads", reloads.run())
            yield _Program(reloads, manager, taken)
            tasks.end()


async def test_a_reload_is_reported_from_its_beginning_to_its_end_and_taken_over_between(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="gpu_agent")
    async with _program(tmp_path, lambda: Few(colour="blue", place="there")) as program:
        waits = "STATUS=settings wait for a restart: place"
        assert await program.reload() == ["RELOADING=1", waits, "READY=1"]
        assert program.taken.get_nowait().settings == Few(colour="blue")
    (record,) = caplog.records
    assert record.__dict__["fields"] == {"changed": ("colour",), "waiting_for_restart": ("place",)}


async def test_a_faulty_file_changes_nothing_and_its_faults_are_logged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def read() -> Few:
        raise SettingsError("agent.toml:3: 'colur' is no setting; did you mean 'colour'?")

    async with _program(tmp_path, read) as program:
        problem = "agent.toml:3: 'colur' is no setting; did you mean 'colour'?"
        refused = f"STATUS=settings not reloaded: {problem}"
        assert await program.reload() == ["RELOADING=1", refused, "READY=1"]
        assert program.taken.empty()
        assert program.reloads.problem == problem
    (record,) = caplog.records
    assert record.message == "settings_not_reloaded"
    assert "did you mean 'colour'?" in record.__dict__["fields"]["problem"]


async def test_after_a_faulty_file_a_sound_one_is_taken_over(tmp_path: Path) -> None:
    outcomes: list[Few | SettingsError] = [SettingsError("no TOML"), Few(size=7)]

    def read() -> Few:
        outcome = outcomes.pop(0)
        if isinstance(outcome, SettingsError):
            raise outcome
        return outcome

    async with _program(tmp_path, read) as program:
        await program.reload()
        attention = [program.reloads.attention]
        await program.reload()
        attention.append(program.reloads.attention)
        assert attention == ["settings not reloaded: no TOML", None]
        assert program.taken.get_nowait().changed == ("size",)


async def test_each_reload_compares_with_the_one_before(tmp_path: Path) -> None:
    async with _program(tmp_path, lambda: Few(size=2)) as program:
        await program.reload()
        await program.reload()
        assert [program.taken.get_nowait().changed for _ in range(2)] == [("size",), ()]


async def test_a_disk_that_does_not_give_the_settings_leaves_them_as_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(reloading, "READ_SECONDS", 0.05)
    release = threading.Event()

    def read() -> Few:
        release.wait(patience(30))
        return Few(size=2)

    async with _program(tmp_path, read) as program:
        refused = "STATUS=settings not reloaded: the disk did not answer within 0.05 s"
        assert await program.reload() == ["RELOADING=1", refused, "READY=1"]
        assert program.taken.empty()
        release.set()
    assert caplog.messages == ["settings_not_reloaded"]


async def test_being_asked_while_it_reads_means_reading_once_more(tmp_path: Path) -> None:
    reading, release = threading.Event(), threading.Event()

    def read() -> Few:
        reading.set()
        release.wait(patience(30))
        return Few(size=2)

    async with _program(tmp_path, read) as program:
        program.reloads.request()
        await until(reading.is_set)
        program.reloads.request()
        program.reloads.request()
        release.set()
        async with asyncio.timeout(patience(5)):
            assert [(await program.taken.get()).changed for _ in range(2)] == [("size",), ()]
        await asyncio.sleep(0.05)
        assert program.taken.empty()
