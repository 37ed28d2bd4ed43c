"""The fleet's loop: events in, changes to the store, effects out once they are stored, and a timer (§4).

Every output of the fleet joins one queue. Its changes and events go to the store in one commit with all
others that wait. Its effects are carried out in order once they are stored, in slices, so that other tasks
run in between.

A save that fails is never undone. When a commit fails, or has no outcome in time, every waiting request is
refused with `REGISTRY_BUSY`, and the fleet learns that the store fails. The queue stays and is committed
again, until the store holds all of it: then the fleet learns that the store has recovered.
"""

import asyncio
import itertools
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from math import inf
from typing import Protocol

from gpu_agent.registry.actions import NOTHING, Output
from gpu_agent.registry.events import Event, Stored, StoreFailed, StoreRecovered
from gpu_agent.registry.persistence import split_answers
from gpu_agent.runtime.logs import Logger
from gpu_agent.server.effects import Executable, Prepared, merge
from gpu_agent.server.writer import Writer
from gpu_agent.store.base import Batch

SLICE_SECONDS = 0.01
SHORTEST_SLEEP_SECONDS = 0.02
"""Deadlines that lie closer together are met together."""

FROZEN_SECONDS = 1.0
"""A timer this late means that the process or its machine stood still, not merely that it was busy."""

CATCH_UP_SECONDS = 0.05
"""Time for at least one look at every socket, and at the store's thread."""

ANSWER_SECONDS = 2.0
"""An answer waits no longer than this for the store (§4); a commit without an outcome by then has failed."""

BEHIND_SECONDS = 0.5
"""Once an output has waited so long, no registration is taken in until the store has caught up: what it
holds by then is stored within the rest of `ANSWER_SECONDS`."""

RETRY_SECONDS = 1.0
"""After a failed commit the store is tried again this often."""

MOST_IN_A_COMMIT = 1000
"""More outputs would make the first wait for the last."""

MOST_DOCUMENTS_IN_A_COMMIT = 100
"""So many, and the events of all outputs, fit into one transaction of etcd; a larger commit is written there
twice. An output with more has a commit of its own."""

MOST_WAITING = 10_000
"""So many outputs wait for a store that fails; beyond that they are merged into one."""

_EFFECTS_BETWEEN_LOOKS = 16
_LOG = Logger("registry")


class Machine(Protocol):
    """What the loop needs of a fleet.

    A Protocol, since the loop drives others too: the simulation's fleet, which reports each step to its
    invariants, and the tests' scripted one.
    """

    @property
    def deadline(self) -> float | None:
        """When it wants to be woken, in monotonic seconds."""

    def handle(self, event: Event, now: float) -> Output:
        """Take in an event."""

    def wake(self, now: float) -> Output:
        """Do what is due."""


class Executor(Protocol):
    """What the loop needs of the one that carries effects out.

    A Protocol, since the simulation, the tests and the benchmarks carry effects out without sockets.
    """

    def prepare(self, output: Output) -> Prepared:
        """Sort an output into what is stored, and what is carried out then."""

    def execute(self, effect: Executable) -> None:
        """Carry out one effect."""


@dataclass(slots=True)
class _Entry:
    """One output in the queue."""

    effects: deque[Executable]
    batch: Batch | None
    """What must be stored before the effects are carried out; None once it is stored."""
    number: int | None
    put_at: float
    done: asyncio.Future[bool] | None = None
    """For those who wait until it is carried out."""

    def end(self, *, done: bool) -> None:
        if self.done is not None and not self.done.done():
            self.done.set_result(done)


