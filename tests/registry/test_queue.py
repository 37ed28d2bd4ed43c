"""Waiting for capacity: order, open requests, reservation against starvation (§5.4)."""
# ruff: noqa: ANN401 - parts of requests and heartbeats are passed through as they are

from collections.abc import Iterator
from typing import Any

import pytest

from gpu_agent.registry.actions import Answer, Refusal
from gpu_agent.registry.dispatch.exclusions import NoAvailableNode
from gpu_agent.registry.events import ClaimWaitEnded, CordonRequested, GpuCordonRequested
from gpu_agent.registry.job import Claim
from gpu_agent.wire.messages import ResourceUsage
from tests.registry.harness import Registry, figures, hardware, logged, of


class Waiters:
    """A registry with one node, and the answers of the requests that wait there."""

    def __init__(self, gpus: int = 1, **thresholds: Any) -> None:
        self.registry = Registry(**thresholds)
        self.gpus = gpus
        self.registry.register(hardware=hardware(gpus), max_concurrent_jobs=16)
        self.registry.heartbeats(3, gpus=figures(gpus))
        self.registry.heartbeats(1, every=1.0, gpus=figures(gpus))
        self.refs: dict[str, list[int]] = {}

    def ask(self, job_id: str, *, by: str | None = None, wait: float = 300.0, **demands: Any) -> None:
        demands.setdefault("gpu_count", 1)
        event = self.registry.claim_request(job_id, by=by, wait_seconds=wait, **demands)
        self.refs.setdefault(job_id, []).append(event.ref)
        self.registry.do(event)

    def answers(self, job_id: str) -> list[object]:
        given = {one.ref: one.result for one in of(Answer, self.registry.done)}
        return [given[ref] for ref in self.refs[job_id] if ref in given]

    def has_claim(self, job_id: str) -> bool:
        return any(isinstance(one, Claim) for one in self.answers(job_id))

    def pass_time(self, seconds: float) -> None:
        """Let time pass, with a heartbeat every 5 s."""
        end = self.registry.now + seconds
        while self.registry.now < end:
            self.registry.pass_time(min(5.0, end - self.registry.now))
            self.registry.heartbeat(gpus=figures(self.gpus), running_jobs=())

    def close(self, job_id: str) -> None:
        for ref in self.refs.pop(job_id):
            self.registry.do(ClaimWaitEnded(ref))

    def release(self, job_id: str) -> None:
        self.registry.release(job_id)

    def waiting(self) -> list[str]:
        return [one.job.job_id for one in self.registry.fleet.queue()]


def test_a_job_that_waits_gets_its_claim_within_a_second_of_a_release() -> None:
    fleet = Waiters()
    fleet.registry.claim("first", gpu_count=1)
    fleet.ask("second")
    fleet.pass_time(20.0)
    assert fleet.answers("second") == []
    fleet.release("first")
    fleet.registry.pass_time(1.0)
    assert fleet.has_claim("second")
    assert fleet.waiting() == []


def test_the_wait_ends_with_the_reasons() -> None:
    fleet = Waiters()
    fleet.registry.claim("first", gpu_count=1, ttl_seconds=600)
    fleet.ask("second", wait=10.0)
    fleet.pass_time(9.0)
    assert fleet.answers("second") == []
    fleet.pass_time(2.0)
    (refused,) = fleet.answers("second")
    assert isinstance(refused, NoAvailableNode)
    assert refused.counts


def test_priority_then_arrival_is_the_order() -> None:
    fleet = Waiters()
    fleet.registry.claim("first", gpu_count=1)
    for job_id, priority in (("low", -1), ("early", 0), ("late", 0), ("high", 5)):
        fleet.ask(job_id, priority=priority)
    assert fleet.waiting() == ["high", "early", "late", "low"]
    for last, job_id in zip(
        ("first", "high", "early", "late"), ("high", "early", "late", "low"), strict=True
    ):
        fleet.release(last)
        fleet.registry.pass_time(1.0)
        assert fleet.has_claim(job_id)


