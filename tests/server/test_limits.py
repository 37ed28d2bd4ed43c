"""Limits: exact on real sockets against a running registry, and as pure arithmetic."""

import json
from functools import partial

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpu_agent.registry.tokens import Credential, CredentialKind
from gpu_agent.server import limits as limits_module
from gpu_agent.server.limits import (
    LATEST_RETRY_SECONDS,
    SOONEST_RETRY_SECONDS,
    Limits,
    MemoryBudget,
    MessageQuotas,
    PendingConnections,
    Rate,
    RetrySchedule,
    TokenBucket,
)
from gpu_agent.server.service import RegistryService
from gpu_agent.wire.api import NewToken
from tests.server.harness import heartbeat, node, registration, running, until
from tests.server.malformed import REGISTER
from tests.server.raw_peer import masked, raw


def has_received(service: RegistryService, *, heartbeats: int) -> bool:
    return service.health.messages.heartbeats == heartbeats


@pytest.mark.parametrize("burst", [1, 2, 20, 60])
async def test_exactly_the_frames_of_a_burst_are_received(burst: int) -> None:
    limits = Limits(frame_burst=burst, frames_per_second=1e-6)
    async with running(limits=limits) as service, raw(service) as peer:
        peer.writer.write(masked(json.dumps(REGISTER).encode()))
        await peer.text()
        for received in range(burst):
            await until(partial(has_received, service, heartbeats=received), what="the heartbeat")
            peer.writer.write(masked(json.dumps(heartbeat("node-1")).encode()))
        assert (await peer.reader.read()).rpartition(b"\x88")[2][1:3] == (1008).to_bytes(2, "big")
        assert has_received(service, heartbeats=burst - 1)


def full_bucket(*, per_second: float, burst: float) -> TokenBucket:
    return TokenBucket(Rate.of(per_second=per_second, burst=burst))


def test_a_bucket_holds_one_burst() -> None:
    bucket = full_bucket(per_second=8, burst=3)
    assert [bucket.consume(100.0) for _ in range(4)] == [True, True, True, False]


def test_a_bucket_refills_with_time_up_to_one_burst() -> None:
    bucket = full_bucket(per_second=8, burst=3)
    for _ in range(3):
        bucket.consume(100.0)
    assert not bucket.consume(100.0625)
    assert bucket.consume(100.125)
    assert not bucket.consume(100.125)
    assert [bucket.consume(10_000.0) for _ in range(4)] == [True, True, True, False]


@given(
    now=st.floats(0.0, 1e8),
    per_second=st.sampled_from([1e-6, 0.1, 1 / 3, 1.0, 100.0]),
    burst=st.sampled_from([1, 2, 20, 1200]),
)
def test_a_bucket_holds_one_burst_at_any_time(now: float, per_second: float, burst: int) -> None:
    bucket = full_bucket(per_second=per_second, burst=burst)
    assert all(bucket.consume(now) for _ in range(burst))
    assert not bucket.consume(now)


def test_a_refused_amount_costs_no_token() -> None:
    bucket = full_bucket(per_second=1, burst=4)
    assert not bucket.consume(0.0, 5)
    assert bucket.consume(0.0, 4)


def test_a_bucket_knows_when_it_has_a_token_again() -> None:
    bucket = full_bucket(per_second=2, burst=1)
    assert bucket.refill_seconds(50.0) == 0.0
    bucket.consume(50.0)
    assert bucket.refill_seconds(50.0) == 0.5
    assert bucket.consume(50.0 + bucket.refill_seconds(50.0))


def test_prepaid_tokens_are_part_of_the_burst() -> None:
    rate = Rate.of(per_second=1, burst=20, prepaid=4)
    had, empty_until, left = 0, 0.0, rate.prepaid
    while (paid := rate.consume_and_prepay(empty_until, 100.0, 1 - left)) is not None:
        had, (empty_until, left) = had + 1, paid
    assert had == 20


@given(st.lists(st.tuples(st.floats(0, 3), st.integers(1, 5)), min_size=50, max_size=200))
def test_prepaying_never_allows_more_than_paying_one_by_one(requests: list[tuple[float, int]]) -> None:
    rate, exact = Rate.of(per_second=2, burst=12, prepaid=4), full_bucket(per_second=2, burst=12)
    now, empty_until, left = 100.0, 0.0, rate.prepaid
    for pause, count in requests:
        now += pause
        paid = rate.consume_and_prepay(empty_until, now, count - left)
        if paid is not None:
            empty_until, left = paid
            assert exact.consume(now + 1e-6, count)


LIMITS = Limits(messages_per_minute=60, message_burst=3)


def node_credential(node_id: str, by: str = "1") -> Credential:
    return Credential(CredentialKind.NODE, by, node_id)


def join_credential(token_id: str, node_id: str | None = None) -> Credential:
    return Credential(CredentialKind.JOIN, token_id, node_id)


def test_a_node_has_one_quota_whichever_of_its_tokens_it_presents() -> None:
    quotas = MessageQuotas(LIMITS)
    first = quotas.bucket(node_credential("a", "old"), uses=None)
    assert first is not None
    assert quotas.bucket(node_credential("a", "new"), uses=None) is first
    assert quotas.bucket(join_credential("its own", "a"), uses=None) is first
    assert quotas.bucket(node_credential("b"), uses=None) is not first


def test_a_join_token_has_the_quotas_of_its_uses_together() -> None:
    quotas = MessageQuotas(LIMITS)
    one, two = (quotas.bucket(join_credential(str(uses)), uses=uses) for uses in (1, 2))
    assert one is not None
    assert two is not None
    assert [one.consume(1.0) for _ in range(4)] == [True, True, True, False]
    assert [two.consume(1.0) for _ in range(7)] == [*[True] * 6, False]


