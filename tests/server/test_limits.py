"""Limits where they are counted to the last one, on real sockets against the true registry."""

import json
from dataclasses import dataclass, field
from functools import partial

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpu_agent.registry.credentials import Credential, CredentialKind
from gpu_agent.server import limits as rations
from gpu_agent.server.limits import (
    LATEST_SECONDS,
    SOONEST_SECONDS,
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
from tests.server.harness import beat, node, registration, running, until
from tests.server.malformed import REGISTER
from tests.server.raw_peer import masked, raw


@pytest.mark.parametrize("at_once", [1, 2, 20, 60])
async def test_exactly_as_many_frames_as_are_allowed_at_once_are_heard(at_once: int) -> None:
    limits = Limits(frame_burst=at_once, frames_per_second=1e-6)
    async with running(limits=limits) as service, raw(service) as peer:
        peer.writer.write(masked(json.dumps(REGISTER).encode()))
        await peer.text()
        for heard in range(at_once):
            await until(partial(_has_heard, service, beats=heard), what="the beat")
            peer.writer.write(masked(json.dumps(beat("node-1")).encode()))
        assert (await peer.reader.read()).rpartition(b"\x88")[2][1:3] == (1008).to_bytes(2, "big")
        assert _has_heard(service, beats=at_once - 1)


def _has_heard(service: RegistryService, *, beats: int) -> bool:
    return service.health.reception.beats == beats


def allowed(*, per_second: float, at_once: float) -> TokenBucket:
    return TokenBucket(Rate.of(per_second=per_second, at_once=at_once))


def test_so_much_at_once_and_no_more() -> None:
    allowance = allowed(per_second=8, at_once=3)
    assert [allowance.spend(100.0) for _ in range(4)] == [True, True, True, False]


def test_it_fills_up_again_with_time_and_never_beyond_what_is_allowed_at_once() -> None:
    allowance = allowed(per_second=8, at_once=3)
    for _ in range(3):
        allowance.spend(100.0)
    assert not allowance.spend(100.0625)
    assert allowance.spend(100.125)
    assert not allowance.spend(100.125)
    assert [allowance.spend(10_000.0) for _ in range(4)] == [True, True, True, False]


def test_what_is_refused_costs_nothing() -> None:
    allowance = allowed(per_second=1, at_once=4)
    assert not allowance.spend(0.0, 5)
    assert allowance.spend(0.0, 4)


def test_it_says_when_there_is_enough_again() -> None:
    allowance = allowed(per_second=2, at_once=1)
    assert allowance.refills_in(50.0) == 0.0
    allowance.spend(50.0)
    assert allowance.refills_in(50.0) == 0.5
    assert allowance.spend(50.0 + allowance.refills_in(50.0))


def test_what_is_paid_ahead_is_among_what_is_allowed_at_once() -> None:
    rate = Rate.of(per_second=1, at_once=20, ahead=4)
    had, paid_until, left = 0, 0.0, rate.ahead
    while (paid := rate.paid(paid_until, 100.0, 1 - left)) is not None:
        had, (paid_until, left) = had + 1, paid
    assert had == 20


@given(st.lists(st.tuples(st.floats(0, 3), st.integers(1, 5)), min_size=50, max_size=200))
def test_paying_ahead_never_allows_more_than_paying_one_by_one(asked: list[tuple[float, int]]) -> None:
    rate, exact = Rate.of(per_second=2, at_once=12, ahead=4), allowed(per_second=2, at_once=12)
    now, paid_until, left = 100.0, 0.0, rate.ahead
    for waits, count in asked:
        now += waits
        paid = rate.paid(paid_until, now, count - left)
        if paid is not None:
            paid_until, left = paid
            assert exact.spend(now + 1e-6, count)


LIMITS = Limits(messages_per_minute=60, message_burst=3)


def of_node(node_id: str, by: str = "1") -> Credential:
    return Credential(CredentialKind.NODE, by, node_id)


def joining(token_id: str, node_id: str | None = None) -> Credential:
    return Credential(CredentialKind.JOIN, token_id, node_id)


def test_a_node_has_one_however_often_it_comes_and_by_whichever_token() -> None:
    all_of_them = MessageQuotas(LIMITS)
    first = all_of_them.of(of_node("a", "old"), uses=None)
    assert first is not None
    assert all_of_them.of(of_node("a", "new"), uses=None) is first
    assert all_of_them.of(joining("its own", "a"), uses=None) is first
    assert all_of_them.of(of_node("b"), uses=None) is not first


def test_a_join_token_has_as_many_as_it_has_uses() -> None:
    all_of_them = MessageQuotas(LIMITS)
    one, two = (all_of_them.of(joining(str(uses)), uses=uses) for uses in (1, 2))
    assert one is not None
    assert two is not None
    assert [one.spend(1.0) for _ in range(4)] == [True, True, True, False]
    assert [two.spend(1.0) for _ in range(7)] == [*[True] * 6, False]


def test_a_join_token_for_any_number_has_none_for_all() -> None:
    assert MessageQuotas(LIMITS).of(joining("any"), uses=None) is None


def test_who_was_not_here_for_longest_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rations, "MOST_REMEMBERED", 2)
    all_of_them = MessageQuotas(LIMITS)
    first, second = (all_of_them.of(of_node(name), uses=None) for name in "ab")
    assert all_of_them.of(of_node("a"), uses=None) is first
    all_of_them.of(of_node("c"), uses=None)
    assert all_of_them.of(of_node("a"), uses=None) is first
    assert all_of_them.of(of_node("b"), uses=None) is not second