def test_freed_capacity_goes_to_the_queue_before_a_later_request() -> None:
    fleet = Waiters()
    fleet.registry.claim("first", gpu_count=1)
    fleet.ask("second")
    fleet.release("first")
    assert isinstance(fleet.registry.claim("later", gpu_count=1), NoAvailableNode)
    assert fleet.has_claim("second")


def test_a_later_job_may_overtake_one_that_cannot_be_placed() -> None:
    fleet = Waiters(gpus=2)
    fleet.registry.claim("first", gpu_count=1, ttl_seconds=600)
    fleet.ask("both", gpu_count=2)
    assert isinstance(fleet.registry.claim("one", gpu_count=1), Claim)


def test_a_second_request_joins_and_both_are_answered() -> None:
    fleet = Waiters()
    fleet.registry.claim("first", gpu_count=1)
    fleet.ask("second")
    fleet.ask("second")
    assert fleet.waiting() == ["second"]
    fleet.release("first")
    fleet.registry.pass_time(1.0)
    one, other = fleet.answers("second")
    assert one == other


def test_another_demand_or_owner_for_a_waiting_job_is_refused() -> None:
    fleet = Waiters()
    fleet.registry.claim("first", gpu_count=1)
    fleet.ask("second", by="ada")
    fleet.ask("second", by="bob")
    fleet.ask("second", by="ada", gpu_count=1, gpu_name="h100")
    assert [one.code for one in fleet.answers("second") if isinstance(one, Refusal)] == ["JOB_ID_IN_USE"] * 2


def test_nothing_is_granted_while_no_request_is_open_and_the_place_is_kept_for_half_a_minute() -> None:
    fleet = Waiters()
    fleet.registry.claim("first", gpu_count=1)
    fleet.ask("second")
    fleet.ask("third")
    fleet.close("second")
    fleet.release("first")
    fleet.registry.pass_time(1.0)
    assert fleet.has_claim("third")
    fleet.pass_time(20.0)
    fleet.ask("second")
    assert fleet.waiting() == ["second"]
    (entry,) = fleet.registry.fleet.queue()
    assert fleet.registry.now - entry.since > 20.0
    fleet.close("second")
    fleet.pass_time(31.0)
    assert fleet.waiting() == []


def test_what_no_node_could_ever_take_is_refused_at_once() -> None:
    fleet = Waiters(gpus=2)
    fleet.registry.claim("first", gpu_count=2, ttl_seconds=600)
    unplaceable: dict[str, dict[str, Any]] = {
        "too many GPUs": {"gpu_count": 3},
        "too many nodes": {"nodes": 2},
        "another model": {"required_models": ("llama",)},
        "another GPU": {"gpu_name": "B200"},
    }
    for job_id, demands in unplaceable.items():
        fleet.ask(job_id, **demands)
        (refused,) = fleet.answers(job_id)
        assert isinstance(refused, NoAvailableNode), job_id
        assert refused.never_fits, job_id
    fleet.ask("fits")
    assert fleet.waiting() == ["fits"]


def test_the_queue_is_bounded_in_all_and_for_each_owner() -> None:
    fleet = Waiters(queue_limit=300)
    fleet.registry.claim("first", gpu_count=1, ttl_seconds=600)
    for place in range(257):
        fleet.ask(f"ada-{place}", by="ada")
    (refused,) = fleet.answers("ada-256")
    assert isinstance(refused, Refusal)
    assert refused.code == "QUEUE_FULL"
    for place in range(45):
        fleet.ask(f"bob-{place}", by="bob")
    assert len(fleet.waiting()) == 300
    (refused,) = fleet.answers("bob-44")
    assert isinstance(refused, Refusal)
    assert refused.code == "QUEUE_FULL"
    assert refused.message == "the queue is full (queue_limit is 300): ask again later, or without waiting"


