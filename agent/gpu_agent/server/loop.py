"""The fleet's loop: events in, actions carried out in order, and a timer for what time alone brings about.

What a list wants kept goes to the writer at once; the list waits for it, and every later list for
this one, so that nothing is told before it is kept and all is told in the order of its happening.
A long list is carried out in slices, so that nobody else waits for it. Decides nothing.
"""

import asyncio
import itertools
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from math import inf
from typing import Protocol

from gpu_agent.registry.actions import Action, Save, SendStatus
from gpu_agent.registry.events import Event, Saved, SaveFailed
from gpu_agent.server.clock import Clock
from gpu_agent.server.effects import Doing, Ready, unkept
from gpu_agent.server.writer import Writer

SLICE_SECONDS = 0.01
SHORTEST_SLEEP_SECONDS = 0.02
"""Deadlines that lie closer together are met together."""

FROZEN_SECONDS = 1.0
"""A waking this late means that the process or its machine stood still, not merely that it was busy."""

HEARING_SECONDS = 0.05
"""Time for at least one look at every socket."""

SETTLED_SECONDS = 5.0
"""Whoever waits for what is on its way waits no longer than this for a slow disk."""

_ACTIONS_BETWEEN_LOOKS = 16


class Machine(Protocol):
    """What the loop needs of a fleet."""

    @property
    def deadline(self) -> float | None:
        """When it wants to be woken, in monotonic seconds."""

    def handle(self, event: Event, now: float) -> Sequence[Action]:
        """Take in what happened."""

    def wake(self, now: float) -> Sequence[Action]:
        """Do what is due."""


class Hands(Protocol):
    """What the loop needs of those who carry actions out."""

    def make_ready(self, actions: Sequence[Action]) -> Ready:
        """Sort a list into what must be kept, and what is done once it is."""

    def carry_out(self, doing: Doing) -> None:
        """Do one thing."""


@dataclass(slots=True)
class _Course:
    """One list of actions on its way."""

    doings: Iterator[Doing]
    waits: bool = False
    """True until what it wants kept is kept, or cannot be."""
    told: asyncio.Future[None] | None = None
    """For those who wait until it is carried out."""

    def end(self) -> None:
        """Tell those who wait."""
        if self.told is not None and not self.told.done():
            self.told.set_result(None)