async def joined(service: RegistryService) -> tuple[str, str]:
    made = await service.tokens.create_join()
    assert isinstance(made, NewToken)
    async with node(service, token=made.token) as one:
        ack = await one.register()
        await one.beat()
        await one.hear_type("node_status")
    return ack["node_id"], ack["node_token"]


async def test_a_node_that_connects_again_and_again_fills_neither_the_log_nor_the_past() -> None:
    limits = Limits(close_timeout_seconds=0.3, messages_per_minute=0.001, message_burst=5)
    async with running(limits=limits, auth_on=True) as service:
        node_id, token = await joined(service)
        codes = []
        for _ in range(8):
            async with node(service, token=token) as again:
                await again.say(registration())
                answer = await again.hear()
                codes.append(answer.get("code", answer["type"]))
        other_id, _ = await joined(service)
        assert codes == [*["node_register_ack"] * 5, *["RATE_LIMITED"] * 3]
        detail = service.node(node_id)
        assert detail is not None
        assert detail.session_epoch == 6
        assert other_id != node_id


@dataclass(eq=False)
class Comer:
    origin: str = "10.0.0.1"


def room(*, handshakes: int = 2, inside: int = 3, of_one: int = 2) -> PendingConnections[Comer]:
    return PendingConnections(
        Limits(max_handshakes=handshakes, max_unregistered=inside, max_unregistered_per_origin=of_one)
    )


def test_beyond_the_handshakes_allowed_the_one_that_takes_longest_makes_room() -> None:
    anteroom, first, second = room(), Comer(), Comer()
    assert anteroom.connected(first) is None
    assert anteroom.connected(second) is None
    assert anteroom.connected(Comer()) is first
    anteroom.leaves(first)
    assert anteroom.connected(Comer()) is second


def test_who_came_in_is_owed_its_place_and_counts_for_its_origin() -> None:
    anteroom = room()
    for _ in range(2):
        comer = Comer()
        anteroom.connected(comer)
        anteroom.handshake_succeeded(comer)
    assert anteroom.longest_shaking() is None
    assert anteroom.is_full_for(Comer())
    other = Comer("10.0.0.2")
    assert not anteroom.is_full_for(other)
    anteroom.connected(other)
    anteroom.handshake_succeeded(other)
    assert anteroom.is_full_for(Comer("10.0.0.3"))