class FleetLoop:
    """Drives one fleet on the running event loop."""

    def __init__(
        self,
        machine: Machine,
        executor: Executor,
        writer: Writer,
        *,
        monotonic: Callable[[], float],
        scan_interval_seconds: float,
        lagged: Callable[[float], None],
    ) -> None:
        self._machine = machine
        self._executor = executor
        self._writer = writer
        self._now = monotonic
        self._scan_interval_seconds = scan_interval_seconds
        self._lagged = lagged
        self._queue: deque[_Entry] = deque()
        self._unstored: deque[_Entry] = deque()
        """Those of the queue whose batch is not stored."""
        self._in_commit = 0
        """So many of the unstored, the first ones, are in the commit that runs."""
        self._commit_planned = False
        self._executing = False
        self._failing_since: float | None = None
        self._overdue: asyncio.TimerHandle | None = None
        self._later: asyncio.TimerHandle | None = None
        """Commits when it fires; until then nothing does."""
        self._wake_at = inf
        self._catches_up = False
        """True while a late waking waits for what nodes sent meanwhile."""
        self._timer: asyncio.TimerHandle | None = None
        self.running = False
        self.store_problem: str | None = None
        """Why nothing can be stored at the moment, as a sentence; None when all is well."""

    @property
    def wake_at(self) -> float | None:
        """When it looks after the fleet's deadlines next, in monotonic seconds; None while it keeps none."""
        return self._wake_at if self.running else None

    @property
    def unstored(self) -> int:
        """How many outputs wait for the store."""
        return len(self._unstored)

    def is_store_behind(self) -> bool:
        """Say whether what came next would wait too long for the store; False while it fails."""
        return (
            bool(self._unstored)
            and self.store_problem is None
            and self._now() - self._unstored[0].put_at > BEHIND_SECONDS
        )

    def start(self) -> None:
        """Begin to keep the fleet's deadlines."""
        self.running = True
        self._sleep()

    def stop(self) -> None:
        """Ignore every event from now on; what waits is stored and carried out until the writer is closed."""
        self.running = False
        if self._timer is not None:
            self._timer.cancel()

    def handle(self, event: Event) -> None:
        """Give the fleet an event, and see to what it leads to."""
        if self.running:
            output = self._machine.handle(event, self._now())
            if output is not NOTHING:  # what an ordinary heartbeat leads to
                self._follow(output)

    def timed(self, event: Event) -> float:
        """Do as `handle` does; returns how many seconds the fleet itself took."""
        if not self.running:
            return 0.0
        began = self._now()
        output = self._machine.handle(event, began)
        took = self._now() - began
        if output is not NOTHING:
            self._follow(output)
        return took

    def take(self, output: Output) -> None:
        """Store the changes of an output, then carry out its effects, after all that came before."""
        for answer in output.immediate:
            self._executor.execute(answer)
        if not output.changes and not output.effects:
            return
        prepared = self._executor.prepare(output)
        effects: Sequence[Executable] = prepared.effects
        if self.store_problem is not None:
            effects = self._refuse_waiting(effects)
        entry = _Entry(deque(effects), prepared.batch, output.number, self._now())
        self._queue.append(entry)
        if entry.batch is not None:
            self._unstored.append(entry)
            self._commit_soon()
        elif not self._executing:
            self._execute()
        if self.store_problem is not None and len(self._queue) > MOST_WAITING:
            self._merge_waiting()

    async def settled(self, *, within_seconds: float = ANSWER_SECONDS) -> bool:
        """Wait until all that was handled so far is stored and carried out; False if that takes too long."""
        if self.store_problem is not None:
            return False
        if not self._queue:
            return True
        last = self._queue[-1]
        if last.done is None:
            last.done = asyncio.get_running_loop().create_future()
        try:
            async with asyncio.timeout(within_seconds):
                return await asyncio.shield(last.done)
        except TimeoutError:
            return False

    async def flush(self, *, within_seconds: float) -> bool:
        """Store and carry out what waits, once no more events come; False if that fails or takes too long.

        While the store fails it is tried once more: what it deletes when it answers must not stay in it.
        """
        if self._later is not None:
            self._later.cancel()
            self._commit_at_last()
        try:
            async with asyncio.timeout(within_seconds):
                while self._queue:
                    last = self._queue[-1]
                    last.done = last.done or asyncio.get_running_loop().create_future()
                    if not await asyncio.shield(last.done):
                        return False
        except TimeoutError:
            return False
        return True

    def _follow(self, output: Output) -> None:
        self.take(output)
        deadline = self._machine.deadline
        if deadline is not None and deadline < self._wake_at:
            self._sleep()

    # Storing

    def _commit_soon(self) -> None:
        """Commit once the other callbacks of this turn have run: what they bring goes into the same commit.

        Else the first of many requests that arrive together has a commit of its own, for which the others
        wait.
        """
        if not self._commit_planned:
            self._commit_planned = True
            asyncio.get_running_loop().call_soon(self._commit_as_planned)

    def _commit_as_planned(self) -> None:
        self._commit_planned = False
        self._commit()

    def _commit(self) -> None:
        """Commit what waits, as much as fits into one commit, unless one runs or is due later."""
        if self._in_commit or self._later is not None or not self._unstored or self._writer.closed:
            return
        batches = self._next_batches()
        self._in_commit = len(batches)
        whole = len(batches) == len(self._unstored)
        self._writer.commit(batches, partial(self._committed, whole))
        self._watch_oldest()

    def _next_batches(self) -> list[Batch]:
        """Return what waits, as much as fits into one commit, and at least one."""
        batches: list[Batch] = []
        documents = 0
        for entry in itertools.islice(self._unstored, MOST_IN_A_COMMIT):
            batch = entry.batch or Batch()
            documents += len(batch.changes)
            if batches and documents > MOST_DOCUMENTS_IN_A_COMMIT:
                break
            batches.append(batch)
        return batches

    def _committed(self, whole: bool, problem: str | None) -> None:  # noqa: FBT001 - bound by `partial`
        """Go on after a commit; `whole` says that it held all that waited when it began."""
        count, self._in_commit = self._in_commit, 0
        if problem is not None:
            self._commit_in(RETRY_SECONDS)
            self._fail(problem)
            if not self.running:
                self._queue[-1].end(done=False)
            return
        number = None
        for _ in range(count):
            entry = self._unstored.popleft()
            entry.batch = None
            number = entry.number or number
        if not self._executing:  # many outputs are stored at once: all go into the slices of one execution
            self._executing = True
            asyncio.get_running_loop().call_soon(self._execute)
        if number is not None:
            self.take(self._machine.handle(Stored(number), self._now()))
        if whole and self._failing_since is not None:
            self._recover(self._failing_since)
        if count > 1 and self._writer.pause_seconds:
            self._commit_in(self._writer.pause_seconds)
        else:
            self._commit()

    def _commit_in(self, seconds: float) -> None:
        self._later = asyncio.get_running_loop().call_later(seconds, self._commit_at_last)

    def _commit_at_last(self) -> None:
        self._later = None
        self._commit()

    def _watch_oldest(self, *, again_in: float | None = None) -> None:
        """See to it that the oldest unstored output does not wait for too long unnoticed."""
        if self._overdue is not None or self.store_problem is not None or not self._unstored:
            return
        due = self._unstored[0].put_at + ANSWER_SECONDS
        seconds = max(0.0, due - self._now()) if again_in is None else again_in
        self._overdue = asyncio.get_running_loop().call_later(
            seconds, self._check_oldest, self._now() + seconds
        )

    def _check_oldest(self, planned_at: float) -> None:
        self._overdue = None
        now = self._now()
        if not self._unstored or self.store_problem is not None:
            return
        if now - planned_at > FROZEN_SECONDS:  # we stood still: the commit may have ended meanwhile
            self._watch_oldest(again_in=CATCH_UP_SECONDS)
        elif now < self._unstored[0].put_at + ANSWER_SECONDS:
            self._watch_oldest()
        else:
            self._fail(f"the store has not answered for {ANSWER_SECONDS:g} s; look at its disk, or at etcd")

    def _fail(self, problem: str) -> None:
        """Refuse every waiting request, once in an outage, and let the fleet know."""
        first, self.store_problem = self.store_problem is None, problem
        if not first:
            return
        self._failing_since = self._unstored[0].put_at
        _LOG.error("store_failing", problem=problem)
        oldest = self._unstored[0]
        for entry in itertools.dropwhile(lambda entry: entry is not oldest, self._queue):
            entry.effects = deque(self._refuse_waiting(entry.effects))
            entry.end(done=False)
        self.take(self._machine.handle(StoreFailed(problem), self._now()))
        if self.running:
            self._sleep()

    def _refuse_waiting(self, effects: Sequence[Executable]) -> Sequence[Executable]:
        """Refuse the requests that wait for these effects; returns the other effects."""
        refusals, rest = split_answers(effects, self.store_problem or "")
        for refusal in refusals:
            self._executor.execute(refusal)
        return rest

    def _recover(self, since: float) -> None:
        seconds = self._now() - since
        self._failing_since = self.store_problem = None
        _LOG.info("store_recovered", outage_seconds=round(seconds, 3))
        for entry in self._unstored:  # it has answered: what came meanwhile waits from now on
            entry.put_at = self._now()
        self.take(self._machine.handle(StoreRecovered(seconds), self._now()))
        if self.running:
            self._sleep()

    def _merge_waiting(self) -> None:
        """Bound the memory of a long outage: merge what waits behind the running commit, in order."""
        entries = list(self._queue)
        edge = self._unstored[max(self._in_commit - 1, 0)]
        place = next(place for place, entry in enumerate(entries) if entry is edge)
        if self._in_commit:
            place += 1  # the last entry that the commit holds
        ahead, rest = entries[:place], entries[place:]
        if not rest:
            return
        merged = merge(Prepared(entry.batch, tuple(entry.effects)) for entry in rest)
        numbers = [entry.number for entry in rest if entry.number is not None]
        one = _Entry(deque(merged.effects), merged.batch, max(numbers, default=None), put_at=rest[0].put_at)
        self._queue = deque([*ahead, one])
        self._unstored = deque(entry for entry in self._queue if entry.batch is not None)

    # Carrying out

    def _execute(self) -> None:
        """Carry out what is stored; what takes longer than a slice goes on after others had a turn.

        What an effect raises, this raises: the error reaches the caller of `handle`, or, after a commit, the
        event loop's exception handler, which logs it.
        """
        self._executing = True
        slice_ends = self._now() + SLICE_SECONDS
        for count in itertools.count(1):
            if not self._queue or self._queue[0].batch is not None:
                break
            if count % _EFFECTS_BETWEEN_LOOKS == 0 and self._now() > slice_ends:
                asyncio.get_running_loop().call_soon(self._execute)
                return
            effects = self._queue[0].effects
            if not effects:
                self._queue.popleft().end(done=True)
                continue
            effect, succeeded = effects.popleft(), False
            try:
                self._executor.execute(effect)
                succeeded = True
            finally:
                if not succeeded:  # only the effect that raised is lost: those behind it are executed next
                    asyncio.get_running_loop().call_soon(self._execute)
        self._executing = False

    # Waking

    def _sleep(self, *, at_least: float = SHORTEST_SLEEP_SECONDS) -> None:
        """Set the timer to the fleet's deadline, and never further than one scan interval ahead."""
        if self._timer is not None:
            self._timer.cancel()
        now, deadline = self._now(), self._machine.deadline
        seconds = self._scan_interval_seconds if deadline is None else deadline - now
        seconds = max(min(seconds, self._scan_interval_seconds), at_least)
        self._wake_at = now + seconds
        self._timer = asyncio.get_running_loop().call_later(seconds, self._wake)

    def _wake(self) -> None:
        now = self._now()
        lag = max(0.0, now - self._wake_at)
        self._lagged(lag)
        if lag > FROZEN_SECONDS and not self._catches_up:
            # We stood still, and heartbeats wait unread in our sockets: read them before anything times out.
            self._catches_up = True
            self._sleep(at_least=CATCH_UP_SECONDS)
            return
        self._catches_up = False
        try:
            self.take(self._machine.wake(now))
        finally:
            # Whatever went wrong: a registry whose clock stands decides no timeout any more. Where much
            # was due at once it has done a part: the rest follows as soon as everybody else had a turn.
            deadline = self._machine.deadline
            self._sleep(at_least=0.0 if deadline is not None and deadline <= now else SHORTEST_SLEEP_SECONDS)
