import asyncio
from collections.abc import Callable

import pytest

from gpu_agent.registry.actions import Refusal, Result
from gpu_agent.registry.dispatch.verdict import NoAvailableNode
from gpu_agent.registry.events import ClaimAsked, Event, ReleaseAsked, Traced
from gpu_agent.registry.job import Claim, Job
from gpu_agent.server.asking import Asking, placed, refusal
from gpu_agent.server.clock import Clock
from gpu_agent.server.tracing import caused_by
from gpu_agent.server.views import Placement


class Loop:
    """Stands for the fleet's loop: hears what is asked."""

    running = True

    def __init__(self) -> None:
        self.heard: list[Event] = []

    def handle(self, event: Event) -> None:
        self.heard.append(event)

    def timed(self, event: Event) -> float:
        self.handle(event)
        return 0.25


def asked(loop: Loop, took: Callable[[float], None] = lambda _: None) -> Asking:
    return Asking(loop, {}, selected=took)  # type: ignore[arg-type] # all that it needs of a loop


async def test_a_question_has_a_number_of_its_own_under_which_the_answer_is_awaited() -> None:
    answers: dict[int, asyncio.Future[Result]] = {}
    loop = Loop()
    asking = Asking(loop, answers, selected=lambda _: None)  # type: ignore[arg-type] # as above
    first, second = (asking.ask(lambda ref: ReleaseAsked(ref, "job-1")) for _ in range(2))
    assert loop.heard == [ReleaseAsked(1, "job-1"), ReleaseAsked(2, "job-1")]
    answers[2].set_result(None)
    assert await second is None
    assert not first.done()


async def test_what_choosing_a_place_took_is_told_and_nothing_else_is() -> None:
    took: list[float] = []
    asking = asked(Loop(), took.append)
    asking.ask(lambda ref: ReleaseAsked(ref, "job-1"))
    asking.ask(lambda ref: ClaimAsked(ref, Job(job_id="job-1")))
    assert took == [0.25]


async def test_what_is_asked_within_a_trace_names_it() -> None:
    loop, took = Loop(), list[float]()
    with caused_by("trace-1"):
        asked(loop, took.append).ask(lambda ref: ClaimAsked(ref, Job(job_id="job-1")))
    assert loop.heard == [Traced(ClaimAsked(1, Job(job_id="job-1")), "trace-1")]
    assert took == [0.25]


async def test_nothing_can_be_asked_of_a_registry_that_does_not_run() -> None:
    loop = Loop()
    loop.running = False
    with pytest.raises(RuntimeError, match="await start"):
        asked(loop).ask(lambda ref: ReleaseAsked(ref, "job-1"))


def test_only_a_refusal_is_one() -> None:
    assert refusal(None) is None
    refused = Refusal("X", "no")
    assert refusal(refused) is refused


def test_a_place_is_told_with_wall_time_and_an_answer_that_is_none_is_our_mistake() -> None:
    clock = Clock(monotonic=lambda: 100.0, wall=lambda: 1_000_000.0)
    claim = Claim(
        job_id="job-1", node_id="node-1", gpu_uuids=(), endpoint=None, granted_at=90.0, expires_at=150.0
    )
    told = placed(claim, clock)
    assert isinstance(told, Placement)
    assert told.expires_at == 1_000_050.0
    nobody = NoAvailableNode("job-1")
    assert placed(nobody, clock) is nobody
    with pytest.raises(RuntimeError, match="this is a bug"):
        placed(None, clock)
