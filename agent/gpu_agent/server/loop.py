"""The fleet's loop: events in, actions carried out in order, and a timer for what time alone brings about.

Everything happens inside the caller's callback; a long list of actions is carried out in
slices, so that nobody else waits for it. Decides nothing.
"""

import asyncio
import itertools
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from math import inf
from typing import Protocol

from gpu_agent.registry.actions import Action
from gpu_agent.registry.events import Event, Saved, SaveFailed
from gpu_agent.server.clock import Clock

SLICE_SECONDS = 0.01
SHORTEST_SLEEP_SECONDS = 0.02
"""Deadlines that lie closer together are met together."""

FROZEN_SECONDS = 1.0
"""A waking this late means that the process or its machine stood still, not merely that it was busy."""

HEARING_SECONDS = 0.05
"""Time for at least one look at every socket."""

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


class FleetLoop:
    """Drives one fleet on the running event loop."""

    def __init__(
        self,
        machine: Machine,
        carry_out: Callable[[Action], Saved | SaveFailed | None],
        *,
        clock: Clock,
        scan_interval_seconds: float,
        lagged: Callable[[float], None],
    ) -> None:
        self._machine = machine
        self._carry_out = carry_out
        self._now = clock.monotonic
        self._scan_interval_seconds = scan_interval_seconds
        self._lagged = lagged
        self._lists: deque[Iterator[Action]] = deque()
        self._carrying = False
        self._wake_at = inf
        self._hears_first = False
        """True while a late waking waits for what nodes said meanwhile."""
        self._timer: asyncio.TimerHandle | None = None
        self.running = False

    def start(self) -> None:
        """Begin to keep the fleet's deadlines."""
        self.running = True
        self._sleep()

    def stop(self) -> None:
        """Be deaf from now on; actions that wait to be carried out are dropped."""
        self.running = False
        self._lists.clear()
        if self._timer is not None:
            self._timer.cancel()

    def handle(self, event: Event) -> None:
        """Tell the fleet what happened, and carry out what it wants done about it."""
        if not self.running:
            return
        actions = self._machine.handle(event, self._now())
        if actions:
            self.act(actions)
            deadline = self._machine.deadline
            if deadline is not None and deadline < self._wake_at:
                self._sleep()

    def act(self, actions: Sequence[Action]) -> None:
        """Carry these out once all that came before is carried out."""
        self._lists.append(iter(actions))
        if not self._carrying:
            self._carry()

    def _carry(self) -> None:
        """Carry out what waits; what takes longer than a slice goes on after everybody else's turn."""
        self._carrying = True
        slice_ends = self._now() + SLICE_SECONDS
        for count in itertools.count(1):
            if not self._lists:
                break
            if count % _ACTIONS_BETWEEN_LOOKS == 0 and self._now() > slice_ends:
                asyncio.get_running_loop().call_soon(self._carry)
                return
            carried = False
            try:
                self._carry_one()
                carried = True
            finally:
                if not carried:  # what broke is dropped with its list; what comes later goes on
                    self._lists.popleft()
                    self._carrying = False
        self._carrying = False

    def _carry_one(self) -> None:
        action = next(self._lists[0], None)
        if action is None:
            self._lists.popleft()
            return
        outcome = self._carry_out(action)
        if outcome is None:
            return
        if isinstance(outcome, SaveFailed):
            self._lists.popleft()  # nothing that stood behind the save is told
        following = self._machine.handle(outcome, self._now())
        if following:
            self._lists.appendleft(iter(following))

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
            self._sleep()  # whatever went wrong: a registry whose clock stands judges nobody any more