def test_a_restart_empties_the_queue() -> None:
    fleet = Waiters()
    fleet.registry.claim("first", gpu_count=1)
    fleet.ask("second")
    later = Registry()
    later.restore(fleet.registry.stored_documents())
    assert later.fleet.queue() == []


def test_a_waiting_job_is_refused_when_the_store_fails_and_keeps_its_place() -> None:
    fleet = Waiters()
    fleet.registry.claim("first", gpu_count=1)
    fleet.ask("second")
    fleet.registry.let_store_fail()
    fleet.registry.do(fleet.registry.claim_request("other"))
    fleet.registry.drain()
    (refused,) = [one for one in fleet.answers("second") if isinstance(one, Refusal)]
    assert refused.code == "REGISTRY_BUSY"
    fleet.registry.recover()
    assert fleet.waiting() == ["second"]


def test_a_large_job_is_not_starved_by_a_stream_of_small_ones() -> None:
    fleet = Waiters(gpus=4)
    for place in range(4):
        fleet.registry.claim(f"small-{place}", gpu_count=1, ttl_seconds=86_400)
    fleet.ask("large", gpu_count=4)
    fleet.pass_time(61.0)
    for place in range(4):
        fleet.release(f"small-{place}")
        fleet.pass_time(5.0)
        if place < 3:
            refused = fleet.registry.claim(f"next-{place}", gpu_count=1)
            assert isinstance(refused, NoAvailableNode)
            ((one, *_),) = refused.examples.values()
            assert "reserved for job large" in one.have
    assert fleet.has_claim("large")


def test_a_job_that_gave_up_keeps_the_reservation_for_as_long_as_its_place() -> None:
    fleet = Waiters(gpus=4, queue_reserve_after_seconds=2.0)
    for place in range(4):
        fleet.registry.claim(f"small-{place}", gpu_count=1, ttl_seconds=86_400)
    fleet.ask("gave up", wait=3.0)
    fleet.ask("large", gpu_count=4)

    def reserving() -> list[str]:
        return [one.job.job_id for one in fleet.registry.fleet.queue() if one.reserved]

    fleet.pass_time(30.0)
    assert reserving() == ["gave up"]
    fleet.pass_time(5.0)
    assert reserving() == ["large"]


def test_a_request_of_a_higher_priority_passes_the_reservation() -> None:
    fleet = Waiters(gpus=2)
    for place in range(2):
        fleet.registry.claim(f"small-{place}", gpu_count=1, ttl_seconds=86_400)
    fleet.ask("large", gpu_count=2)
    fleet.pass_time(61.0)
    fleet.release("small-0")
    fleet.pass_time(5.0)
    assert isinstance(fleet.registry.claim("urgent", gpu_count=1, priority=1), Claim)


def test_what_leaves_the_reserved_capacity_alone_is_granted() -> None:
    fleet = Waiters(gpus=4)
    for place in range(3):
        fleet.registry.claim(f"small-{place}", gpu_count=1, ttl_seconds=86_400)
    fleet.ask("large", gpu_count=2)
    fleet.pass_time(61.0)
    assert isinstance(fleet.registry.claim("beside", gpu_count=1), Claim)
    fleet.release("small-0")
    fleet.pass_time(5.0)
    assert isinstance(fleet.registry.claim("also beside", gpu_count=1), Claim)
    fleet.release("small-1")
    fleet.pass_time(5.0)
    assert isinstance(fleet.registry.claim("one too many", gpu_count=1), NoAvailableNode)
    fleet.release("small-2")
    fleet.pass_time(5.0)
    assert fleet.has_claim("large")


def test_a_node_reserved_in_vain_for_five_minutes_is_free_for_others() -> None:
    fleet = Waiters(gpus=2)
    fleet.registry.claim("long", gpu_count=1, ttl_seconds=86_400)
    fleet.ask("large", gpu_count=2, wait=600.0)
    fleet.pass_time(62.0)
    assert isinstance(fleet.registry.claim("small", gpu_count=1), NoAvailableNode)
    fleet.pass_time(301.0)
    assert isinstance(fleet.registry.claim("small", gpu_count=1), Claim)


