"""Looking again when the file system says that models changed: soon, and not too often.

Each shelf has notices of its own, so that one on a disk that hangs keeps nobody from hearing of the others.

The first notice is waited upon a little, since changes come in crowds; then comes one look, and no other
within a second, however much changes. A folder that is followed from now on counts as changed. Where the
kernel tells of no more folders, or of none, the looks at the probe's own pace must do, which is logged once.
It refuses to know what changed: that is the scan's.
"""

import asyncio
import select
import weakref
from collections.abc import Callable, Iterator

from gpu_agent.probe.models.notices import Notices
from gpu_agent.probe.models.shelf import Shelf
from gpu_agent.runtime.logs import EventLog

SETTLE_SECONDS = 0.2
"""How long the rest of a crowd of changes is waited for."""
PAUSE_SECONDS = 0.8
"""How long further changes wait after a look was asked for."""

_NO_MORE = "this user may have no more notices; raise the sysctl fs.inotify.max_user_instances"
_LOG = EventLog("node.rescans")


class Rescans:
    """Asks for a look after each crowd of notices."""

    def __init__(self, look: Callable[[], None], *, every_seconds: float) -> None:
        """`look` asks for one and does not wait for it; `every_seconds` there is one anyhow."""
        self._look = look
        self._every_seconds = every_seconds
        self._ear: select.epoll | None = None
        """Listens to all notices at once; `None` while nobody does."""
        self._notices: weakref.WeakKeyDictionary[Shelf, Notices] = weakref.WeakKeyDictionary()
        """A shelf that is looked into no more takes its own along."""
        self._by_descriptor: dict[int, weakref.ref[Notices]] = {}
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

    def follow(self, shelf: Shelf) -> None:
        """Follow what was read of a shelf. It looks paths up: call it in the thread that looked there."""
        places = shelf.places
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
            _LOG.warning("models_polled", problem=limit, every_seconds=self._every_seconds)

    async def _noticed(self, ear: select.epoll) -> None:
        """Wait for a notice. Between two looks nobody listens: the kernel keeps what comes."""
        loop = asyncio.get_running_loop()
        loop.add_reader(ear.fileno(), self._heard.set)
        try:
            await self._heard.wait()
        finally:
            loop.remove_reader(ear.fileno())
            self._heard.clear()

    def _opened(self, shelf: Shelf) -> Notices | None:
        ear = self._ear
        if ear is None:
            return None
        notices = Notices.open()
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

    def _live(self) -> Iterator[Notices]:
        for kept in tuple(self._by_descriptor.values()):
            if (notices := kept()) is not None:
                yield notices
