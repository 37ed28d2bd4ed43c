"""Requests to the fleet and the futures of their responses, within the trace of the caller.

A response arrives once the changes that it depends on are stored.
"""

import asyncio
import itertools
import re
from collections.abc import Callable, Iterable, Iterator
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

_TRACE_ID = re.compile(r"[!-~]{1,128}")
_TRACEPARENT = re.compile(
    r"(?!ff)[0-9a-f]{2}-(?!0{32})(?P<trace>[0-9a-f]{32})-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}(-.*)?"
)
"""W3C Trace Context: version, trace, parent, flags; what later versions append is not ours to read."""
_trace_id: ContextVar[str | None] = ContextVar("trace_id", default=None)


class FleetRequests:
    """Sends numbered requests to one fleet; the effects executor sets their answers."""

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

    def send(self, request: Callable[[int], OperatorRequest]) -> asyncio.Future[Result]:
        """Send the request that `request` makes of its number, within the caller's trace.

        `selected` receives how long the fleet took to choose a slot.
        """
        if not self._loop.running:
            raise RuntimeError("the registry does not run: await start() first")
        ref = next(self._refs)
        answer: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
        self._answers[ref] = answer
        sent, trace_id = request(ref), current_trace_id()
        event = sent if trace_id is None else Traced(sent, trace_id)
        if isinstance(sent, ClaimRequested):
            self._selected(self._loop.timed(event))
        else:
            self._loop.handle(event)
        return answer


def as_refusal(result: Result) -> Refusal | None:
    """Return a refusal, or None where the request is done."""
    return result if isinstance(result, Refusal) else None


def as_placement(result: Result, clock: Clock) -> Placement | NoAvailableNode | Refusal:
    """Return the slot of a job, or why it has none."""
    if isinstance(result, Claim):
        return placement(result, clock)
    if isinstance(result, NoAvailableNode | Refusal):
        return result
    raise RuntimeError(f"the fleet answered a claim with {result!r}; this is a bug")


def is_trace_id(text: str) -> bool:
    """Whether a text can be a trace id: 1 to 128 printable characters of ASCII, no spaces."""
    return _TRACE_ID.fullmatch(text) is not None


def trace_id_of(headers: Iterable[tuple[str, str]]) -> str | None:
    """Return the trace that a request names: `traceparent`, else `X-Request-Id`.

    A header that is malformed or sent twice names none; that is no reason to refuse a request.
    """
    values = [(name.lower(), value.strip()) for name, value in headers]
    parents = [value for name, value in values if name == "traceparent"]
    if len(parents) == 1 and (parent := _TRACEPARENT.fullmatch(parents[0])) is not None:
        return parent["trace"]
    requests = [value for name, value in values if name == "x-request-id"]
    return requests[0] if len(requests) == 1 and is_trace_id(requests[0]) else None


def current_trace_id() -> str | None:
    """Return the trace of this task; None outside of any."""
    return _trace_id.get()


@contextmanager
def caused_by(trace_id: str | None) -> Iterator[None]:
    """Log the events that this block causes with a trace id (§8); None for none. Raises `ValueError`."""
    if trace_id is not None and not is_trace_id(trace_id):
        raise ValueError(f"{trace_id!r} is no trace id: 1 to 128 printable characters of ASCII, no spaces")
    before = _trace_id.set(trace_id)
    try:
        yield
    finally:
        _trace_id.reset(before)