def test_a_join_token_for_any_number_of_nodes_has_no_common_quota() -> None:
    assert MessageQuotas(LIMITS).bucket(join_credential("any"), uses=None) is None


def test_the_quota_that_was_used_longest_ago_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits_module, "MAX_QUOTAS", 2)
    quotas = MessageQuotas(LIMITS)
    first, second = (quotas.bucket(node_credential(name), uses=None) for name in "ab")
    assert quotas.bucket(node_credential("a"), uses=None) is first
    quotas.bucket(node_credential("c"), uses=None)
    assert quotas.bucket(node_credential("a"), uses=None) is first
    assert quotas.bucket(node_credential("b"), uses=None) is not second


async def joined(service: RegistryService) -> tuple[str, str]:
    made = await service.tokens.create_join()
    assert isinstance(made, NewToken)
    async with node(service, token=made.token) as one:
        ack = await one.register()
        await one.heartbeat()
        await one.receive_type("node_status")
    return ack["node_id"], ack["node_token"]


async def test_a_node_that_reconnects_again_and_again_exceeds_no_quota() -> None:
    limits = Limits(close_timeout_seconds=0.3, messages_per_minute=0.001, message_burst=5)
    async with running(limits=limits, auth_on=True) as service:
        node_id, token = await joined(service)
        codes = []
        for _ in range(8):
            async with node(service, token=token) as again:
                await again.send(registration())
                answer = await again.receive()
                codes.append(answer.get("code", answer["type"]))
        other_id, _ = await joined(service)
        assert codes == [*["node_register_ack"] * 5, *["RATE_LIMITED"] * 3]
        detail = service.node(node_id)
        assert detail is not None
        assert detail.session_epoch == 6
        assert other_id != node_id


def pending(*, handshakes: int = 2, unregistered: int = 3, per_origin: int = 2) -> PendingConnections:
    return PendingConnections(
        Limits(
            max_handshakes=handshakes,
            max_unregistered=unregistered,
            max_unregistered_per_origin=per_origin,
        )
    )


def test_beyond_the_allowed_handshakes_the_oldest_is_to_be_closed() -> None:
    connections = pending()
    assert connections.connected(1) is None
    assert connections.connected(2) is None
    assert connections.connected(3) == 1
    connections.remove(1)
    assert connections.connected(4) == 2


def test_an_unregistered_connection_counts_for_its_origin_and_is_not_closed_for_others() -> None:
    connections = pending()
    for number in (1, 2):
        connections.connected(number)
        connections.handshake_succeeded(number, "10.0.0.1")
    assert connections.oldest_handshake() is None
    assert connections.is_full_for("10.0.0.1")
    assert not connections.is_full_for("10.0.0.2")
    connections.connected(3)
    connections.handshake_succeeded(3, "10.0.0.2")
    assert connections.is_full_for("10.0.0.3")


def test_a_connection_that_registers_or_closes_makes_room() -> None:
    connections = pending(per_origin=1)
    connections.connected(1)
    connections.handshake_succeeded(1, "10.0.0.1")
    connections.connected(2)
    assert connections.size == 2
    connections.remove(1)
    connections.remove(1)
    connections.remove(2)
    assert connections.size == 0
    assert not connections.is_full_for("10.0.0.1")


def test_a_handshake_that_succeeds_on_a_closed_connection_is_not_counted() -> None:
    connections = pending()
    connections.connected(1)
    connections.remove(1)
    connections.handshake_succeeded(1, "10.0.0.1")
    assert connections.size == 0


def test_retry_times_are_as_far_apart_as_registrations_complete() -> None:
    schedule, now = RetrySchedule(), 100.0
    for _ in range(800):
        now += 0.01  # a hundred a second
        schedule.registered(now)
    given = [schedule.next_retry_seconds(now) for _ in range(1000)]
    assert given[0] == SOONEST_RETRY_SECONDS + 1
    assert given == sorted(given)
    assert 11 <= given[-1] <= 14  # a thousand take ten seconds


def test_retry_times_in_the_past_delay_no_later_peer() -> None:
    schedule = RetrySchedule()
    for _ in range(500):
        schedule.next_retry_seconds(100.0)
    assert schedule.next_retry_seconds(200.0) == SOONEST_RETRY_SECONDS + 1


def test_no_retry_time_is_later_than_the_limit_however_many_peers_come() -> None:
    schedule = RetrySchedule()
    assert max(schedule.next_retry_seconds(100.0) for _ in range(100_000)) == LATEST_RETRY_SECONDS


def budget(max_bytes: int, **held: int) -> MemoryBudget:
    """A budget with connections 1, 2, … that hold this much."""
    found = MemoryBudget(max_bytes=max_bytes)
    for number, held_bytes in enumerate(held.values(), start=1):
        found.record(number, held_bytes)
    return found


def no_node(_number: int) -> bool:
    return False


def test_within_the_budget_no_connection_is_evicted() -> None:
    memory = budget(100, one=50, two=50)
    assert (memory.total_bytes, memory.exceeded) == (100, False)
    assert memory.evict(no_node) == []
    memory.record(1, 0)
    memory.record(1, 10)
    assert memory.total_bytes == 60
    assert set(memory.holders) == {1, 2}


def test_beyond_the_budget_the_largest_is_evicted_and_no_more_than_necessary() -> None:
    memory = budget(100, small=10, large=60, middle=31)
    assert memory.exceeded
    assert memory.evict(no_node) == [2]
    assert memory.total_bytes == 41


def test_unregistered_connections_are_evicted_before_nodes_however_small() -> None:
    memory = budget(100, node=80, unregistered=30)
    assert memory.evict(lambda number: number == 1) == [2]
    assert memory.total_bytes == 80
