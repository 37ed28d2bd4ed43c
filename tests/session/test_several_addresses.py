"""A registry with several addresses: which one is tried next, and how soon (scale-out, `registry_urls`)."""

from collections import Counter
from collections.abc import Sequence
from random import Random
from typing import Any

import pytest

from gpu_agent.session.backoff import ConnectionAttempts
from gpu_agent.session.errors import Outcome, SessionEnd
from gpu_agent.session.types import (
    Connect,
    Connected,
    ConnectFailed,
    Credential,
    Disconnect,
    Disconnected,
    Exit,
    ResumeRequested,
    Send,
    SessionSettings,
    State,
)
from tests.playbook import After
from tests.session.harness import ACK, CONNECT, Play, connecting, error, logged, ready, received, registered

A, B, C = "wss://a/ws/node", "wss://b/ws/node", "wss://c/ws/node"
ALL = (A, B, C)
REFUSED = ConnectFailed("connection refused")
NO_SUCH_TOKEN = ConnectFailed("HTTP 401", http_status=401)
FAILED = SessionEnd(Outcome.RETRY_ELSEWHERE, "connection refused")


def at(address: str, credential: Credential = Credential.BEST) -> Connect:
    return Connect(credential, address=address)


def full(seconds: float) -> ConnectFailed:
    return ConnectFailed("HTTP 503", http_status=503, retry_after_seconds=seconds)


def delay(session: Play) -> float:
    assert session.machine.deadline is not None
    return session.machine.deadline - session.now


def attach(session: Play) -> None:
    """Have the attempt that is under way succeed."""
    session >> Connected() << Send
    session >> received(ACK)
    session.pending.clear()


@pytest.mark.parametrize(
    "failure",
    [
        REFUSED,
        full(30),
        ConnectFailed("no answer within 4 s"),
        ConnectFailed("the registry's certificate has expired"),
        ConnectFailed("HTTP 404", http_status=404),
    ],
)
def test_an_attempt_that_fails_is_followed_by_one_at_the_next_address_within_a_second(
    failure: ConnectFailed,
) -> None:
    assert connecting(addresses=ALL) >> failure >> After(0.5) << at(B) >> REFUSED >> After(0.5) << at(C)


@pytest.mark.parametrize("code", [1000, 1001, 1006, 1011, 1012, 1013, None])
def test_a_connection_that_is_closed_is_opened_at_the_next_address_with_the_same_id(code: int | None) -> None:
    lost = registered(addresses=ALL)
    assert lost >> Disconnected(code, "restarting") >> After(0.5) << at(B)
    assert lost >> Connected() << (lambda action: action.message.node_id == "node-A")
    assert logged(lost).count("session_backing_off") == 1


def test_an_address_that_accepts_and_never_answers_is_left_for_the_next() -> None:
    silent = connecting(addresses=ALL)
    for address in (B, C, A, B):
        assert silent >> Connected() << Send >> After(10) << Disconnect
        assert delay(silent) == 0.5
        assert silent >> After(0.5) << at(address)


def test_only_a_round_in_which_every_address_failed_lengthens_the_delay() -> None:
    failing, tried, delays = connecting(addresses=ALL), [A], []
    for _ in range(11):
        assert failing >> REFUSED
        delays.append(delay(failing))
        failing >> After(delays[-1])
        tried.append(failing.pending.pop(0).address)
    assert tried == [A, B, C] * 4
    assert delays == [0.5, 0.5, 0.5, 0.5, 0.5, 1, 0.5, 0.5, 2, 0.5, 0.5]


def test_addresses_that_accept_and_close_at_once_are_no_way_around_the_delays() -> None:
    closing, delays = connecting(addresses=(A, B)), []
    for _ in range(8):
        attach(closing)
        assert closing >> Disconnected(1001, "")
        delays.append(delay(closing))
        closing >> After(delays[-1])
        closing.pending.clear()
    assert delays == [0.5, 0.5, 0.5, 1, 0.5, 2, 0.5, 4]


def test_an_address_that_works_is_never_left() -> None:
    session = connecting(addresses=ALL)
    assert session >> REFUSED >> After(0.5) << at(B)
    attach(session)
    session >> After(3600)
    assert not any(isinstance(action, Connect | Disconnect) for action in session.pending)
    assert session.machine.snapshot.address == B
    session.pending.clear()


def test_after_a_session_that_lasted_every_address_is_tried_before_the_delay_grows() -> None:
    session = connecting(addresses=ALL)
    assert session >> REFUSED >> After(0.5) << at(B) >> REFUSED >> After(0.5) << at(C)
    attach(session)
    session >> After(121)
    session.pending.clear()
    assert session >> Disconnected(1012, "service restart") >> After(0.5) << at(A)
    assert session >> REFUSED >> After(0.5) << at(B) >> REFUSED
    assert delay(session) == 0.5
    assert session >> After(0.5) << at(C) >> REFUSED
    assert delay(session) == 0.5


