"""One running NVML child as the event loop sees it: an ask that is owed an answer, and an end.

A thread listens to the child, because a pipe to a process stuck in the driver may block for
ever; all it hears becomes a call in the loop. It decides nothing: `nvml` does.
"""

import asyncio
import subprocess
import threading
from collections.abc import Callable, Mapping
from functools import partial

from gpu_agent.probe.nvml.process import ask, ask_to_end
from gpu_agent.probe.nvml.report import answer_in
from gpu_agent.wire.inventory import GpuReport

_LINE_BYTES = 4 << 20
"""No answer is longer; what is, was not written by our child."""


class Conversation:
    """One child process, the thread that listens to it, and the answer that it owes."""

    def __init__(
        self,
        process: subprocess.Popen[bytes],
        loop: asyncio.AbstractEventLoop,
        ended: "Callable[[Conversation, int], None]",
        *,
        told: Callable[[bytes], None],
    ) -> None:
        """`told` is given each line that is no answer, whether the answer comes or not."""
        self.process = process
        self.owed: asyncio.Future[GpuReport | None] | None = None
        self.asked_at = 0.0
        self.leaving = False
        self.gone = asyncio.Event()
        self._loop = loop
        self._ended = ended
        self._told = told
        self._last_id = 0
        listener = threading.Thread(target=self._listen, name="nvml-child-listener", daemon=True)
        listener.start()

    def ask(
        self, *, fresh: bool, silent: Mapping[str, object] | None = None
    ) -> asyncio.Future[GpuReport | None]:
        """Ask for one reading; the future holds None when the child ends instead of answering."""
        self.owed = self._loop.create_future()
        self.asked_at = self._loop.time()
        self._last_id += 1
        if self.gone.is_set():
            self.owed.set_result(None)
        else:
            ask(self.process, self._last_id, fresh=fresh, listen=True, silent=silent)
        return self.owed

    def leave(self) -> None:
        """Ask the child to end as soon as the driver lets it."""
        self.leaving = True
        ask_to_end(self.process)

    async def gone_within(self, seconds: float) -> bool:
        """Wait so long for the child's end; True when it has ended."""
        try:
            async with asyncio.timeout(seconds):
                await self.gone.wait()
        except TimeoutError:
            return False
        return True

    def _listen(self) -> None:
        """Tell the loop of every line and of the end. Runs in a thread, blocked as long as the driver is."""
        stdout = self.process.stdout
        if stdout is not None:
            while line := stdout.readline(_LINE_BYTES):
                self._tell(partial(self._heard, line))
            stdout.close()
        self._tell(partial(self._over, self.process.wait()))

    def _tell(self, happened: Callable[[], None]) -> None:
        try:
            self._loop.call_soon_threadsafe(happened)
        except RuntimeError:
            return  # the loop is closed: nobody is left who wants to know

    def _heard(self, line: bytes) -> None:
        answer = answer_in(line)
        if answer is None:
            self._told(line)
        elif answer.id == self._last_id and self.owed is not None and not self.owed.done():
            self.owed.set_result(answer.report)

    def _over(self, returncode: int) -> None:
        ask_to_end(self.process)
        self.gone.set()
        self._ended(self, returncode)
        if self.owed is not None and not self.owed.done():
            self.owed.set_result(None)
