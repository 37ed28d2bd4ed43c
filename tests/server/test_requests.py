"""Requests to the fleet, their answers and their traces."""

import asyncio

import pytest

from gpu_agent.registry.actions import Refusal
from gpu_agent.registry.dispatch.exclusions import NoAvailableNode
from gpu_agent.registry.events import ClaimRequested, Traced
from gpu_agent.registry.job import Claim, Job
from gpu_agent.server.clock import Clock
from gpu_agent.server.requests import (
    PendingRequests,
    as_placement,
    as_refusal,
    caused_by,
    current_trace_id,
    is_trace_id,
    within_trace,
)
from gpu_agent.wire.api import Placement


async def test_a_request_has_a_number_of_its_own_under_which_its_answer_is_set() -> None:
    requests = PendingRequests()
    (first, waiting), (second, answer) = requests.add(), requests.add()
    assert first != second
    requests.resolve(second, None)
    assert await answer is None
    assert not waiting.done()


async def test_an_answer_that_is_not_awaited_any_more_is_dropped() -> None:
    requests = PendingRequests()
    number, answer = requests.add()
    answer.cancel()
    requests.resolve(number, None)
    requests.resolve(number, None)
    assert answer.cancelled()


async def test_requests_that_wait_are_cancelled_when_the_registry_stops() -> None:
    requests = PendingRequests()
    _, answer = requests.add()
    requests.cancel_all()
    assert answer.cancelled()


def test_a_request_within_a_trace_carries_its_id() -> None:
    request = ClaimRequested(1, Job(job_id="job-1"))
    assert within_trace(request) is request
    with caused_by("trace-1"):
        assert within_trace(request) == Traced(request, "trace-1")


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
