"""Requests to the fleet: the futures of their answers, what an answer means, and the trace of the caller.

An answer arrives once the changes that it depends on are stored.
"""

import asyncio
import itertools
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from gpu_agent.registry.actions import Refusal, Result
from gpu_agent.registry.dispatch.exclusions import NoAvailableNode
from gpu_agent.registry.events import OperatorRequest, Traced
from gpu_agent.registry.job import Claim
from gpu_agent.server.clock import Clock
from gpu_agent.server.views import placement
from gpu_agent.wire.api import Placement

_TRACE_ID = re.compile(r"[!-~]{1,128}")
_TRACEPARENT = re.compile(
    r"(?!ff)[0-9a-f]{2}-(?!0{32})(?P<trace>[0-9a-f]{32})-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}(-.*)?"
)
"""W3C Trace Context: version, trace, parent, flags; what later versions append is not ours to read."""
_trace_id: ContextVar[str | None] = ContextVar("trace_id", default=None)


class PendingRequests:
    """The requests that wait for their answers, by number."""

    def __init__(self) -> None:
        self._numbers = itertools.count(1)
        self._answers: dict[int, asyncio.Future[Result]] = {}

    def add(self) -> tuple[int, asyncio.Future[Result]]:
        """Return the number of a new request, and the future of its answer."""
        number = next(self._numbers)
        answer = self._answers[number] = asyncio.get_running_loop().create_future()
        return number, answer

    def resolve(self, number: int, result: Result) -> None:
        """Set an answer; an answer that is not awaited any more is dropped."""
        answer = self._answers.pop(number, None)
        if answer is not None and not answer.done():
            answer.set_result(result)

    def cancel_all(self) -> None:
        """Cancel all that wait, because the registry stops."""
        for answer in self._answers.values():
            answer.cancel()


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


def within_trace(request: OperatorRequest) -> OperatorRequest | Traced:
    """Return a request as the fleet receives it: with the trace of this task, where there is one."""
    trace_id = current_trace_id()
    return request if trace_id is None else Traced(request, trace_id)


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
