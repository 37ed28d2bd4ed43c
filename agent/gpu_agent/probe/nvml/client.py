"""The daemon's NVML client: one child process, queried again and again, never awaited beyond a deadline.

`read` answers within its deadline whatever the driver does. A child that died is restarted with backoff. A
child that hangs gets time, then its stdin is closed and SIGTERM is sent, then it is left alone: no second
child is started beside it, nor beside one that an earlier agent or command left in the driver. SIGKILL is
never used: killing a process inside the driver has frozen GPUs. A late answer, or the child's end, is the
recovery.

A thread reads the child's output, because a pipe of a process stuck in the driver may block for ever; what it
reads becomes calls in the event loop. Events that a child sent before it answered stay in `PendingEvents`
until a reading lists their GPU. Health, which needs a memory, is the health tracker's.

With a `Watch` the child looks at the GPUs between two readings; only what a look finds wakes this process.
"""

import asyncio
import json
import subprocess
import threading
from collections.abc import Callable, Mapping, Sequence
from functools import partial

from gpu_agent.probe.health.reasons import REASONS, Clears
from gpu_agent.probe.health.tracker import MissedReading
from gpu_agent.probe.nvml.no_answer import (
    DEADLINE_SECONDS,
    death_sentence,
    hung_sentence,
    stuck_sentence,
)
from gpu_agent.probe.nvml.process import CHILD_COMMAND, close_stdin, send_request, spawn
from gpu_agent.probe.nvml.report import parse_answer
from gpu_agent.probe.nvml.stuck_child import CHILD_NAME, find_stuck_child
from gpu_agent.probe.stand_in import UNIDENTIFIED
from gpu_agent.records import dataclass, replace
from gpu_agent.wire.inventory import Gpu, GpuReport, Health, Outcome

_LINE_BYTES = 4 << 20
"""No answer is longer; what is, was not written by our child."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ChildPolicy:
    """How long to wait for the child, in seconds."""

    end_hung_after_seconds: float = 30.0
    """A child that has owed its answer this long is asked to end."""
    end_starting_after_seconds: float = 180.0
    """The same for an answer for which it opens the library.

    Where nothing else holds the driver open, as `nvidia-persistenced` does, each GPU starts then: seconds.
    """
    restart_seconds: float = 1.0
    """The first wait before a child that died is started again; it doubles with each death."""
    restart_ceiling_seconds: float = 60.0
    reopen_lost_after_seconds: float = 60.0
    """While a GPU is lost, the library is opened again this often: its old handle is never used again."""
    goodbye_seconds: float = 1.0
    """How long `close` waits for the child to end by itself, and half of it again after SIGTERM."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Watch:
    """What happens between a reading and the next one."""

    every_seconds: float
    """How often the child looks at the GPUs."""
    changed: Callable[[], None]
    """Called once a look found events, or a GPU that is lost, or when the child has ended: read again."""


