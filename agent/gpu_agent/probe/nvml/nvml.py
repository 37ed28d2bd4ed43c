"""The daemon's way to the NVIDIA driver: one child process, asked again and again, never waited for too long.

`read` answers within its deadline whatever the driver does. A child that died is started
again with backoff. A child that hangs is given time, then asked to end (its stdin closed,
SIGTERM), then left alone: no other is started beside it, nor beside one that an earlier agent
or command left behind, and SIGKILL is never used. Its late answer, or its end, is the recovery.
Health, which needs a memory, is kept by `health`.
"""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from gpu_agent.probe.health import Missed
from gpu_agent.probe.nvml.conversation import Conversation
from gpu_agent.probe.nvml.heard import Heard
from gpu_agent.probe.nvml.left_behind import CHILD_NAME, left_behind
from gpu_agent.probe.nvml.process import (
    CHILD_COMMAND,
    DEADLINE_SECONDS,
    death_sentence,
    hung_sentence,
    start,
    stuck_sentence,
)
from gpu_agent.wire.inventory import GpuReport, Health, Outcome


@dataclass(frozen=True, slots=True, kw_only=True)
class ChildPolicy:
    """How patient to be with the child, in seconds."""

    end_hung_after_seconds: float = 30.0
    """A child that has owed its answer this long is asked to end."""
    restart_seconds: float = 1.0
    """The first wait before a child that died is started again; it doubles with each death."""
    restart_ceiling_seconds: float = 60.0
    reopen_lost_after_seconds: float = 60.0
    """While a GPU is lost, the library is opened anew this often: its old handle is never used again."""
    goodbye_seconds: float = 1.0
    """How long `close` waits for the child to end by itself, and half of it again after SIGTERM."""


class NvmlProbe:
    """Reads all GPUs through a child process that it starts at the first read.

    All methods belong to one event loop. `read` may be called by several tasks at once: they share one ask.
    """

    def __init__(
        self,
        command: Sequence[str] = CHILD_COMMAND,
        deadline_seconds: float = DEADLINE_SECONDS,
        *,
        env: Mapping[str, str] | None = None,
        policy: ChildPolicy | None = None,
        name: str = CHILD_NAME,
    ) -> None:
        """`name` is how a stuck child that somebody else left behind is known."""
        self._name = name
        self._command = tuple(command)
        self._deadline_seconds = deadline_seconds
        self._env = env
        self._policy = policy or ChildPolicy()
        self._child: Conversation | None = None
        self._missing_since: float | None = None
        self._death = ""
        self._stuck: int | None = None
        """The process that somebody left behind in the driver."""
        self._restart_wait_seconds = 0.0
        self._restart_at = 0.0
        self._reopen_at: float | None = None
        self._heard = Heard()

    async def read(self) -> GpuReport | Missed:
        """Read all GPUs, or say within the deadline that they could not be read, and since when."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._deadline_seconds
        child = await self._living_child(deadline)
        if child is None:
            return self._missed_without_child(loop.time())
        if child.leaving:
            return self._missed_by_silence(child)
        owed = child.owed or child.ask(fresh=self._reopening(loop.time()), silent=self._heard.silent)
        asked_at = child.asked_at
        await asyncio.wait({owed}, timeout=max(0.0, deadline - loop.time()))
        if not owed.done():
            self._lose_patience(child, loop.time())
            return self._missed_by_silence(child)
        if child.owed is owed:
            child.owed = None
        heard = owed.result()
        if heard is None:
            return self._missed_by_death(loop.time())
        return self._good(child, heard, asked_at=asked_at)

    async def close(self) -> None:
        """End the child if it will end; one that is stuck in the driver is left behind."""
        child, self._child = self._child, None
        if child is None:
            return
        child.leave()
        if not await child.gone_within(self._policy.goodbye_seconds):
            child.process.terminate()
            await child.gone_within(self._policy.goodbye_seconds / 2)

    async def _living_child(self, deadline: float) -> Conversation | None:
        """Return the child to ask; None while a death is being waited out."""
        loop = asyncio.get_running_loop()
        if self._child is not None and self._child.leaving:
            await self._child.gone_within(max(0.0, deadline - loop.time()))
        if self._child is not None and self._child.gone.is_set():
            self._child = None
        if self._child is None and loop.time() >= self._restart_at:
            stuck = await asyncio.to_thread(left_behind, self._name)
            if self._child is None:  # else another read has started one meanwhile
                self._stuck = stuck
                self._child = self._started(loop) if stuck is None else None
        return self._child

    def _started(self, loop: asyncio.AbstractEventLoop) -> Conversation | None:
        try:
            process = start(self._command, env=self._env)
        except OSError as error:
            self._back_off(loop.time())
            self._death = f"The NVML child could not be started ({error})."
            return None
        return Conversation(process, loop, self._ended, told=self._heard.take)

    def _ended(self, child: Conversation, returncode: int) -> None:
        self._death = death_sentence(returncode)
        if not child.leaving:
            self._back_off(asyncio.get_running_loop().time())

    def _back_off(self, now: float) -> None:
        doubled = max(self._policy.restart_seconds, self._restart_wait_seconds * 2)
        self._restart_wait_seconds = min(doubled, self._policy.restart_ceiling_seconds)
        self._restart_at = now + self._restart_wait_seconds

    def _reopening(self, now: float) -> bool:
        if self._reopen_at is None or now < self._reopen_at:
            return False
        self._reopen_at = None
        return True

    def _lose_patience(self, child: Conversation, now: float) -> None:
        if now - child.asked_at >= self._policy.end_hung_after_seconds:
            child.leave()
            child.process.terminate()

    def _good(self, child: Conversation, heard: GpuReport, *, asked_at: float) -> GpuReport:
        """Take an answer; what a late one says may be as old as the question."""
        now = asyncio.get_running_loop().time()
        self._missing_since = None
        self._restart_wait_seconds = 0.0
        if heard.outcome is not Outcome.OK:
            child.leave()  # a library once loaded stays as it was: the next read looks with fresh eyes
        if not _is_worth_reopening(heard):
            self._reopen_at = None
        elif self._reopen_at is None:
            self._reopen_at = now + self._policy.reopen_lost_after_seconds
        waited = now - asked_at
        report = self._heard.lay_into(heard)
        return replace(report, age_seconds=waited) if waited > self._deadline_seconds else report

    def _missed_by_silence(self, child: Conversation) -> Missed:
        if self._missing_since is None:
            self._missing_since = child.asked_at
        return Missed(
            reason="nvml_hung",
            since=self._missing_since,
            detail=hung_sentence(self._deadline_seconds),
        )

    def _missed_without_child(self, now: float) -> Missed:
        if self._stuck is None:
            return self._missed_by_death(now)
        if self._missing_since is None:
            self._missing_since = now
        return Missed(reason="nvml_hung", since=self._missing_since, detail=stuck_sentence(self._stuck))

    def _missed_by_death(self, now: float) -> Missed:
        if self._missing_since is None:
            self._missing_since = now
        return Missed(reason="nvml_child_died", since=self._missing_since, detail=self._death)


def _is_worth_reopening(report: GpuReport) -> bool:
    """Whether a lost GPU may be found again, and none would hang when it is asked, or wake from its sleep."""
    silent = any(each.code == "gpu_silent" for gpu in report.gpus for each in gpu.reasons)
    asleep = any(gpu.asleep for gpu in report.gpus)
    return not silent and not asleep and any(gpu.health is Health.LOST for gpu in report.gpus)
