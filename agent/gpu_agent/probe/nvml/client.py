"""The daemon's NVML client: one child process, queried again and again, never awaited beyond a deadline.

`read` answers within its deadline whatever the driver does. A child that died is restarted with backoff. A
child that hangs gets time, then its stdin is closed and SIGTERM is sent, then it is left alone: no second child
is started beside it, nor beside one that an earlier agent or command left in the driver. SIGKILL is never used:
killing a process inside the driver has frozen GPUs. A late answer, or the child's end, is the recovery.
"""

import asyncio
import json
import subprocess
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

from gpu_agent.probe.health.reasons import REASONS, Clears
from gpu_agent.probe.health.tracker import MissedReading
from gpu_agent.probe.nvml.process import (
    CHILD_COMMAND,
    DEADLINE_SECONDS,
    close_stdin,
    death_sentence,
    hung_sentence,
    send_request,
    spawn,
    stuck_sentence,
)
from gpu_agent.probe.nvml.report import parse_answer
from gpu_agent.probe.nvml.stuck_child import CHILD_NAME, find_stuck_child
from gpu_agent.probe.stand_in import UNIDENTIFIED
from gpu_agent.wire.inventory import Gpu, GpuReport, Health, Outcome

# One running NVML child as the event loop sees it: an ask that is owed an answer, and an end.
#
# A thread listens to the child, because a pipe to a process stuck in the driver may block for
# ever; all it hears becomes a call in the loop. It decides nothing: `nvml` does.


_LINE_BYTES = 4 << 20
"""No answer is longer; what is, was not written by our child."""


