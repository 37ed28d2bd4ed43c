"""When the agent runs its admission checks, and what it reports of them (§4).

They run once the GPUs have been read for the first time, on a GPU that is new or whose fault has cleared, and
all of them on request. Memory is copied on a GPU where the owner states a least bandwidth, once for each
request, and where an earlier result of the copies must be repeated. The GPUs are counted in every reading.
A result stays until the next one of the same check; each registration is followed by all of them.

A check runs only where nothing else does. The protocol does not tell a node which of its GPUs are claimed.
So a GPU counts as in use while a process computes on it, and every GPU does while a worker on this machine
has announced a job, or the registry counts a job in flight on this node. What could not run is run once that
ends. One check runs at a time. A GPU that sleeps is free: the copies wake it, and nothing else does. What the
driver did not say of it is checked once it is awake.
"""

import asyncio
import os
import threading
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator
from functools import partial
from pathlib import Path

from gpu_agent.probe.checks.judgement import ASLEEP, Expected, Result, judge_count, judge_reading
from gpu_agent.probe.checks.machine import (
    RunChild,
    check_gpu,
    real_child,
    run_hook,
    simulated_child,
    why_no_hook,
    why_not_checked,
)
from gpu_agent.probe.checks.process import CheckProcesses
from gpu_agent.records import dataclass, replace
from gpu_agent.runtime.logs import Logger
from gpu_agent.runtime.tasks import in_thread
from gpu_agent.wire.codes import NODE_SCOPE
from gpu_agent.wire.declaration import CHECKS_ROOM_BYTES
from gpu_agent.wire.inventory import Gpu, GpuReport, Health, Outcome
from gpu_agent.wire.messages import MAX_CHECK_DETAIL, MAX_CHECKS, NodeCheck

HOOK = "hook"
COPIES = "memory_bandwidth"
_NOT_WANTED = "it runs on request, or where a least bandwidth is expected"
_LOG = Logger("node.checks")