class NvmlClient:
    """Reads all GPUs through a child process that it starts at the first read.

    All methods belong to one event loop. `read` may be called by several tasks at once: they share one
    request.
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
        """`name` is the process name by which a stuck child of another process is found."""
        self._name = name
        self._command = tuple(command)
        self._deadline_seconds = deadline_seconds
        self._env = env
        self._policy = policy or ChildPolicy()
        self._child: ChildConnection | None = None
        self._missing_since: float | None = None
        self._death = ""
        self._stuck_pid: int | None = None
        """A child of another agent or command that is stuck in the driver."""
        self._restart_wait_seconds = 0.0
        self._restart_at = 0.0
        self._reopen_at: float | None = None
        self._listed: set[str] = set()
        """The UUIDs of all GPUs that the driver has listed."""
        self._pending = PendingEvents()
        self._watch: Watch | None = None
        self._read_whole = False

    def read_whole_next(self) -> None:
        """Have the next request read also the values that change slowly (`readings.SLOW_READINGS`)."""
        self._read_whole = True

    def watch(self, watch: Watch | None) -> None:
        """Set what happens after the readings from now on. None: nothing."""
        self._watch = watch

    async def read(self) -> GpuReport | MissedReading:
        """Read all GPUs, or say within the deadline that they could not be read, and since when."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._deadline_seconds
        child = await self._living_child(deadline)
        if child is None:
            return self._missed_without_child(loop.time())
        if child.ending:
            return self._missed_by_silence(child)
        answer = child.answer or self._request(child, loop.time())
        requested_at = child.requested_at
        await asyncio.wait({answer}, timeout=max(0.0, deadline - loop.time()))
        if not answer.done():
            self._end_if_hung(child, loop.time())
            return self._missed_by_silence(child)
        if child.answer is answer:
            child.answer = None
        report = answer.result()
        if report is None:
            return self._missed_by_death(loop.time())
        return self._accept(child, report, requested_at=requested_at)

    async def close(self) -> None:
        """End the child if it ends in time; one that is stuck in the driver is left behind."""
        child, self._child = self._child, None
        if child is None:
            return
        child.end()
        if not await child.wait_ended(self._policy.goodbye_seconds):
            child.process.terminate()
            await child.wait_ended(self._policy.goodbye_seconds / 2)

    def _request(self, child: "ChildConnection", now: float) -> "asyncio.Future[GpuReport | None]":
        whole, self._read_whole = self._read_whole, False
        return child.request(
            {
                "events": True,
                "reopen": self._must_reopen(now),
                "whole": whole,
                "quarantined": self._pending.quarantined,
                "look_every": None if self._watch is None else self._watch.every_seconds,
            }
        )

    async def _living_child(self, deadline: float) -> "ChildConnection | None":
        """Return the child to query; None while the client waits before a restart, or for a stuck child."""
        loop = asyncio.get_running_loop()
        if self._child is not None and self._child.ending:
            await self._child.wait_ended(max(0.0, deadline - loop.time()))
        if self._child is not None and self._child.ended.is_set():
            self._child = None
        if self._child is None and loop.time() >= self._restart_at:
            stuck_pid = await asyncio.to_thread(find_stuck_child, self._name)
            if self._child is None:  # else another read has started one meanwhile
                self._stuck_pid = stuck_pid
                self._child = self._start(loop) if stuck_pid is None else None
        return self._child

    def _start(self, loop: asyncio.AbstractEventLoop) -> "ChildConnection | None":
        try:
            process = spawn(self._command, env=self._env)
        except OSError as error:
            self._back_off(loop.time())
            self._death = f"The NVML child could not be started ({error})."
            return None
        return ChildConnection(
            process, loop, on_end=self._on_end, on_line=self._pending.add, on_news=self._changed
        )

    def _on_end(self, child: "ChildConnection", returncode: int) -> None:
        self._death = death_sentence(returncode)
        if not child.ending:
            self._back_off(asyncio.get_running_loop().time())
            self._changed()

    def _changed(self) -> None:
        if self._watch is not None:
            self._watch.changed()

    def _back_off(self, now: float) -> None:
        doubled = max(self._policy.restart_seconds, self._restart_wait_seconds * 2)
        self._restart_wait_seconds = min(doubled, self._policy.restart_ceiling_seconds)
        self._restart_at = now + self._restart_wait_seconds

    def _must_reopen(self, now: float) -> bool:
        if self._reopen_at is None or now < self._reopen_at:
            return False
        self._reopen_at = None
        return True

    def _end_if_hung(self, child: "ChildConnection", now: float) -> None:
        policy = self._policy
        bound = policy.end_starting_after_seconds if child.starts_gpus else policy.end_hung_after_seconds
        if now - child.requested_at >= bound:
            child.end()
            child.process.terminate()

    def _accept(self, child: "ChildConnection", report: GpuReport, *, requested_at: float) -> GpuReport:
        """Accept an answer; a late one may be as old as its request."""
        now = asyncio.get_running_loop().time()
        self._missing_since = None
        self._restart_wait_seconds = 0.0
        if report.outcome is not Outcome.OK:
            child.end()  # a loaded library stays as it was: the next read starts a new child
        if not self._is_worth_reopening(report):
            self._reopen_at = None
        elif self._reopen_at is None:
            self._reopen_at = now + self._policy.reopen_lost_after_seconds
        waited = now - requested_at
        report = self._pending.merge_into(report)
        return replace(report, age_seconds=waited) if waited > self._deadline_seconds else report

    def _is_worth_reopening(self, report: GpuReport) -> bool:
        """Whether a GPU that is lost, or listed no more, may be found, and none would hang or wake by that.

        An open library does not notice a GPU that is added.
        """
        whole = {gpu.uuid for gpu in report.gpus if gpu.parent_uuid is None}
        listed = {uuid for uuid in whole if not uuid.startswith(UNIDENTIFIED)}
        missing = self._listed - listed
        self._listed |= listed
        quarantined = any(each.code == "gpu_silent" for gpu in report.gpus for each in gpu.reasons)
        asleep = any(gpu.asleep for gpu in report.gpus)
        lost = bool(missing) or any(gpu.health is Health.LOST for gpu in report.gpus)
        return report.outcome is Outcome.OK and lost and not quarantined and not asleep

    def _missed_by_silence(self, child: "ChildConnection") -> MissedReading:
        if self._missing_since is None:
            self._missing_since = child.requested_at
        return MissedReading(
            reason="nvml_hung",
            since=self._missing_since,
            detail=hung_sentence(self._deadline_seconds),
        )

    def _missed_without_child(self, now: float) -> MissedReading:
        if self._stuck_pid is None:
            return self._missed_by_death(now)
        if self._missing_since is None:
            self._missing_since = now
        return MissedReading(
            reason="nvml_hung", since=self._missing_since, detail=stuck_sentence(self._stuck_pid)
        )

    def _missed_by_death(self, now: float) -> MissedReading:
        if self._missing_since is None:
            self._missing_since = now
        return MissedReading(reason="nvml_child_died", since=self._missing_since, detail=self._death)


