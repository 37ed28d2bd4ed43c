"""Keeps a list of nodes current: read anew when the registry tells an event, not at every tick of a clock.

Figures that no event tells (ages of beats, jobs that nodes report) are read anew now and then. Where
there is no stream of events it looks every two seconds, and says so. Draws nothing.
"""

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from queue import Empty, SimpleQueue
from typing import Any, Protocol

from gpu_agent.cli.asking.api import Refused
from gpu_agent.cli.asking.following import Happening, Lost, Opened, SignOfLife, Told
from gpu_agent.cli.outcome import ExitCode, Failure

TICK_SECONDS = 1.0
POLL_SECONDS = 2.0
FIGURES_SECONDS = 10.0
FASTEST_SECONDS = 0.25
SHARE = 4.0
"""Reading a long list takes the registry's time: at the most every fifth second of it is ours."""
_NO_STREAM = (404, 405, 501)


class State(StrEnum):
    """How a list is kept current."""

    LIVE = "live"
    """By events."""
    POLLING = "polling"
    """By looking every so often."""
    GONE = "gone"
    """Not at all: the registry does not answer."""


@dataclass(frozen=True, slots=True)
class Standing:
    """How current the list is, in words too."""

    state: State
    words: str


LIVE = Standing(State.LIVE, "told by the registry as it happens")
Answer = Mapping[str, Any]


class View(Protocol):
    """Where the list is shown."""

    def draw(self, answer: Answer, standing: Standing) -> None:
        """Show a list, which may be the one that was shown before."""

    def over(self) -> bool:
        """Say whether nobody looks any more."""


@dataclass(frozen=True, slots=True)
class _Ended:
    failure: Failure


class Watch:
    """One list, kept current until it is interrupted; every method raises `Failure`."""

    def __init__(
        self, read: Callable[[], Answer], happenings: Callable[[], Iterator[Happening]], view: View
    ) -> None:
        self._read, self._happenings, self._view = read, happenings, view
        self._heard: SimpleQueue[Happening | _Ended] = SimpleQueue()
        self._hearing = LIVE
        """How it stands with the stream of events."""
        self._away: Standing | None = None
        """Why the last reading failed."""
        self._stale = False
        self._read_at = self._took = 0.0

    def run(self) -> None:
        """Read and draw until nobody looks any more."""
        answer = self._answer()
        threading.Thread(target=self._listen, name="events", daemon=True).start()
        while not self._view.over():
            self._view.draw(answer, self._away or self._hearing)
            self._hear(min(TICK_SECONDS, self._due() - time.monotonic()))
            if time.monotonic() >= self._due():
                answer = self._read_again() or answer

    def _answer(self) -> Answer:
        began = time.monotonic()
        try:
            answer = self._read()
        finally:
            self._read_at = time.monotonic()
            self._took = self._read_at - began
            self._stale = False
        self._away = None
        return answer

    def _read_again(self) -> Answer | None:
        try:
            return self._answer()
        except Failure as failure:
            if failure.code is not ExitCode.UNREACHABLE:
                raise
            self._away = _gone(str(failure))
            return None

    def _due(self) -> float:
        if self._stale:
            return self._read_at + max(FASTEST_SECONDS, SHARE * self._took)
        current = self._hearing is LIVE and self._away is None
        return self._read_at + (FIGURES_SECONDS if current else POLL_SECONDS)

    def _listen(self) -> None:
        try:
            for happening in self._happenings():
                self._heard.put(happening)
        except Failure as failure:
            self._heard.put(_Ended(failure))

    def _hear(self, seconds: float) -> None:
        try:
            self._take(self._heard.get(timeout=max(0.0, seconds)))
            while True:
                self._take(self._heard.get_nowait())
        except Empty:
            pass

    def _take(self, heard: Happening | _Ended) -> None:
        match heard:
            case Told():
                self._stale = True
            case Opened():
                self._stale, self._hearing = True, LIVE
            case Lost(why):
                self._hearing = _gone(why)
            case SignOfLife():
                pass
            case _Ended(failure):
                self._hearing = _without_events(failure)


def _gone(why: str) -> Standing:
    return Standing(State.GONE, f"the registry has gone ({why.partition('. ')[0]}); waiting for it")


def _without_events(failure: Failure) -> Standing:
    """Without a stream of events, look every so often; anything else ends the watch."""
    if not isinstance(failure, Refused) or failure.problem.status not in _NO_STREAM:
        raise failure
    return Standing(State.POLLING, f"no stream of events here: looking every {POLL_SECONDS:g} s instead")