def test_an_address_that_asked_for_time_is_passed_over_until_then() -> None:
    session = connecting(addresses=ALL)
    assert session >> full(20) >> After(0.5) << at(B) >> REFUSED >> After(0.5) << at(C) >> REFUSED
    assert session >> After(0.5) << at(B) >> REFUSED >> After(0.5) << at(C) >> REFUSED
    assert delay(session) == 1
    assert session >> After(1) << at(B)
    session >> After(30)
    assert session >> REFUSED >> After(0.5) << at(C) >> REFUSED >> After(0.5) << at(A)


def test_when_every_address_asks_for_time_the_first_to_be_free_is_tried_then() -> None:
    session = connecting(addresses=ALL)
    assert session >> full(60) >> After(0.5) << at(B) >> full(10) >> After(0.5) << at(C) >> full(30)
    assert delay(session) == pytest.approx(9.5 + 0.5)
    assert session >> After(10.1) << at(B)


@pytest.mark.parametrize("failure", [{"http_status": 401}, {"http_status": 403}, {"lasting": True}])
def test_what_only_a_person_can_fix_is_tried_at_the_ceiling_whatever_the_number_of_addresses(
    failure: dict[str, Any],
) -> None:
    refused = connecting(addresses=ALL)
    for address in (B, C, A):
        assert refused >> ConnectFailed("no", **failure)
        assert delay(refused) == 60
        assert refused >> After(60) << at(address)


def test_a_refused_node_token_is_followed_by_the_join_token_at_the_same_address() -> None:
    refused = connecting(addresses=ALL, node_id="node-A", has_token=True)
    assert refused >> NO_SUCH_TOKEN << at(A, Credential.JOIN) >> REFUSED
    assert refused >> After(0.5) << at(B) >> NO_SUCH_TOKEN << at(B, Credential.JOIN)


def test_a_node_that_was_superseded_tries_no_other_address() -> None:
    yielded = registered(addresses=ALL)
    assert yielded >> error("SESSION_SUPERSEDED") << Disconnect >> After(3600)
    assert yielded.machine.state is State.YIELDED
    assert yielded >> ResumeRequested() << at(A)


def test_a_simulated_node_that_is_refused_ends_and_tries_no_other_address() -> None:
    refused = connecting(addresses=ALL)
    assert refused >> Connected() << Send >> error("SIMULATED_NODE_REFUSED") << Disconnect << Exit
    assert refused.machine.state is State.STOPPED


@pytest.mark.parametrize("code", ["REGISTRY_BUSY", "RATE_LIMITED", "INTERNAL_ERROR"])
def test_what_the_registry_itself_answers_delays_the_attempt_at_the_next_address_too(code: str) -> None:
    refused = connecting(addresses=ALL)
    for address, growing in ((B, 0.5), (C, 1), (A, 2)):
        assert refused >> Connected() << Send >> error(code, retry_after_seconds=20) << Disconnect
        assert delay(refused) == 20 + growing
        assert refused >> After(20 + growing) << at(address)


def test_the_log_and_the_snapshot_name_the_address() -> None:
    session = connecting(addresses=ALL)
    assert session >> REFUSED
    assert session.actions[-1].fields == {
        "delay_seconds": 0.5,
        "why": "connection refused",
        "registry": A,
    }
    assert session.machine.snapshot.address == B
    assert session >> After(0.5) << at(B)
    attach(session)
    (accepted,) = (one for one in session.actions if getattr(one, "event", "") == "node_registered")
    assert accepted.fields["registry"] == B


def test_with_one_address_the_log_is_as_it_always_was() -> None:
    session = ready()
    assert session >> Disconnected(1006, "gone") >> After(0.5) << CONNECT
    assert "registry" not in session.actions[-2].fields


def attempts(addresses: Sequence[str], dice: Random) -> ConnectionAttempts:
    return ConnectionAttempts(SessionSettings(), addresses=addresses, has_token=False, draw=dice.random)


def test_a_fleet_spreads_over_the_addresses_and_over_the_others_when_one_is_gone() -> None:
    fleet = [attempts((A, B, C), Random(seed)) for seed in range(3000)]  # noqa: S311 - a fleet of dice, no secret
    assert all(
        count == pytest.approx(1000, rel=0.1) for count in Counter(one.address for one in fleet).values()
    )
    bereft = [one for one in fleet if one.address == A]
    for one in bereft:
        one.next_delay(FAILED, 0.0)
    moved = Counter(one.address for one in bereft)
    assert set(moved) == {B, C}
    assert moved[B] == pytest.approx(moved[C], rel=0.2)


def test_one_address_costs_no_draw() -> None:
    dice = Random(1)  # noqa: S311 - a seed, no secret
    attempts((A,), dice)
    assert dice.random() == Random(1).random()  # noqa: S311 - as above