class ChildConnection:
    """One child process, the thread that reads its output, and the answer that it owes."""

    def __init__(
        self,
        process: subprocess.Popen[bytes],
        loop: asyncio.AbstractEventLoop,
        *,
        on_end: "Callable[[ChildConnection, int], None]",
        on_line: Callable[[bytes], None],
        on_news: Callable[[], None],
    ) -> None:
        """`on_line` is called with each line that is no answer, even if the answer never comes.

        After it, `on_news` is called where no answer is owed: then a look found what the line says.
        """
        self.process = process
        self.answer: asyncio.Future[GpuReport | None] | None = None
        self.requested_at = 0.0
        self.starts_gpus = True
        """Whether it opens the library for the answer that it owes."""
        self.ending = False
        self.ended = asyncio.Event()
        self._loop = loop
        self._on_end = on_end
        self._on_line = on_line
        self._on_news = on_news
        self._last_id = 0
        reader = threading.Thread(target=self._read_output, name="nvml-child-reader", daemon=True)
        reader.start()

    def request(self, more: Mapping[str, object]) -> asyncio.Future[GpuReport | None]:
        """Request one reading; the future holds None when the child ends instead of answering."""
        self.answer = self._loop.create_future()
        self.requested_at = self._loop.time()
        self._last_id += 1
        self.starts_gpus = self._last_id == 1 or bool(more.get("reopen"))
        if self.ended.is_set():
            self.answer.set_result(None)
        else:
            send_request(self.process, self._last_id, more)
        return self.answer

    def end(self) -> None:
        """Ask the child to end as soon as the driver lets it."""
        self.ending = True
        close_stdin(self.process)

    async def wait_ended(self, seconds: float) -> bool:
        """Wait so long for the child's end; True when it has ended."""
        try:
            async with asyncio.timeout(seconds):
                await self.ended.wait()
        except TimeoutError:
            return False
        return True

    def _read_output(self) -> None:
        """Pass every line, and the end, to the loop. Runs in a thread, blocked as long as the driver is."""
        stdout = self.process.stdout
        if stdout is not None:
            while line := stdout.readline(_LINE_BYTES):
                self._call_in_loop(partial(self._handle_line, line))
            stdout.close()
        self._call_in_loop(partial(self._handle_end, self.process.wait()))

    def _call_in_loop(self, callback: Callable[[], None]) -> None:
        try:
            self._loop.call_soon_threadsafe(callback)
        except RuntimeError:
            return  # the loop is closed: there is nothing left to inform

    def _handle_line(self, line: bytes) -> None:
        answer = parse_answer(line)
        if answer is None:
            self._on_line(line)
            if self.answer is None or self.answer.done():
                self._on_news()
        elif answer.id == self._last_id and self.answer is not None and not self.answer.done():
            self.answer.set_result(answer.report)

    def _handle_end(self, returncode: int) -> None:
        close_stdin(self.process)
        self.ended.set()
        self._on_end(self, returncode)
        if self.answer is not None and not self.answer.done():
            self.answer.set_result(None)