def test_who_registers_or_goes_leaves_its_place_to_others() -> None:
    anteroom, inside, shaking = room(of_one=1), Comer(), Comer()
    anteroom.connected(inside)
    anteroom.handshake_succeeded(inside)
    anteroom.connected(shaking)
    assert anteroom.size == 2
    anteroom.leaves(inside)
    anteroom.leaves(inside)
    anteroom.leaves(shaking)
    assert anteroom.size == 0
    assert not anteroom.is_full_for(Comer())


def test_who_was_sent_away_does_not_come_in() -> None:
    anteroom, gone = room(), Comer()
    anteroom.connected(gone)
    anteroom.leaves(gone)
    anteroom.handshake_succeeded(gone)
    assert anteroom.size == 0


def test_everybody_gets_the_next_place_as_fast_as_others_are_served() -> None:
    appointments, now = RetrySchedule(), 100.0
    for _ in range(800):
        now += 0.01  # a hundred a second
        appointments.served(now)
    given = [appointments.next_in(now) for _ in range(1000)]
    assert given[0] == SOONEST_SECONDS + 1
    assert given == sorted(given)
    assert 11 <= given[-1] <= 14  # a thousand take ten seconds


def test_places_that_nobody_asked_for_are_not_kept() -> None:
    appointments = RetrySchedule()
    for _ in range(500):
        appointments.next_in(100.0)
    assert appointments.next_in(200.0) == SOONEST_SECONDS + 1


def test_nobody_is_kept_away_for_long_however_many_ask() -> None:
    appointments = RetrySchedule()
    assert max(appointments.next_in(100.0) for _ in range(100_000)) == LATEST_SECONDS


@dataclass(eq=False)
class Holder:
    held_bytes: int
    is_registered: bool = False
    given_up: list[int] = field(default_factory=list)

    def give_up(self) -> None:
        self.given_up.append(self.held_bytes)
        self.held_bytes = 0


def holding(most: int, *holders: Holder) -> MemoryBudget[Holder]:
    holdings: MemoryBudget[Holder] = MemoryBudget(most_bytes=most)
    for holder in holders:
        holdings.note(holder, holder.held_bytes)
    return holdings


def test_within_what_is_allowed_nobody_gives_anything_up() -> None:
    one, two = Holder(50), Holder(50)
    holdings = holding(100, one, two)
    assert holdings.total_bytes == 100
    holdings.note(one, 0)
    holdings.note(one, 10)
    assert holdings.total_bytes == 60
    assert not one.given_up
    assert not two.given_up


def test_beyond_it_the_largest_goes_and_no_more_than_need_to() -> None:
    small, large, middle = Holder(10), Holder(60), Holder(31)
    holdings = holding(100, small, large, middle)
    assert large.given_up == [60]
    assert not small.given_up
    assert not middle.given_up
    assert holdings.total_bytes == 41


def test_strangers_go_before_nodes_however_small() -> None:
    node, stranger = Holder(80, is_registered=True), Holder(30)
    holding(100, node, stranger)
    assert stranger.given_up == [30]
    assert not node.given_up


def test_what_was_read_meanwhile_is_held_no_longer_and_costs_nobody_anything() -> None:
    read, other = Holder(80), Holder(30)
    holdings = holding(100, read)
    read.held_bytes = 0
    holdings.note(other, 30)
    assert not read.given_up
    assert not other.given_up
    assert holdings.total_bytes == 30


def test_a_holder_that_still_notes_while_it_gives_up_starts_no_second_round() -> None:
    class Talkative(Holder):
        def give_up(self) -> None:
            super().give_up()
            holdings.note(self, 500)
            holdings.note(self, 0)

    holdings: MemoryBudget[Holder] = MemoryBudget(most_bytes=100)
    talkative = Talkative(150)
    holdings.note(talkative, 150)
    assert talkative.given_up == [150]
    assert holdings.total_bytes == 0
