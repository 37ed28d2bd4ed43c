"""Where the agent looks for models: opens the sources, and rescans soon after the file system reports a change.

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
from gpu_agent.probe.models.scanner import DISK_SILENT, ModelScanner, SourceState
from gpu_agent.probe.simulation.models import with_simulated_models
from gpu_agent.probe.snapshot import Sources
from gpu_agent.probe.snapshot import open_sources as snapshot_open_sources
from gpu_agent.runtime.files import user_home
from gpu_agent.runtime.logs import Logger
from gpu_agent.runtime.tasks import in_thread

# Where host and models are read, as the settings have it: this machine's, or the models of a simulated
# one.
#
# Opened for the life of the process, since they remember, and anew when other places are named. Opening
# reads
# nothing yet.


FIRST_SCAN_SECONDS = 20.0
"""How long new places may take until all of their models are known."""
_SHARE_OF_THE_SCAN = 0.8
"""A scan ends in the unit that it is at: the rest is left for that one."""


def open_sources(settings: AgentSettings, kept: ModelScanner | None = None) -> Sources:
    """Open them; models that a simulation states stand in place of those on the disks.

    What the catalogue before, if there is one, knows of places that stay is kept.
    """
    found = snapshot_open_sources(settings.probe_options, environ=os.environ, home=user_home(), previous=kept)
    return found if settings.simulate is None else with_simulated_models(settings.simulate, found)


async def reopen_sources(settings: AgentSettings, kept: ModelScanner) -> Sources:
    """Open them and look through them first, so that nothing seems to be missing while they are new.

    A place on a disk that hangs is not waited for: the probe goes on without its answer, and says so.
    """
    sources = open_sources(settings, kept)

    def look_through() -> None:
        sources.scanner.scan(FIRST_SCAN_SECONDS * _SHARE_OF_THE_SCAN)

    try:
        await in_thread("new places", look_through, deadline_seconds=FIRST_SCAN_SECONDS)
    except TimeoutError:
        return open_sources(settings, sources.scanner)  # that one is still being looked through
    return sources


# Looking again when the file system says that models changed: soon, and not too often.
#
# Each shelf has notices of its own, so that one on a disk that hangs keeps nobody from hearing of the
# others.
#
# The first notice is waited upon a little, since changes come in crowds; then comes one look, and no other
# within a second, however much changes. A folder that is followed from now on counts as changed. Where the
# kernel tells of no more folders, or of none, the looks at the probe's own pace must do, which is logged
# once.
# It refuses to know what changed: that is the scan's.


SETTLE_SECONDS = 0.2
"""How long the rest of a crowd of changes is waited for."""
PAUSE_SECONDS = 0.8
"""How long further changes wait after a look was asked for."""

_NO_MORE = "this user may have no more notices; raise the sysctl fs.inotify.max_user_instances"
_WATCH_LOG = Logger("node.models")


class ModelWatcher:
    """Asks for a look after each crowd of notices."""

    def __init__(self, look: Callable[[], None], *, every_seconds: float) -> None:
        """`look` asks for one and does not wait for it; `every_seconds` there is one anyhow."""
        self._look = look
        self._every_seconds = every_seconds
        self._ear: select.epoll | None = None
        """Listens to all notices at once; `None` while nobody does."""
        self._notices: weakref.WeakKeyDictionary[SourceState, InotifyWatcher] = weakref.WeakKeyDictionary()
        """A shelf that is looked into no more takes its own along."""
        self._by_descriptor: dict[int, weakref.ref[InotifyWatcher]] = {}
        self._refused: str | None = None
        """Why a shelf has none."""
        self._unseen = False
        self._heard = asyncio.Event()
        """That something changed, or may have."""
        self._told = False

    async def run(self) -> None:
        """Go on until cancelled; end at once where the platform has no notices."""
        if not hasattr(select, "epoll"):
            return
        with select.epoll() as ear:
            self._ear = ear
            try:
                while True:
                    await self._noticed(ear)
                    await asyncio.sleep(SETTLE_SECONDS)
                    self._drain()
                    self._look()
                    await asyncio.sleep(PAUSE_SECONDS)
            finally:
                self._ear = None
                self._notices.clear()

    def follow(self, shelf: SourceState) -> None:
        """Follow what was read of a shelf. It looks paths up: call it in the thread that looked there."""
        places = shelf.watched_paths
        notices = self._notices.get(shelf) or (self._opened(shelf) if places else None)
        if notices is not None and notices.follow(places):
            self._unseen = True

    def scanned(self) -> None:
        """After each scan: ask for another where changes may have gone unnoticed, tell of a limit."""
        if self._unseen:
            self._unseen = False
            self._heard.set()
        limit = next((notices.limit for notices in self._live() if notices.limit), self._refused)
        if limit and not self._told:
            self._told = True
            _WATCH_LOG.warning("model_watch_unavailable", problem=limit, every_seconds=self._every_seconds)

    async def _noticed(self, ear: select.epoll) -> None:
        """Wait for a notice. Between two looks nobody listens: the kernel keeps what comes."""
        loop = asyncio.get_running_loop()
        loop.add_reader(ear.fileno(), self._heard.set)
        try:
            await self._heard.wait()
        finally:
            loop.remove_reader(ear.fileno())
            self._heard.clear()

    def _opened(self, shelf: SourceState) -> InotifyWatcher | None:
        ear = self._ear
        if ear is None:
            return None
        notices = InotifyWatcher.open()
        if notices is None:
            self._refused = _NO_MORE
            return None
        try:
            ear.register(notices.descriptor, select.EPOLLIN)
        except (OSError, ValueError):
            return None  # nobody listens any more: this thread was left behind on a disk that hung
        self._by_descriptor[notices.descriptor] = weakref.ref(notices)
        self._notices[shelf] = notices
        return notices

    def _drain(self) -> None:
        for notices in self._live():
            notices.drain()

    def _live(self) -> Iterator[InotifyWatcher]:
        for kept in tuple(self._by_descriptor.values()):
            if (notices := kept()) is not None:
                yield notices


# What could not be searched for models, told in the log once for each place and reason.
#
# A place whose disk answers again is told of too.
#
# It refuses to fill the log: of many new places it tells of a few, and how many there are besides.


MOST_TOLD = 10
"""New places that one look may add to the log."""

_UNREADABLE_LOG = Logger("node.models")


class UnreadableLog:
    """Remembers what was told, for as long as it is so."""

    def __init__(self) -> None:
        self._told: Mapping[str, str] = {}

    def note(self, problems: Mapping[str, str], places: Iterable[Path]) -> None:
        """Tell of what is new; a place that was mended and breaks again is new again.

        `places` are those that are looked into: of a disk that is no longer among them nothing is known.
        """
        looked_into = set(map(str, places))
        new = [(place, why) for place, why in problems.items() if self._told.get(place) != why]
        silent = [place for place, why in self._told.items() if why == DISK_SILENT and place in looked_into]
        back = [place for place in silent if problems.get(place) != DISK_SILENT]
        self._told = dict(problems)
        for place in back[:MOST_TOLD]:
            _UNREADABLE_LOG.info("model_disk_recovered", place=place, others=max(0, len(back) - MOST_TOLD))
        for place, why in new[:MOST_TOLD]:
            _UNREADABLE_LOG.warning(
                "models_unsearched", place=place, problem=why, others=max(0, len(new) - MOST_TOLD)
            )