Counts = dict[str, int]
"""Event code → how often it came."""


class PendingEvents:
    """Events that no reading has reported yet, by the GPU's UUID; it outlives every child.

    A child sends events as soon as it has taken them from the driver, because no other child gets them again,
    and its answer may never come. Quarantined GPUs are remembered for every later child.

        {"events": {"GPU-1…": {"xid_119": 1}}, "quarantined": {"GPU-1…": {"index": 1, "why": "xid_119", ...}}}
    """

    def __init__(self) -> None:
        self.quarantined: dict[str, object] = {}
        """The GPUs that must not be queried, each as its child described it."""
        self._events: dict[str, Counts] = {}
        self._indices: dict[str, int | None] = {}

    def add(self, line: bytes) -> None:
        """Add the events of a line from a child; any other line is ignored."""
        sent = _parse_line(line)
        self.quarantined.update(_mapping(sent.get("quarantined")))
        for uuid, counts in _event_counts(sent).items():
            known = self._events.setdefault(uuid, {})
            for code, count in counts.items():
                known[code] = known.get(code, 0) + count

    def merge_into(self, report: GpuReport) -> GpuReport:
        """Add the pending events to the GPUs that a reading lists; each is reported once."""
        if report.outcome is not Outcome.OK:
            return report
        listed = {gpu.uuid for gpu in report.gpus}
        gpus = tuple(self._with_events(gpu, listed) for gpu in report.gpus)
        whole = (gpu for gpu in gpus if gpu.parent_uuid is None)  # MIG devices have their GPU's index
        self._indices = {gpu.uuid: gpu.index for gpu in whole}
        remaining = ((uuid, _outlive_return(counts)) for uuid, counts in self._events.items())
        self._events = {uuid: counts for uuid, counts in remaining if counts}
        return replace(report, gpus=gpus)

    def _with_events(self, gpu: Gpu, listed: set[str]) -> Gpu:
        counts = self._events.pop(gpu.uuid, None)
        if counts is None and gpu.uuid.startswith(UNIDENTIFIED):
            counts = self._events.pop(self._last_at_index(gpu.index, listed), None)
        return gpu if counts is None else replace(gpu, events=counts)

    def _last_at_index(self, index: int | None, listed: set[str]) -> str:
        """The UUID of the GPU that was last at an index where the GPU is now unidentified."""
        seen = (uuid for uuid, at in self._indices.items() if at == index and uuid not in listed)
        return next(seen, "")


def _outlive_return(counts: Counts) -> Counts:
    """The events, of a GPU that is not listed, that its return does not clear."""
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


def _event_counts(sent: Mapping[str, object]) -> dict[str, Counts]:
    return {
        uuid: {code: count for code, count in _mapping(counts).items() if isinstance(count, int)}
        for uuid, counts in _mapping(sent.get("events")).items()
    }


def _mapping(value: object) -> Mapping[str, object]:
    return value if isinstance(value, dict) else {}