class ChildConnection:
    """One child process, the thread that listens to it, and the answer that it owes."""

    def __init__(
        self,
        process: subprocess.Popen[bytes],
        loop: asyncio.AbstractEventLoop,
        ended: "Callable[[ChildConnection, int], None]",
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
            send_request(self.process, self._last_id, fresh=fresh, listen=True, silent=silent)
        return self.owed

    def leave(self) -> None:
        """Ask the child to end as soon as the driver lets it."""
        self.leaving = True
        close_stdin(self.process)

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
        answer = parse_answer(line)
        if answer is None:
            self._told(line)
        elif answer.id == self._last_id and self.owed is not None and not self.owed.done():
            self.owed.set_result(answer.report)

    def _over(self, returncode: int) -> None:
        close_stdin(self.process)
        self.gone.set()
        self._ended(self, returncode)
        if self.owed is not None and not self.owed.done():
            self.owed.set_result(None)


# The daemon's way to the NVIDIA driver: one child process, asked again and again, never waited for too
# long.
#
# `read` answers within its deadline whatever the driver does. A child that died is started
# again with backoff. A child that hangs is given time, then asked to end (its stdin closed,
# SIGTERM), then left alone: no other is started beside it, nor beside one that an earlier agent
# or command left behind, and SIGKILL is never used. Its late answer, or its end, is the recovery.
# Health, which needs a memory, is kept by `health`.


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


class NvmlClient:
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
        self._child: ChildConnection | None = None
        self._missing_since: float | None = None
        self._death = ""
        self._stuck: int | None = None
        """The process that somebody left behind in the driver."""
        self._restart_wait_seconds = 0.0
        self._restart_at = 0.0
        self._reopen_at: float | None = None
        self._heard = PendingEvents()

    async def read(self) -> GpuReport | MissedReading:
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

    async def _living_child(self, deadline: float) -> ChildConnection | None:
        """Return the child to ask; None while a death is being waited out."""
        loop = asyncio.get_running_loop()
        if self._child is not None and self._child.leaving:
            await self._child.gone_within(max(0.0, deadline - loop.time()))
        if self._child is not None and self._child.gone.is_set():
            self._child = None
        if self._child is None and loop.time() >= self._restart_at:
            stuck = await asyncio.to_thread(find_stuck_child, self._name)
            if self._child is None:  # else another read has started one meanwhile
                self._stuck = stuck
                self._child = self._started(loop) if stuck is None else None
        return self._child

    def _started(self, loop: asyncio.AbstractEventLoop) -> ChildConnection | None:
        try:
            process = spawn(self._command, env=self._env)
        except OSError as error:
            self._back_off(loop.time())
            self._death = f"The NVML child could not be started ({error})."
            return None
        return ChildConnection(process, loop, self._ended, told=self._heard.take)

    def _ended(self, child: ChildConnection, returncode: int) -> None:
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

    def _lose_patience(self, child: ChildConnection, now: float) -> None:
        if now - child.asked_at >= self._policy.end_hung_after_seconds:
            child.leave()
            child.process.terminate()

    def _good(self, child: ChildConnection, heard: GpuReport, *, asked_at: float) -> GpuReport:
        """Take an answer; what a late one says may be as old as the question."""
        now = asyncio.get_running_loop().time()
        self._missing_since = None
        self._restart_wait_seconds = 0.0
        if heard.outcome is not Outcome.OK:
            child.leave()  # a library once loaded stays as it was: the next read looks with fresh eyes
        if not _worth_reopening(heard):
            self._reopen_at = None
        elif self._reopen_at is None:
            self._reopen_at = now + self._policy.reopen_lost_after_seconds
        waited = now - asked_at
        report = self._heard.lay_into(heard)
        return replace(report, age_seconds=waited) if waited > self._deadline_seconds else report

    def _missed_by_silence(self, child: ChildConnection) -> MissedReading:
        if self._missing_since is None:
            self._missing_since = child.asked_at
        return MissedReading(
            reason="nvml_hung",
            since=self._missing_since,
            detail=hung_sentence(self._deadline_seconds),
        )

    def _missed_without_child(self, now: float) -> MissedReading:
        if self._stuck is None:
            return self._missed_by_death(now)
        if self._missing_since is None:
            self._missing_since = now
        return MissedReading(
            reason="nvml_hung", since=self._missing_since, detail=stuck_sentence(self._stuck)
        )

    def _missed_by_death(self, now: float) -> MissedReading:
        if self._missing_since is None:
            self._missing_since = now
        return MissedReading(reason="nvml_child_died", since=self._missing_since, detail=self._death)


def _worth_reopening(report: GpuReport) -> bool:
    """Whether a lost GPU may be found again, and none would hang when it is asked, or wake from its sleep."""
    silent = any(each.code == "gpu_silent" for gpu in report.gpus for each in gpu.reasons)
    asleep = any(gpu.asleep for gpu in report.gpus)
    return not silent and not asleep and any(gpu.health is Health.LOST for gpu in report.gpus)


# What NVML children told before they answered: events for the reading that comes next, and silent GPUs.
#
# A child tells of an event as soon as it has taken it from the driver, since no other child will hear
# of it again; its answer may never come. What was told stays here until a reading lists its GPU, and
# is told once. Which GPUs must not be asked is kept as it was told, for every later child, until this
# agent ends. It outlives every child, and judges nothing.
#
#     {"heard": {"GPU-1…": {"xid_119": 1}}, "silent": {"GPU-1…": {"index": 1, "why": "xid_119", ...}}}


Counts = dict[str, int]
"""Event code → how often it came."""


class PendingEvents:
    """The events that no reading has told of yet, by the GPU's UUID."""

    def __init__(self) -> None:
        self.silent: dict[str, object] = {}
        """The GPUs that must not be asked, each as its child told of it."""
        self._events: dict[str, Counts] = {}
        self._places: dict[str, int | None] = {}

    def take(self, line: bytes) -> None:
        """Take in a line from a child; what tells of no events is passed over."""
        said = _parse_line(line)
        self.silent.update(_mapping(said.get("silent")))
        for uuid, counts in _event_counts(said).items():
            known = self._events.setdefault(uuid, {})
            for code, count in counts.items():
                known[code] = known.get(code, 0) + count

    def lay_into(self, report: GpuReport) -> GpuReport:
        """Tell with a reading what was heard of the GPUs that it lists."""
        if report.outcome is not Outcome.OK:
            return report
        listed = {gpu.uuid for gpu in report.gpus}
        gpus = tuple(self._told(gpu, listed) for gpu in report.gpus)
        whole = (gpu for gpu in gpus if gpu.parent_uuid is None)  # slices have their GPU's index
        self._places = {gpu.uuid: gpu.index for gpu in whole}
        self._events = {
            uuid: kept for uuid, counts in self._events.items() if (kept := _outlive_return(counts))
        }
        return replace(report, gpus=gpus)

    def _told(self, gpu: Gpu, listed: set[str]) -> Gpu:
        counts = self._events.pop(gpu.uuid, None)
        if counts is None and gpu.uuid.startswith(UNIDENTIFIED):
            counts = self._events.pop(self._last_in_place(gpu.index, listed), None)
        return gpu if counts is None else replace(gpu, events=counts)

    def _last_in_place(self, index: int | None, listed: set[str]) -> str:
        """Name the GPU that was last seen where one now cannot say who it is."""
        seen = (uuid for uuid, place in self._places.items() if place == index and uuid not in listed)
        return next(seen, "")


def _outlive_return(counts: Counts) -> Counts:
    """Keep, of a GPU that is not listed, what its return does not end."""
    return {
        code: count
        for code, count in counts.items()
        if code not in REASONS or REASONS[code].clears is not Clears.RETURN
    }


def _parse_line(line: bytes) -> Mapping[str, object]:
    try:
        return _mapping(json.loads(line))
    except ValueError:
        return {}


def _event_counts(said: Mapping[str, object]) -> dict[str, Counts]:
    return {
        uuid: {code: count for code, count in _mapping(counts).items() if isinstance(count, int)}
        for uuid, counts in _mapping(said.get("heard")).items()
    }


def _mapping(value: object) -> Mapping[str, object]:
    return value if isinstance(value, dict) else {}