def test_a_job_that_begins_to_wait_is_logged() -> None:
    fleet = Waiters()
    fleet.registry.claim("first", gpu_count=1)
    fleet.ask("second", priority=2)
    (one,) = logged(fleet.registry.done, "job_queued")
    assert one.fields == {"job_id": "second", "priority": 2, "wait_seconds": 300.0}


def test_a_reservation_lasts_between_two_requests_of_the_waiting_job() -> None:
    fleet = Waiters(gpus=2)
    for name in ("first", "second"):
        fleet.registry.claim(name, gpu_count=1, ttl_seconds=600)
    fleet.ask("large", gpu_count=2, wait=100.0)
    fleet.pass_time(105.0)  # its request has ended, and its place is kept
    fleet.release("first")
    fleet.registry.pass_time(1.0)
    assert isinstance(fleet.registry.claim("small", gpu_count=1), NoAvailableNode)
    fleet.ask("large", gpu_count=2, wait=100.0)
    fleet.release("second")
    fleet.registry.pass_time(1.0)
    assert isinstance(fleet.answers("large")[-1], Claim)


def test_a_reservation_ends_with_the_place_of_a_job_that_nobody_asks_for_any_more() -> None:
    fleet = Waiters(gpus=2)
    fleet.registry.claim("first", gpu_count=2, ttl_seconds=600)
    fleet.ask("large", gpu_count=2)
    fleet.pass_time(65.0)
    fleet.close("large")
    fleet.release("first")
    assert isinstance(fleet.registry.claim("small", gpu_count=1), NoAvailableNode)
    fleet.pass_time(31.0)
    assert isinstance(fleet.registry.claim("small", gpu_count=1), Claim)


def test_a_job_that_waits_for_long_does_not_wake_the_registry_for_nothing() -> None:
    fleet = Waiters()
    fleet.registry.claim("first", gpu_count=1, ttl_seconds=86_400)
    for job_id in ("second", "third"):
        fleet.ask(job_id, wait=300.0)
    fleet.pass_time(70.0)
    fleet.registry.wake()
    deadline = fleet.registry.fleet.deadline
    assert deadline is not None
    assert deadline - fleet.registry.now > 1.0


def test_a_cordoned_gpu_does_not_count_as_left_for_the_reservation() -> None:
    fleet = Waiters(gpus=4)
    for place in range(3):
        fleet.registry.claim(f"small-{place}", gpu_count=1, ttl_seconds=86_400)
    (free,) = {"GPU-0", "GPU-1", "GPU-2", "GPU-3"} - {
        uuid for one in fleet.registry.fleet.claims() for uuid in one.grants[0].gpu_uuids
    }
    fleet.registry.do(GpuCordonRequested(fleet.registry.ref(), "node-1", free, "broken", ""))
    fleet.ask("large", gpu_count=3)
    fleet.pass_time(61.0)
    fleet.release("small-0")
    fleet.pass_time(5.0)
    assert isinstance(fleet.registry.claim("next", gpu_count=1), NoAvailableNode)