class FleetLoop:
    """Drives one fleet on the running event loop."""

    def __init__(
        self,
        machine: Machine,
        hands: Hands,
        writer: Writer,
        *,
        clock: Clock,
        scan_interval_seconds: float,
        lagged: Callable[[float], None],
    ) -> None:
        self._machine = machine
        self._hands = hands
        self._writer = writer
        self._now = clock.monotonic
        self._scan_interval_seconds = scan_interval_seconds
        self._lagged = lagged
        self._courses: deque[_Course] = deque()
        self._carrying = False
        self._wake_at = inf
        self._hears_first = False
        """True while a late waking waits for what nodes said meanwhile."""
        self._timer: asyncio.TimerHandle | None = None
        self.running = False
        self.undone = 0
        """How often something was undone because it could not be kept."""

    @property
    def wake_at(self) -> float | None:
        """When it looks after the fleet's deadlines next, in monotonic seconds; None while it keeps none."""
        return self._wake_at if self.running else None

    def start(self) -> None:
        """Begin to keep the fleet's deadlines."""
        self.running = True
        self._sleep()

    def stop(self) -> None:
        """Be deaf from now on. What waits to be kept is still told, as long as the writer goes on."""
        self.running = False
        if self._timer is not None:
            self._timer.cancel()

    def handle(self, event: Event) -> None:
        """Tell the fleet what happened, and carry out what it wants done about it."""
        if not self.running:
            return
        actions = self._machine.handle(event, self._now())
        if actions:  # a beat asks for nothing, as a rule
            self._follow(actions)

    def timed(self, event: Event) -> float:
        """Do as `handle` does; returns for how many seconds the fleet itself thought about it."""
        if not self.running:
            return 0.0
        began = self._now()
        actions = self._machine.handle(event, began)
        took = self._now() - began
        if actions:
            self._follow(actions)
        return took

    def act(self, actions: Sequence[Action]) -> None:
        """Carry these out once they are kept, and all that came before is carried out."""
        problem = self._writer.overwhelmed
        if problem is not None:
            self._turn_away(actions, problem)
            return
        ready = self._hands.make_ready(actions)
        course = _Course(iter(ready.doings))
        self._courses.append(course)
        if ready.batch is not None:
            course.waits = True
            self._writer.put(ready.batch, partial(self._answered, course, ready))
        elif not self._carrying:
            self._carry()

    async def settled(self, *, within_seconds: float = SETTLED_SECONDS) -> bool:
        """Wait until all that was handled so far is kept and told; False when that takes too long."""
        if not self._courses:
            return True
        last = self._courses[-1]
        if last.told is None:
            last.told = asyncio.get_running_loop().create_future()
        try:
            async with asyncio.timeout(within_seconds):
                await asyncio.shield(last.told)
        except TimeoutError:
            return False
        return True

    def _follow(self, actions: Sequence[Action]) -> None:
        self.act(actions)
        deadline = self._machine.deadline
        if deadline is not None and deadline < self._wake_at:
            self._sleep()

    def _answered(self, course: _Course, ready: Ready, problem: str | None) -> None:
        """Go on with a list of which is known now whether it was kept."""
        course.waits = False
        if problem is None:
            following = () if ready.save is None else self._machine.handle(Saved(ready.save), self._now())
        elif ready.save is None:
            course.doings = iter(unkept(ready.doings))  # what it tells stands on nothing that is not kept
            following = ()
        else:
            course.doings = iter(())  # nothing that stood behind the save is told
            following = self._undo(ready.save, problem)
        if following:
            self.act(following)
        if not self._carrying:  # many are answered at once: all go into the slices of one carrying
            self._carrying = True
            asyncio.get_running_loop().call_soon(self._carry)

    def _undo(self, save: int, problem: str) -> Sequence[Action]:
        self.undone += 1
        return self._machine.handle(SaveFailed(save, problem), self._now())

    def _turn_away(self, actions: Sequence[Action], problem: str) -> None:
        """Keep nothing of a list, and tell of it only what stands on nothing: the store takes no more.

        This overtakes what waits, so that the memory it takes stays bounded. Nodes' statuses come
        again by themselves.
        """
        for action in actions:
            if isinstance(action, Save):
                self._turn_away(self._undo(action.save, problem), problem)
                return
        for doing in unkept(self._hands.make_ready(actions).doings):
            if not isinstance(doing, SendStatus):
                self._hands.carry_out(doing)

    def _carry(self) -> None:
        """Carry out what waits for nothing; what takes longer than a slice goes on after others' turn."""
        self._carrying = True
        slice_ends = self._now() + SLICE_SECONDS
        for count in itertools.count(1):
            if not self._courses or self._courses[0].waits:
                break
            if count % _ACTIONS_BETWEEN_LOOKS == 0 and self._now() > slice_ends:
                asyncio.get_running_loop().call_soon(self._carry)
                return
            carried = False
            try:
                self._carry_one(self._courses[0])
                carried = True
            finally:
                if not carried:  # what broke is dropped with its list; what comes later goes on
                    self._courses.popleft().end()
                    self._carrying = bool(self._courses)
                    if self._carrying:
                        asyncio.get_running_loop().call_soon(self._carry)
        self._carrying = False

    def _carry_one(self, course: _Course) -> None:
        doing = next(course.doings, None)
        if doing is None:
            self._courses.popleft().end()
        else:
            self._hands.carry_out(doing)

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
        if lag > FROZEN_SECONDS and not self._hears_first:
            # We stood still, and beats wait unread in our sockets: hear them before judging anybody.
            self._hears_first = True
            self._sleep(at_least=HEARING_SECONDS)
            return
        self._hears_first = False
        try:
            actions = self._machine.wake(now)
            if actions:
                self.act(actions)
        finally:
            # Whatever went wrong: a registry whose clock stands judges nobody any more. And where much was
            # due at once it has done a part: the rest follows as soon as everybody else had a turn.
            deadline = self._machine.deadline
            self._sleep(at_least=0.0 if deadline is not None and deadline <= now else SHORTEST_SLEEP_SECONDS)
