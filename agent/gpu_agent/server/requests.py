"""Requests to the fleet and the futures of their responses, within the trace of the caller.

A response arrives once the changes that it depends on are stored.
"""

import asyncio
import itertools
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from gpu_agent.registry.actions import Refusal, Result
from gpu_agent.registry.dispatch.refusals import NoAvailableNode
from gpu_agent.registry.events import ClaimRequested, OperatorRequest, Traced
from gpu_agent.registry.job import Claim
from gpu_agent.server.clock import Clock
from gpu_agent.server.loop import FleetLoop
from gpu_agent.server.views import placement
from gpu_agent.wire.api import Placement

# Questions to the fleet that wait for an answer, which comes once what it stands behind is kept.
#
# Numbers the questions; reads no answer but to name what it is.


class FleetRequests:
    """Asks one fleet."""

    def __init__(
        self,
        loop: FleetLoop,
        answers: dict[int, asyncio.Future[Result]],
        *,
        selected: Callable[[float], None],
    ) -> None:
        self._loop = loop
        self._answers = answers
        self._selected = selected
        self._refs = itertools.count(1)

    def ask(self, asking: Callable[[int], OperatorRequest]) -> asyncio.Future[Result]:
        """Ask the fleet at once, within the trace of whoever asks.

        `selected` hears how long it took to choose a place.
        """
        if not self._loop.running:
            raise RuntimeError("the registry does not run: await start() first")
        ref = next(self._refs)
        answer: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
        self._answers[ref] = answer
        asked, trace_id = asking(ref), current_trace_id()
        event = asked if trace_id is None else Traced(asked, trace_id)
        if isinstance(asked, ClaimRequested):
            self._selected(self._loop.timed(event))
        else:
            self._loop.handle(event)
        return answer


def as_refusal(result: Result) -> Refusal | None:
    """Return a refusal, or None where what was asked is done."""
    return result if isinstance(result, Refusal) else None


def as_placement(result: Result, clock: Clock) -> Placement | NoAvailableNode | Refusal:
    """Return the place that a job was given, or why it has none."""
    if isinstance(result, Claim):
        return placement(result, clock)
    if isinstance(result, NoAvailableNode | Refusal):
        return result
    raise RuntimeError(f"the fleet answered for a place with {result!r}; this is a bug")


# Which trace of a caller's the work at hand belongs to, so that the events it causes can name it (§8).
#
# Follows the task that asks, and ends with it. Reads no header and writes no log.


_TRACE_ID = re.compile(r"[!-~]{1,128}")
_current: ContextVar[str | None] = ContextVar("trace_id", default=None)


def is_trace_id(text: str) -> bool:
    """Say whether a text can name a trace: 1 to 128 printable characters of ASCII, no spaces."""
    return _TRACE_ID.fullmatch(text) is not None


def current_trace_id() -> str | None:
    """Return the trace that this task asks within; None outside of any."""
    return _current.get()


@contextmanager
def caused_by(trace_id: str | None) -> Iterator[None]:
    """Let what is asked for in this block be noted under a trace; None for none. Raises `ValueError`."""
    if trace_id is not None and not is_trace_id(trace_id):
        raise ValueError(f"{trace_id!r} names no trace: 1 to 128 printable characters of ASCII, no spaces")
    before = _current.set(trace_id)
    try:
        yield
    finally:
        _current.reset(before)