Key = tuple[str, str]
"""Name and scope of a check."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckState:
    """One check as the agent knows it; `ok` None: it has no result, and `detail` says why."""

    name: str
    scope: str
    ok: bool | None
    detail: str
    at: float
    """Unix time."""
    not_repeated: str | None = None
    """Why it has a result and was due again, and has not run since."""


class Checks:
    """The checks of this machine; all methods belong to one event loop."""

    def __init__(
        self,
        expected: Expected,
        *,
        sys_dir: Path,
        simulated: bool,
        jobs_in_flight: Callable[[], int],
        changed: Callable[[], Awaitable[None]],
    ) -> None:
        """`jobs_in_flight`: jobs announced here, or else counted by the registry. `changed` is awaited."""
        self._expected = expected
        self._sys_dir = sys_dir
        self._simulated = simulated
        self._jobs_in_flight = jobs_in_flight
        self._changed = changed
        self._processes = CheckProcesses(os.environ)
        self._states: dict[Key, CheckState] = {}
        self._written_of: tuple[CheckState, ...] = ()
        self._written: tuple[NodeCheck, ...] = ()
        """What is reported of these states: to find what fits takes longer than all else of a reading."""
        self._report: GpuReport | None = None
        self._health: dict[str, Health] = {}
        self._due: set[str] = set()
        """The GPUs that must be checked, and `NODE_SCOPE` for the hook."""
        self._due_copies: set[str] = set()
        """The GPUs among them on which memory is copied even without a least bandwidth."""
        self._asleep: set[str] = set()
        """The GPUs that slept when they were checked: what is lacking is checked once they are awake."""
        self._reported: tuple[NodeCheck, ...] = ()
        self._wake = asyncio.Event()
        self._stop = threading.Event()

    @property
    def states(self) -> tuple[CheckState, ...]:
        """All that is known, also why checks were not run."""
        return tuple(self._states.values())

    @property
    def results(self) -> tuple[NodeCheck, ...]:
        """What a heartbeat reports: what fits, failed checks first."""
        if self._written_of != self.states:
            done = [state for state in self.states if state.ok is not None]
            done.sort(key=lambda state: (state.ok, state.scope != NODE_SCOPE))
            self._written_of, self._written = self.states, tuple(_fitting(done))
        return self._written

    @property
    def _results(self) -> set[Key]:
        return {key for key, state in self._states.items() if state.ok is not None}

    @property
    def are_due(self) -> bool:
        """Whether a check waits, such as for a job to end."""
        return bool(self._due)

    def apply(self, expected: Expected) -> None:
        """Expect something else from now on, and check it."""
        if expected != self._expected:
            self._expected = expected
            self._due_copies |= {uuid for name, uuid in self._results if name == COPIES}
            self._states.clear()
            self.request(copies=False)

    def request(self, *, copies: bool = True) -> None:
        """Run all checks again, once nothing is in their way."""
        gpus = set() if self._report is None else {gpu.uuid for gpu in self._report.checked}
        self._due |= {NODE_SCOPE, *gpus}
        if copies:
            self._due_copies |= gpus
        self._count(again=True)
        self._wake.set()

    def observe(self, report: GpuReport) -> None:
        """Take in a reading: which GPUs are new, which have recovered, and which are free now."""
        if report.outcome is not Outcome.OK or not report.gpus:
            return
        first, self._report = self._report is None, report
        if first:
            self._due.add(NODE_SCOPE)
        self._count()
        gpus = {gpu.uuid: gpu for gpu in report.checked}
        for uuid, gpu in gpus.items():
            before = self._health.get(uuid)
            if before is None or (before is not Health.OK and gpu.health is Health.OK):
                self._due.add(uuid)
                if (COPIES, uuid) in self._results:
                    self._due_copies.add(uuid)
                if before is not None and self._why_not(gpu) is None:
                    self._repeat(uuid)
            elif uuid in self._asleep and not gpu.asleep:
                self._check_awake(gpu)
        self._health = {uuid: gpu.health for uuid, gpu in gpus.items()}
        self._due &= {NODE_SCOPE, *gpus}
        self._due_copies &= self._due
        self._asleep &= gpus.keys()
        self._states = {key: one for key, one in self._states.items() if key[1] in {NODE_SCOPE, *gpus}}
        if self._due:
            self._wake.set()

    async def run(self) -> None:
        """Run what is due until the task is cancelled, which asks a check that runs to end."""
        try:
            while True:
                await self._wake.wait()
                self._wake.clear()
                await self._check_gpus()
                await self._run_hook()
        finally:
            self._stop.set()

    async def _check_gpus(self) -> None:
        """Check the GPUs that are due and free, and report their results together.

        A node may become ready by the first results of a check (§4), so none is reported before the others.
        """
        found = dict[str, list[Result]]()
        for uuid in sorted(self._due - {NODE_SCOPE}):
            gpu = self._find(uuid)
            if gpu is None or not self._may_check(gpu):
                continue
            wanted = uuid in self._due_copies or self._expected.min_bandwidth_gb_s is not None
            self._due.discard(uuid)
            self._due_copies.discard(uuid)
            self._asleep.discard(uuid)
            if gpu.asleep:
                self._asleep.add(uuid)
            run = partial(
                check_gpu,
                gpu,
                run=self._child(),
                expected=self._expected,
                why_no_copies=None if wanted else _NOT_WANTED,
                stop=self._stop,
            )
            self._processes.was_refused = False  # where a fault is known, no process is started
            found[uuid] = await in_thread("check-gpu", run, deadline_seconds=None)
            if self._processes.was_refused:
                self._due.add(uuid)
                self._due_copies |= {uuid} if wanted else set()
        for uuid, results in found.items():
            names = {one.name for one in results}
            for key in [key for key in self._states if key[1] == uuid and key[0] not in names]:
                del self._states[key]
            for one in results:
                self._put(one)
        await self._report_changes()

    async def _run_hook(self) -> None:
        """Run the hook, where it is due."""
        report, expected = self._report, self._expected
        if report is None or NODE_SCOPE not in self._due:
            return
        why = self._why_no_hook(report)
        if why is None:
            self._due.discard(NODE_SCOPE)
        if expected.hook and why is not None:
            self._note(HOOK, NODE_SCOPE, why)
        elif expected.hook:
            run = partial(run_hook, self._processes, expected, self._stop)
            self._put(await in_thread("check-hook", run, deadline_seconds=None))
            if self._processes.was_refused:
                self._due.add(NODE_SCOPE)
        await self._report_changes()

    async def _report_changes(self) -> None:
        if self.results != self._reported:
            self._reported = self.results
            await self._changed()

    def _count(self, *, again: bool = False) -> None:
        """Count the GPUs; what is as before keeps its time, unless it was requested `again`."""
        for one in () if self._report is None else judge_count(self._report, self._expected):
            known = self._states.get((one.name, one.scope))
            if again or known is None or known.detail != one.detail:
                self._put(one)

    def _may_check(self, gpu: Gpu) -> bool:
        why = self._why_not(gpu)
        if why is None and (pid := self._processes.left_behind_pid) is not None:
            why = f"an earlier check, process {pid}, was asked to end and has not"
        if why is not None:
            self._note(COPIES, gpu.uuid, why)
        return why is None

    def _why_not(self, gpu: Gpu) -> str | None:
        if self._report is None:
            return "it was not read yet"
        return self._jobs_in_words() or why_not_checked(gpu, self._report)

    def _why_no_hook(self, report: GpuReport) -> str | None:
        if not self._expected.hook or self._expected.hook_while_in_use:
            return None
        return self._jobs_in_words() or why_no_hook(report)

    def _jobs_in_words(self) -> str | None:
        count = self._jobs_in_flight()
        number = "1 job is" if count == 1 else f"{count} jobs are"
        return f"{number} in flight on this machine" if count else None

    def _check_awake(self, gpu: Gpu) -> None:
        """Check what could not be read while a GPU slept, but no link again that was read under load."""
        self._asleep.discard(gpu.uuid)
        for one in judge_reading(gpu, self._expected):
            self._put(one)
        link = self._states.get(("pcie_link", gpu.uuid))
        if link is not None and (link.ok is None or link.detail == ASLEEP):
            self._due.add(gpu.uuid)

    def _find(self, uuid: str) -> Gpu | None:
        gpus = () if self._report is None else self._report.checked
        return next((gpu for gpu in gpus if gpu.uuid == uuid), None)

    def _child(self) -> RunChild:
        if self._simulated:
            return simulated_child
        return real_child(self._processes, seconds=self._expected.gpu_seconds, sys_dir=self._sys_dir)

    def _repeat(self, uuid: str) -> None:
        """A result from before a fault says nothing any more: until the next one the check has failed."""
        for key, state in self._states.items():
            if state.scope == uuid and state.ok is not None:
                detail = "to be repeated: the GPU has had a fault since"
                self._states[key] = replace(state, ok=False, detail=detail)

    def _put(self, one: Result) -> None:
        """Take a result in, and log it where it differs; where there is none, the last one stays."""
        before = self._states.get((one.name, one.scope))
        if before is not None and before.ok is not None and (one.ok is None or one.detail == ASLEEP):
            was_due = one.ok is None and _NOT_WANTED not in one.detail
            why = one.detail[:MAX_CHECK_DETAIL] if was_due else None
            self._states[one.name, one.scope] = replace(before, not_repeated=why)
            return
        state = CheckState(
            name=one.name,
            scope=one.scope,
            ok=one.ok,
            detail=one.detail[:MAX_CHECK_DETAIL],
            at=round(time.time(), 3),
        )
        self._states[one.name, one.scope] = state
        if before is None or before.ok is not one.ok:
            _log(state, recovers=before is not None and before.ok is False)

    def _note(self, name: str, scope: str, why: str) -> None:
        """Show why a check did not run, beside its last result if it has one."""
        known = self._states.get((name, scope))
        self._states[name, scope] = (
            replace(known, not_repeated=why)
            if known is not None and known.ok is not None
            else CheckState(name=name, scope=scope, ok=None, detail=f"waits: {why}", at=round(time.time(), 3))
        )


def _log(state: CheckState, *, recovers: bool) -> None:
    fields = {"check": state.name, "scope": state.scope, "detail": state.detail}
    if state.ok is None:
        _LOG.debug("check_not_run", **fields)
    elif not state.ok:
        _LOG.warning("check_failed", **fields)
    elif recovers:
        _LOG.info("check_passed", **fields)
    else:
        _LOG.debug("check_passed", **fields)


def _fitting(states: Iterable[CheckState]) -> Iterator[NodeCheck]:
    """Yield as many as a heartbeat has room for."""
    room = CHECKS_ROOM_BYTES
    for state in list(states)[:MAX_CHECKS]:
        check = NodeCheck(
            name=state.name, scope=state.scope, ok=bool(state.ok), detail=state.detail, at=state.at
        )
        room -= len(check.model_dump_json().encode()) + 1
        if room < 0:
            return
        yield check
