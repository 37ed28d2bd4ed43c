"""Questions to the fleet that wait for an answer, which comes once what it stands behind is kept.

Numbers the questions; reads no answer but to name what it is.
"""

import asyncio
import itertools
from collections.abc import Callable

from gpu_agent.registry.actions import Refusal, Result
from gpu_agent.registry.dispatch.verdict import NoAvailableNode
from gpu_agent.registry.events import Asked, ClaimAsked, Traced
from gpu_agent.registry.job import Claim
from gpu_agent.server.clock import Clock
from gpu_agent.server.loop import FleetLoop
from gpu_agent.server.tracing import current_trace_id
from gpu_agent.server.viewing import placement
from gpu_agent.server.views import Placement


class Asking:
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

    def ask(self, asking: Callable[[int], Asked]) -> asyncio.Future[Result]:
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
        if isinstance(asked, ClaimAsked):
            self._selected(self._loop.timed(event))
        else:
            self._loop.handle(event)
        return answer


def refusal(result: Result) -> Refusal | None:
    """Return a refusal, or None where what was asked is done."""
    return result if isinstance(result, Refusal) else None


def placed(result: Result, clock: Clock) -> Placement | NoAvailableNode | Refusal:
    """Return the place that a job was given, or why it has none."""
    if isinstance(result, Claim):
        return placement(result, clock)
    if isinstance(result, NoAvailableNode | Refusal):
        return result
    raise RuntimeError(f"the fleet answered for a place with {result!r}; this is a bug")
