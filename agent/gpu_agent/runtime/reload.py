"""Settings read again while a program runs: which ones take effect at once, which ones wait for a restart.

A faulty file changes nothing, and its faults are logged. One reload follows another, and systemd sees each
from its beginning to its end. Each setting says at its field whether a running program can take it over.
"""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

from pydantic_settings import BaseSettings

from gpu_agent.runtime.config.fields import reloadable_names
from gpu_agent.runtime.config.load import SettingsError
from gpu_agent.runtime.logs import Logger
from gpu_agent.runtime.sdnotify import SystemdNotifier
from gpu_agent.runtime.tasks import in_thread

READ_SECONDS = 10.0
"""How long reading the file may take."""

_LOG = Logger("runtime")
_Settings = TypeVar("_Settings", bound=BaseSettings)


@dataclass(frozen=True, slots=True)
class Reloaded(Generic[_Settings]):
    """The result of a reload."""

    settings: _Settings
    """Those to run with from now on."""
    changed: tuple[str, ...] = ()
    """The names of the settings that changed and took effect."""
    waiting: tuple[str, ...] = ()
    """The names of the settings that changed and need a restart."""


def merge_reloaded(running: _Settings, read: _Settings) -> Reloaded[_Settings]:
    """Take over those of the settings read that a reload may change (`Setting.reload`)."""
    at_once = reloadable_names(type(running))
    names = type(running).model_fields
    differing = [name for name in names if getattr(running, name) != getattr(read, name)]
    changed = tuple(name for name in differing if name in at_once)
    waiting = tuple(name for name in differing if name not in at_once)
    settings = running.model_copy(update={name: getattr(read, name) for name in changed})
    return Reloaded(settings, changed, waiting)


class SettingsReloader(Generic[_Settings]):
    """Reads the settings again on request."""

    def __init__(
        self,
        running: _Settings,
        *,
        read: Callable[[], _Settings],
        take_over: Callable[[Reloaded[_Settings]], Awaitable[None]],
        systemd: SystemdNotifier,
        ended: Callable[[str | None], None] = lambda _: None,
    ) -> None:
        """`read` may block and raises `SettingsError`; `take_over` is called also when nothing changed.

        `ended` receives what a reload did not take over.
        """
        self._running = running
        self._read = read
        self._take_over = take_over
        self._systemd = systemd
        self._ended = ended
        self._requested = asyncio.Event()
        self.problem: str | None = None
        """Why the last reload changed nothing; None where it took the file."""
        self.waiting: tuple[str, ...] = ()
        """The settings that the file states otherwise by now, and that wait for a restart."""

    @property
    def attention(self) -> str | None:
        """Say in a line what the last reload did not take over; None where it took all."""
        if self.problem is not None:
            return f"settings not reloaded: {self.problem}"
        return f"settings wait for a restart: {', '.join(self.waiting)}" if self.waiting else None

    def request(self) -> None:
        """Request another reading, after one that is under way."""
        self._requested.set()

    async def run(self) -> None:
        """Go on until cancelled."""
        while True:
            await self._requested.wait()
            self._requested.clear()
            self._systemd.reloading()
            await self._reload()
            self._ended(self.attention)
            if self.attention is not None:
                self._systemd.status(self.attention)
            self._systemd.ready()

    async def _reload(self) -> None:
        try:
            read = await in_thread("settings", self._read, deadline_seconds=READ_SECONDS)
        except SettingsError as error:
            self._refuse(str(error))
            return
        except TimeoutError:
            self._refuse(f"the disk did not answer within {READ_SECONDS:g} s")
            return
        result = merge_reloaded(self._running, read)
        self._running = result.settings
        self.problem, self.waiting = None, result.waiting
        await self._take_over(result)
        _LOG.info("settings_reloaded", changed=result.changed, waiting_for_restart=result.waiting)

    def _refuse(self, problem: str) -> None:
        self.problem = problem
        _LOG.error("settings_not_reloaded", problem=problem)
