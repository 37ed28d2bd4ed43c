"""Looking again when the file system says that models changed: soon, and not too often.

The first notice is waited upon a little, since changes come in crowds; then comes one look, and no other
within a second, however much changes. Where the kernel tells of no more folders, or of none, the looks at
the probe's own pace must do, which is logged once. It refuses to know what changed: that is the scan's.
"""

import asyncio
from collections.abc import Callable

from gpu_agent.probe.models.catalogue import Catalogue
from gpu_agent.probe.models.notices import Notices
from gpu_agent.runtime.logs import EventLog

SETTLE_SECONDS = 0.2
"""How long the rest of a crowd of changes is waited for."""
PAUSE_SECONDS = 0.8
"""How long further changes wait after a look was asked for."""

_LOG = EventLog("node.rescans")


class Rescans:
    """Asks for a look after each crowd of notices."""

    def __init__(self, look: Callable[[], None], *, every_seconds: float) -> None:
        """`look` asks for one and does not wait for it; `every_seconds` there is one anyhow."""
        self._look = look
        self._every_seconds = every_seconds
        self._notices: Notices | None = None
        self._unseen = False
        self._told = False

    async def run(self) -> None:
        """Go on until cancelled; end at once where the platform has no notices."""
        notices = self._notices = Notices.open()
        if notices is None:
            return
        try:
            while True:
                await _noticed(notices)
                await asyncio.sleep(SETTLE_SECONDS)
                notices.drain()
                self._look()
                await asyncio.sleep(PAUSE_SECONDS)
        finally:
            self._notices = None
            notices.close()

    def follow(self, catalogue: Catalogue) -> None:
        """Follow what a scan has read. It looks paths up: call it in the thread that scans."""
        if self._notices is not None and self._notices.follow(catalogue.places):
            self._unseen = True

    def scanned(self) -> None:
        """After each scan: ask for another where changes may have gone unnoticed, tell of a limit."""
        if self._unseen:
            self._unseen = False
            self._look()
        limit = self._notices and self._notices.limit
        if limit and not self._told:
            self._told = True
            _LOG.warning("models_polled", problem=limit, every_seconds=self._every_seconds)


async def _noticed(notices: Notices) -> None:
    """Wait for a notice. Between two looks nobody listens: the kernel keeps what comes."""
    loop = asyncio.get_running_loop()
    heard = asyncio.Event()
    loop.add_reader(notices.descriptor, heard.set)
    try:
        await heard.wait()
    finally:
        loop.remove_reader(notices.descriptor)
