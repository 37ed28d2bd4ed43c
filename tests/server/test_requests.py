""""""

import asyncio
from collections.abc import Callable

import pytest

from gpu_agent.registry.actions import Refusal, Result
from gpu_agent.registry.dispatch.refusals import NoAvailableNode
from gpu_agent.registry.events import ClaimRequested, Event, ReleaseRequested, Traced
from gpu_agent.registry.job import Claim, Job
from gpu_agent.server.clock import Clock
from gpu_agent.server.requests import (
    FleetRequests,
    as_placement,
    as_refusal,
    caused_by,
    current_trace_id,
    is_trace_id,
)
from gpu_agent.wire.api import Placement


class Loop:
    """A fake fleet loop that records its events."""

    running = True

    def __init__(self) -> None:
        self.events: list[Event] = []

    def handle(self, event: Event) -> None:
        self.events.append(event)

    def timed(self, event: Event) -> float:
        self.handle(event)
        return 0.25


def asked(loop: Loop, took: Callable[[float], None] = lambda _: None) -> FleetRequests:
    return FleetRequests(loop, {}, selected=took)  # type: ignore[arg-type] # all that it needs of a loop


async def test_a_request_has_a_number_of_its_own_under_which_its_answer_is_awaited() -> None:
    answers: dict[int, asyncio.Future[Result]] = {}
    loop = Loop()
    asking = FleetRequests(loop, answers, selected=lambda _: None)  # type: ignore[arg-type] # as above
    first, second = (asking.send(lambda ref: ReleaseRequested(ref, "job-1")) for _ in range(2))
    assert loop.events == [ReleaseRequested(1, "job-1"), ReleaseRequested(2, "job-1")]
    answers[2].set_result(None)
    assert await second is None
    assert not first.done()


async def test_the_time_to_choose_a_slot_is_reported_and_no_other() -> None:
    took: list[float] = []
    asking = asked(Loop(), took.append)
    asking.send(lambda ref: ReleaseRequested(ref, "job-1"))
    asking.send(lambda ref: ClaimRequested(ref, Job(job_id="job-1")))
    assert took == [0.25]


async def test_a_request_within_a_trace_carries_its_id() -> None:
    loop, took = Loop(), list[float]()
    with caused_by("trace-1"):
        asked(loop, took.append).send(lambda ref: ClaimRequested(ref, Job(job_id="job-1")))
    assert loop.events == [Traced(ClaimRequested(1, Job(job_id="job-1")), "trace-1")]
    assert took == [0.25]


async def test_a_request_to_a_registry_that_does_not_run_is_an_error() -> None:
    loop = Loop()
    loop.running = False
    with pytest.raises(RuntimeError, match="await start"):
        asked(loop).send(lambda ref: ReleaseRequested(ref, "job-1"))


def test_only_a_refusal_counts_as_refusal() -> None:
    assert as_refusal(None) is None
    refused = Refusal("X", "no")
    assert as_refusal(refused) is refused


def test_a_placement_has_wall_time_and_any_other_answer_is_a_bug() -> None:
    clock = Clock(monotonic=lambda: 100.0, wall=lambda: 1_000_000.0)
    claim = Claim(
        job_id="job-1", node_id="node-1", gpu_uuids=(), endpoint=None, granted_at=90.0, expires_at=150.0
    )
    shown = as_placement(claim, clock)
    assert isinstance(shown, Placement)
    assert shown.expires_at == 1_000_050.0
    no_node = NoAvailableNode("job-1")
    assert as_placement(no_node, clock) is no_node
    with pytest.raises(RuntimeError, match="this is a bug"):
        as_placement(None, clock)


@pytest.mark.parametrize("text", ["a", "4bf92f3577b34da6a3ce929d0e0e4736", "req-7:eu/west", "x" * 128])
def test_a_printable_word_is_a_trace_id(text: str) -> None:
    assert is_trace_id(text)


@pytest.mark.parametrize("text", ["", "x" * 129, "a b", "a\nb", "a\0", "ä"])
def test_a_text_that_would_spoil_a_log_is_no_trace_id(text: str) -> None:
    assert not is_trace_id(text)
    with pytest.raises(ValueError, match="is no trace id"), caused_by(text):
        pass


def test_a_trace_lasts_for_its_block() -> None:
    assert current_trace_id() is None
    with caused_by("outer"):
        with caused_by("inner"):
            assert current_trace_id() == "inner"
        with caused_by(None):
            assert current_trace_id() is None
        assert current_trace_id() == "outer"
    assert current_trace_id() is None


async def test_concurrent_tasks_have_traces_of_their_own() -> None:
    async def asking(trace_id: str) -> str | None:
        with caused_by(trace_id):
            await asyncio.sleep(0)
            return current_trace_id()

    async with asyncio.TaskGroup() as group:
        asked = [group.create_task(asking(trace_id)) for trace_id in ("one", "two")]
    assert [task.result() for task in asked] == ["one", "two"]