def test_a_long_queue_is_not_searched_for_its_deadline_after_each_event(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fleet = Waiters()
    fleet.registry.claim("first", gpu_count=1, ttl_seconds=86_400)
    fleet.ask("second")
    fleet.registry.wake()
    queue = fleet.registry.fleet._claims.queue
    search, searched = queue._deadlines, list[float]()

    def deadlines() -> Iterator[float]:
        searched.append(fleet.registry.now)
        yield from search()

    monkeypatch.setattr(queue, "_deadlines", deadlines)
    fleet.ask("third")
    fleet.registry.wake()
    for _ in range(20):
        fleet.registry.renew("first")
        assert queue.deadline == min(search())
    assert len(searched) <= 1


def test_a_reservation_follows_within_a_second_though_a_request_comes_first() -> None:
    fleet = Waiters(gpus=2)
    fleet.registry.claim("first", gpu_count=1, ttl_seconds=86_400)
    fleet.registry.do(CordonRequested(fleet.registry.ref(), "node-1", "repair"))
    fleet.ask("large", gpu_count=2, wait=300.0)
    fleet.pass_time(70.0)
    (entry,) = fleet.registry.fleet.queue()
    assert not entry.reserved
    fleet.registry.do(CordonRequested(fleet.registry.ref(), "node-1", None))
    fleet.registry.claim("refused", gpu_count=2)
    fleet.registry.pass_time(1.0)
    assert list(entry.reserved) == ["node-1"]


def test_a_little_more_free_memory_is_offered_too() -> None:
    fleet = Waiters()
    need, total = 50_000, 80 * 1024
    fleet.registry.heartbeat(gpus=figures(memory_used_mb=total - need + 10))
    fleet.ask("shared", gpu_sharing="memory", min_gpu_memory_mb=need)
    fleet.registry.pass_time(1.0)
    assert not fleet.has_claim("shared")
    fleet.registry.heartbeat(gpus=figures(memory_used_mb=total - need))
    fleet.registry.pass_time(1.0)
    assert fleet.has_claim("shared")


def test_a_request_that_raises_the_priority_of_a_waiting_job_passes_the_reservation_of_another() -> None:
    fleet = Waiters(gpus=2)
    for place in range(2):
        fleet.registry.claim(f"small-{place}", gpu_count=1, ttl_seconds=86_400)
    fleet.ask("large", gpu_count=2)
    fleet.pass_time(61.0)
    fleet.release("small-0")
    fleet.ask("urgent")
    fleet.registry.pass_time(1.0)
    assert not fleet.has_claim("urgent")
    fleet.ask("urgent", priority=1)
    assert len(fleet.answers("urgent")) == 2
    assert fleet.has_claim("urgent")


def test_a_job_gets_what_is_held_for_it_though_an_equal_one_is_before_it() -> None:
    fleet = Waiters()
    fleet.registry.claim("second", gpu_count=1, ttl_seconds=10)
    fleet.ask("first")
    fleet.pass_time(5.0)
    fleet.registry.do(CordonRequested(fleet.registry.ref(), "node-1", "repair"))
    fleet.registry.pass_time(6.0)  # its claim expires, and its GPU is held for it
    fleet.ask("second")
    assert fleet.waiting() == ["first", "second"]
    fleet.registry.do(CordonRequested(fleet.registry.ref(), "node-1", None))
    fleet.registry.pass_time(1.0)
    assert fleet.has_claim("second")
    assert not fleet.has_claim("first")


def test_what_a_claim_frees_by_explaining_processes_is_offered_too() -> None:
    fleet = Waiters(gpus=2)
    fleet.registry.heartbeat(gpus=figures(2, processes=1), probe_age_seconds=0.0)
    fleet.ask("whole")
    fleet.registry.pass_time(1.0)
    assert not fleet.has_claim("whole")
    assert isinstance(fleet.registry.claim("slot"), Claim)  # its worker may be what runs there
    fleet.registry.pass_time(1.0)
    assert fleet.has_claim("whole")


def test_a_slot_is_offered_when_the_gpus_of_its_node_are_less_busy() -> None:
    fleet = Waiters()
    busy = ResourceUsage(cpu_percent=5.0, mem_percent=10.0, gpu_percent=99.0)
    fleet.registry.heartbeat(resource_usage=busy)
    fleet.ask("slot", gpu_count=None)
    fleet.registry.pass_time(1.0)
    assert not fleet.has_claim("slot")
    fleet.registry.heartbeat()
    fleet.registry.pass_time(1.0)
    assert fleet.has_claim("slot")
