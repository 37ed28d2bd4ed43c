"""The model sources of the agent: opened by the settings, and scanned again soon after a file changes.

Each model source has an inotify watcher of its own, so that one on a disk that hangs does not silence the
others. The first notification waits a little, since changes come in bursts; then one scan follows, and no
second one within a second. Where the kernel grants no more watches, the probe's own pace must do, and the
log says so once.
"""

import asyncio
import os
import select
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

from gpu_agent.node.settings import AgentSettings
from gpu_agent.probe.models.inotify import InotifyWatcher
from gpu_agent.probe.models.scanner import DISK_SILENT, ModelScanner
from gpu_agent.probe.models.source_state import SourceState
from gpu_agent.probe.snapshot import Sources
from gpu_agent.probe.snapshot import open_sources as open_probe_sources
from gpu_agent.runtime.files import user_home
from gpu_agent.runtime.logs import Logger
from gpu_agent.runtime.tasks import in_thread

FIRST_SCAN_SECONDS = 20.0
"""How long the first scan of new sources may take."""
_SCAN_SHARE = 0.8
"""A scan's budget ends between two units: the rest of the time is for the last unit."""
SETTLE_SECONDS = 0.2
"""How long the rest of a burst of changes may take to arrive."""
PAUSE_SECONDS = 0.8
"""How long further changes wait after a scan was requested."""
MAX_LOGGED = 10
"""New problems that one scan may add to the log."""

_NO_MORE = "this user may have no more inotify instances; raise the sysctl fs.inotify.max_user_instances"
_LOG = Logger("node.models")


def open_sources(settings: AgentSettings, before: ModelScanner | None = None) -> Sources:
    """Open the configured model sources; a simulation's models replace those on the disks.

    Sources that the scanner `before` had too continue with what it knows. Opening reads nothing yet.
    """
    found = open_probe_sources(settings.probe_options, environ=os.environ, home=user_home(), previous=before)
    if settings.simulate is None:
        return found
    from gpu_agent.probe.simulation.models import simulated_sources  # noqa: PLC0415 - most machines are real

    return simulated_sources(settings.simulate, found)


async def reopen_sources(settings: AgentSettings, before: ModelScanner) -> Sources:
    """Open the sources and scan them first, so that no model seems to be missing at first.

    The scan does not wait for a disk that hangs: the probe continues without it, and the log says so.
    """
    sources = open_sources(settings, before)

    def scan() -> None:
        sources.scanner.scan(FIRST_SCAN_SECONDS * _SCAN_SHARE)

    try:
        await in_thread("first-model-scan", scan, deadline_seconds=FIRST_SCAN_SECONDS)
    except TimeoutError:
        return open_sources(settings, sources.scanner)  # the thread still uses that scanner
    return sources


class ModelWatcher:
    """Requests a scan after each burst of changes that inotify reports."""

    def __init__(self, request_scan: Callable[[], None]) -> None:
        """`request_scan` does not wait for the scan."""
        self._request_scan = request_scan
        self._epoll: select.epoll | None = None
        """Polls all watchers at once; None while `run` does not."""
        self._watchers: weakref.WeakKeyDictionary[SourceState, InotifyWatcher] = weakref.WeakKeyDictionary()
        """A source that is scanned no more takes its watcher with it."""
        self._by_descriptor: dict[int, weakref.ref[InotifyWatcher]] = {}
        self._refused: str | None = None
        """Why a source has no watcher."""
        self._missed_changes = False
        """Whether files may have changed before their folder was watched."""
        self._changed = asyncio.Event()
        self._limit_logged = False

    @property
    def watches_all(self) -> bool:
        """Whether every change that the kernel reports requests a scan."""
        return self._epoll is not None and self._limit is None and not self._missed_changes

    async def run(self) -> None:
        """Run until cancelled; end at once where the platform has no inotify."""
        if not hasattr(select, "epoll"):
            return
        with select.epoll() as epoll:
            self._epoll = epoll
            try:
                while True:
                    await self._wait_for_change(epoll)
                    await asyncio.sleep(SETTLE_SECONDS)
                    for watcher in self._live():
                        watcher.drain()
                    self._request_scan()
                    await asyncio.sleep(PAUSE_SECONDS)
            finally:
                self._epoll = None
                for source in tuple(self._watchers):
                    source.quiet_since = None
                self._watchers.clear()

    def follow(self, source: SourceState) -> None:
        """Watch the folders that a scan has read. It touches the disk: call it in the scan's thread."""
        paths = source.watched_paths
        watcher = self._watchers.get(source) or (self._open(source) if paths else None)
        if watcher is not None and watcher.follow(paths):
            self._missed_changes = True

    def after_scan(self, *, every_seconds: float) -> None:
        """Request another scan where one may have missed changes, and log once that inotify has a limit.

        `every_seconds` is the interval between scans that nothing requests.
        """
        if self._missed_changes:
            self._missed_changes = False
            self._changed.set()
        limit = self._limit
        if limit and not self._limit_logged:
            self._limit_logged = True
            _LOG.warning("model_watch_unavailable", problem=limit, every_seconds=every_seconds)

    @property
    def _limit(self) -> str | None:
        """Why some folder is not watched; None when all are."""
        return next((watcher.limit for watcher in self._live() if watcher.limit), self._refused)

    async def _wait_for_change(self, epoll: "select.epoll") -> None:
        """Wait for a notification. Between two scans the kernel queues them."""
        loop = asyncio.get_running_loop()
        loop.add_reader(epoll.fileno(), self._changed.set)
        try:
            await self._changed.wait()
        finally:
            loop.remove_reader(epoll.fileno())
            self._changed.clear()

    def _open(self, source: SourceState) -> InotifyWatcher | None:
        epoll = self._epoll
        if epoll is None:
            return None
        watcher = InotifyWatcher.open()
        if watcher is None:
            self._refused = _NO_MORE
            return None
        try:
            epoll.register(watcher.descriptor, select.EPOLLIN)
        except (OSError, ValueError):
            return None  # closed meanwhile: this thread was left behind on a disk that hung
        self._by_descriptor[watcher.descriptor] = weakref.ref(watcher)
        self._watchers[source] = watcher
        source.quiet_since = watcher.quiet_since
        return watcher

    def _live(self) -> Iterator[InotifyWatcher]:
        for reference in tuple(self._by_descriptor.values()):
            if (watcher := reference()) is not None:
                yield watcher


class UnreadableLog:
    """Logs once, for each folder and reason, that a scan failed, and that its disk answers again."""

    def __init__(self) -> None:
        self._logged: Mapping[str, str] = {}

    def note(self, problems: Mapping[str, str], paths: Iterable[Path]) -> None:
        """Log what is new since the last scan.

        `paths` are the folders that are scanned; about the disk of another folder nothing is known.
        """
        scanned = set(map(str, paths))
        new = [(place, why) for place, why in problems.items() if self._logged.get(place) != why]
        silent = [place for place, why in self._logged.items() if why == DISK_SILENT and place in scanned]
        recovered = [place for place in silent if problems.get(place) != DISK_SILENT]
        self._logged = dict(problems)
        for place in recovered[:MAX_LOGGED]:
            others = max(0, len(recovered) - MAX_LOGGED)
            _LOG.info("model_disk_recovered", place=place, others=others)
        for place, why in new[:MAX_LOGGED]:
            _LOG.warning("model_scan_failed", place=place, problem=why, others=max(0, len(new) - MAX_LOGGED))
