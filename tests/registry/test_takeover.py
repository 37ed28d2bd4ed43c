"""A takeover: the sessions that gateways report go on under the new leader, and no node notices."""

from typing import Any

import pytest
from hypothesis import given, settings

from gpu_agent.registry.actions import Effect, Send, SendStatus
from gpu_agent.registry.events import (
    ClaimRequested,
    ConnectionLost,
    Event,
    HeartbeatReceived,
    JoinTokenRequested,
    RegistrationReceived,
    RemovalRequested,
    RevocationRequested,
    RotationRequested,
    SessionReported,
)
from gpu_agent.registry.job import Claim
from gpu_agent.registry.tokens import Credential, CredentialKind
from gpu_agent.wire.codes import CloseCode, ErrorCode, NodeStatus
from gpu_agent.wire.messages import NodeControl
from tests.registry.harness import (
    JOIN,
    Registry,
    ack,
    closed,
    codes,
    declaration,
    figures,
    fresh_token,
    heartbeat,
    logged,
    of,
    proof,
    statuses,
)
from tests.registry.invariants import CheckedRegistry
from tests.registry.random_events import TURNS, Burst

# ruff: noqa: ANN401 - what a report says is passed through as it is

TERM = 1 << 32
"""Below the number of every connection that the leader of the second term accepts."""


def take_over(registry: Registry, *, after: float = 0.0, **settings: Any) -> Registry:
    """Start another leader from what the store holds; what the first one knew besides is lost."""
    another = Registry(auth_off=registry.auth_off, gateways=False, **settings)
    another.now = registry.now + after
    another.documents.update(registry.documents)
    another.restore(registry.stored_documents(away=after), takeover=True)
    another.done.clear()
    another.stored.clear()
    return another


def report(registry: Registry, connection: int = 1, node_id: str = "node-1", **parts: Any) -> list[Effect]:
    """Report a node's session, as its gateway does."""
    facts = {
        "session_epoch": 1,
        "credential": None if registry.auth_off else JOIN,
        "address": "10.0.0.1",
        "heartbeat_age_seconds": 3.0,
        "is_complete": True,
    }
    return registry.do(SessionReported(connection=connection, node_id=node_id, **(facts | parts)))


def hand_on(registry: Registry, connection: int = 1, *, age: float = 3.0, **parts: Any) -> list[Effect]:
    """Hand on the node's last heartbeat, as its gateway does behind the report."""
    message = heartbeat(f"node-{connection}", **parts)
    return registry.do(HeartbeatReceived(connection, message, age_seconds=age))


ONE_USE = Credential(CredentialKind.JOIN, "once")


def one_use() -> JoinTokenRequested:
    return JoinTokenRequested(ref=9, token_id="once", digest="digest of once", uses=1)


def repeat(
    registry: Registry, connection: int = 1, node_id: str | None = None, credential: Credential | None = JOIN
) -> list[Effect]:
    """Repeat a registration that the earlier leader did not answer."""
    return registry.do(
        RegistrationReceived(
            connection,
            declaration(node_id),
            "node-FRESH",
            None if registry.auth_off else credential,
            fresh_token=None if registry.auth_off else fresh_token("another"),
            is_inherited=True,
        )
    )


def taken_over(**settings: Any) -> Registry:
    """Another leader, which knows one ready node."""
    first = Registry(**settings)
    first.ready()
    return take_over(first)


def test_a_reported_session_goes_on_without_a_word_to_the_node_or_to_the_store() -> None:
    registry = taken_over()
    assert report(registry) == []
    assert hand_on(registry) == []
    assert registry.stored == []
    assert registry.node().connection == 1
    assert registry.node().status is NodeStatus.READY


def test_until_its_first_heartbeat_the_node_gets_no_job_and_from_then_on_it_does() -> None:
    registry = taken_over()
    report(registry)
    assert "disconnected" in registry.claim("job-1").counts
    hand_on(registry)
    assert isinstance(registry.claim("job-2"), Claim)


def test_a_node_has_its_full_timeout_from_the_report_and_from_the_heartbeat_that_follows() -> None:
    for handed_on in (False, True):
        registry = taken_over()
        registry.pass_time(20.0)
        report(registry, heartbeat_age_seconds=30.0)
        if handed_on:
            hand_on(registry, age=30.0)
        assert logged(registry.pass_time(44.9), "heartbeat_timeout") == []
        assert registry.node().status is NodeStatus.READY
        (lost,) = logged(registry.pass_time(1.0), "heartbeat_timeout")
        assert lost.fields["node_id"] == "node-1"


def test_a_node_whose_connection_went_with_the_leader_has_two_timeouts() -> None:
    registry = taken_over()
    assert logged(registry.pass_time(89.9), "heartbeat_timeout") == []
    assert registry.node().status is NodeStatus.READY
    (lost,) = logged(registry.pass_time(1.1), "heartbeat_timeout")
    assert lost.fields["node_id"] == "node-1"


def test_the_same_heartbeat_handed_on_again_takes_nothing_of_a_full_timeout() -> None:
    registry = taken_over()
    report(registry)
    hand_on(registry, age=14.0)
    registry.pass_time(10.0)
    lose_link(registry)
    report(registry)
    hand_on(registry, age=24.0)
    assert logged(registry.pass_time(34.9), "heartbeat_timeout") == []


def test_the_heartbeat_that_is_handed_on_is_as_old_as_it_is() -> None:
    registry = taken_over()
    report(registry)
    hand_on(registry, age=12.0)
    assert registry.node().liveness.last_heartbeat_at == registry.now - 12.0


def test_health_is_judged_by_the_heartbeat_that_is_handed_on() -> None:
    registry = taken_over()
    report(registry)
    assert statuses(hand_on(registry, gpus=figures(health="lost"))) == ["degraded"]


def test_a_node_that_was_registering_warms_up_under_the_new_leader() -> None:
    first = Registry()
    first.register()
    first.heartbeats(1)
    registry = take_over(first)
    report(registry)
    hand_on(registry)
    assert registry.node().status is NodeStatus.REGISTERING
    assert statuses(registry.heartbeats(2)) == ["ready"]


def test_a_claim_lives_on_and_its_node_holds_it() -> None:
    first = Registry()
    first.ready()
    first.claim("job-1", gpu_count=1)
    registry = take_over(first)
    report(registry)
    hand_on(registry, running_jobs=("job-1",))
    assert registry.renew("job-1", "claim-1").claim_id == "claim-1"
    assert logged(registry.heartbeats(4, every=15.0, running_jobs=("job-1",)), "claim_lost") == []


def test_periodic_statuses_go_on_within_a_minute_and_not_all_at_once() -> None:
    registry = taken_over()
    report(registry)
    hand_on(registry)
    sent = [one for _ in range(4) for one in of(SendStatus, registry.heartbeats(1, every=15.0))]
    assert [one.periodic for one in sent] == [True]


def test_a_node_in_a_large_fleet_may_use_the_interval_that_it_received_after_it_registered() -> None:
    first = Registry(max_heartbeats_per_second=10)
    first.ready()
    for connection in range(2, 402):
        first.register(connection)
    registry = take_over(first, max_heartbeats_per_second=10)
    assert registry.node().schedule.timeout_seconds == 45.0
    report(registry)
    assert registry.node().schedule.timeout_seconds >= 3 * 400 / 10


def test_a_drain_goes_on_and_ends_when_a_heartbeat_shows_that_no_job_runs() -> None:
    first = Registry()
    first.ready()
    first.heartbeat(running_jobs=("job-1",))
    first.drain()
    registry = take_over(first)
    report(registry)
    hand_on(registry, running_jobs=("job-1",))
    assert registry.node().status is NodeStatus.DRAINING
    assert statuses(registry.heartbeat()) == ["offline"]
    assert registry.node().connection == 1


def test_a_node_that_an_operator_has_drained_stays_connected_for_a_resume() -> None:
    first = Registry()
    first.ready()
    first.drain()
    assert first.node().status is NodeStatus.OFFLINE
    registry = take_over(first)
    assert report(registry) == []
    assert registry.node().connection == 1


def test_a_node_that_is_offline_must_register_again() -> None:
    first = Registry()
    first.ready()
    first.pass_time(50.0)
    assert first.node().status is NodeStatus.OFFLINE
    registry = take_over(first)
    assert closed(report(registry)) == [(1, CloseCode.GOING_AWAY)]
    assert registry.node().connection is None


@pytest.mark.parametrize("facts", [{"node_id": "node-9"}, {"session_epoch": 2}, {"connection": 9}])
def test_a_session_that_was_not_stored_is_closed_so_that_its_node_registers_again(
    facts: dict[str, Any],
) -> None:
    registry = taken_over()
    done = report(registry, **facts)
    assert closed(done) == [(facts.get("connection", 1), CloseCode.SERVICE_RESTART)]
    assert of(Send, done) == []
    (told,) = logged(done, "session_not_resumed")
    assert told.fields["session_epoch"] == facts.get("session_epoch", 1)
    assert registry.node().connection is None


def test_what_a_refused_session_still_sends_counts_for_nothing() -> None:
    registry = taken_over()
    report(registry, session_epoch=2)
    assert hand_on(registry) == []
    assert repeat(registry, node_id="node-1") == []
    assert registry.node().epoch == 1


def test_a_node_that_was_stored_before_its_connection_was_is_known_by_its_epoch() -> None:
    first = Registry()
    first.ready()
    for document, _ in first.documents.values():
        document.pop("registered_on", None)  # type: ignore[attr-defined]  # what is stored is a dict
    registry = take_over(first)
    assert closed(report(registry, session_epoch=2)) == [(1, CloseCode.SERVICE_RESTART)]
    registry = take_over(first)
    assert report(registry) == []
    assert registry.node().connection == 1


@pytest.mark.parametrize(
    "credential",
    [
        None,
        Credential(CredentialKind.JOIN, "another"),
        proof("node-2"),
        Credential(CredentialKind.OPERATOR, "op"),
    ],
)
def test_a_session_that_its_credential_does_not_prove_is_refused(credential: Credential | None) -> None:
    registry = taken_over()
    done = report(registry, credential=credential)
    assert codes(done) == [ErrorCode.UNAUTHORIZED]
    assert closed(done) == [(1, CloseCode.POLICY_VIOLATION)]


def test_a_token_that_was_rotated_at_once_proves_no_session_and_a_revoked_join_token_does() -> None:
    first = Registry()
    first.ready()
    first.do(RevocationRequested(7, JOIN.token_id))
    assert report(take_over(first)) == []
    first.do(RotationRequested(8, "node-1", revoke_now=True))
    assert codes(report(take_over(first))) == [ErrorCode.UNAUTHORIZED]


def test_a_node_that_came_back_by_its_own_token_is_proven_by_it() -> None:
    first = Registry()
    first.ready()
    first.come_back(2)
    registry = take_over(first)
    assert report(registry, 2, session_epoch=2, credential=proof("node-1")) == []
    assert registry.node().connection == 2


def test_with_auth_off_nothing_is_to_be_proven() -> None:
    assert report(taken_over(auth_off=True)) == []


def test_a_session_of_the_new_leader_stands_and_the_reported_one_is_superseded() -> None:
    registry = taken_over()
    registry.come_back(TERM + 1)
    done = report(registry)
    assert codes(done) == [ErrorCode.SESSION_SUPERSEDED]
    assert closed(done) == [(1, CloseCode.POLICY_VIOLATION)]
    assert registry.node().connection == TERM + 1


def test_a_session_of_the_new_leader_supersedes_one_that_was_reported() -> None:
    registry = taken_over()
    report(registry)
    done = registry.come_back(TERM + 1)
    assert codes(done) == [ErrorCode.SESSION_SUPERSEDED]
    assert closed(done) == [(1, CloseCode.POLICY_VIOLATION)]
    assert registry.node().connection == TERM + 1


@pytest.mark.parametrize("first_reported", [1, 2])
def test_of_two_reported_sessions_the_newer_one_stands_in_whatever_order_they_come(
    first_reported: int,
) -> None:
    first = Registry()
    first.ready()
    first.come_back(2)
    registry = take_over(first)
    done = []
    for connection in (first_reported, 3 - first_reported):
        done += report(registry, connection, session_epoch=connection, credential=proof("node-1"))
    assert codes(done) == [ErrorCode.SESSION_SUPERSEDED]
    assert closed(done) == [(1, CloseCode.POLICY_VIOLATION)]
    assert registry.node().connection == 2


def test_a_node_that_declared_something_since_it_registered_is_asked_to_register_again() -> None:
    registry = taken_over()
    (sent,) = of(Send, report(registry, is_complete=False))
    assert isinstance(sent.message, NodeControl)
    assert (sent.connection, sent.message.command) == (1, "reregister")
    assert (
        ack(registry.do(RegistrationReceived(1, declaration("node-1"), "node-FRESH", JOIN))).node_id
        == "node-1"
    )
    assert registry.node().tokens.joined_by == "join"


def test_a_session_that_is_reported_twice_goes_on() -> None:
    registry = taken_over()
    report(registry)
    hand_on(registry)
    assert report(registry) == []
    assert isinstance(registry.claim("job-1"), Claim)


def test_a_registration_that_the_earlier_leader_did_not_store_is_an_ordinary_one() -> None:
    registry = take_over(Registry())
    done = repeat(registry)
    assert ack(done).node_id == "node-FRESH"
    assert statuses(done) == ["registering"]


@pytest.mark.parametrize("auth_off", [False, True])
def test_a_registration_that_was_stored_and_not_acknowledged_makes_no_second_node(*, auth_off: bool) -> None:
    first = Registry(auth_off=auth_off)
    first.register()
    registry = take_over(first)
    answered = ack(repeat(registry))
    assert (answered.node_id, answered.session_epoch) == ("node-1", 2)
    assert answered.node_token == (None if auth_off else "secret of another")
    assert [record.node_id for record in registry.fleet.nodes()] == ["node-1"]


def test_a_node_that_was_stored_and_not_acknowledged_uses_its_join_token_once() -> None:
    first = Registry()
    first.do(one_use())
    first.arrive(ONE_USE)
    registry = take_over(first)
    repeat(registry, credential=ONE_USE)
    registry.heartbeat()
    token = registry.fleet.token("once")
    assert token is not None
    assert token.spent == 1
    assert registry.fleet.reserved("once") == 0


def test_a_node_that_registered_again_and_was_not_acknowledged_uses_its_join_token_once() -> None:
    first = Registry()
    first.do(one_use())
    first.arrive(ONE_USE)
    first.heartbeat()
    first.arrive(ONE_USE, 1, "node-1")
    for reported in (False, True):
        registry = take_over(first)
        if reported:
            assert report(registry, credential=ONE_USE) == []
        answered = ack(repeat(registry, node_id="node-1", credential=ONE_USE))
        assert (answered.node_id, answered.session_epoch, answered.node_token) == ("node-1", 3, None)
        registry.heartbeat()
        token = registry.fleet.token("once")
        assert token is not None
        assert token.spent == 1


def test_a_registration_that_is_repeated_is_bound_to_no_node_of_another_token() -> None:
    first = Registry()
    first.register()
    registry = take_over(first)
    registry.do(one_use())
    assert ack(repeat(registry, credential=ONE_USE)).node_id == "node-FRESH"


def test_a_repeated_registration_that_is_older_than_the_stored_one_is_superseded() -> None:
    first = Registry()
    first.ready()
    first.come_back(3)
    registry = take_over(first)
    done = repeat(registry, 2, credential=proof("node-1"))
    assert codes(done, 2) == [ErrorCode.SESSION_SUPERSEDED]
    assert report(registry, 3, session_epoch=2, credential=proof("node-1")) == []


def test_a_restored_connection_number_means_nothing_to_a_leader_that_numbers_from_one_again() -> None:
    first = Registry()
    first.register()
    registry = take_over(first)
    done = registry.do(
        RegistrationReceived(1, declaration(), "node-FRESH", JOIN, fresh_token=fresh_token("node-FRESH"))
    )
    assert ack(done).node_id == "node-FRESH"


def test_a_node_that_was_removed_and_whose_connection_is_reported_registers_again() -> None:
    first = Registry()
    first.ready()
    first.do(RemovalRequested(5, "node-1"))
    registry = take_over(first)
    assert closed(report(registry)) == [(1, CloseCode.SERVICE_RESTART)]
    assert registry.fleet.nodes() == []


def lose_link(registry: Registry, connection: int = 1) -> list[Effect]:
    return registry.do(ConnectionLost(connection, link_ended=True))


def test_the_deadline_of_a_node_moves_once_when_the_link_to_its_gateway_ends() -> None:
    registry = Registry()
    registry.ready()
    registry.pass_time(10.0)
    lose_link(registry)
    assert "disconnected" in registry.claim("job-1").counts
    assert logged(registry.pass_time(79.9), "heartbeat_timeout") == []
    assert len(logged(registry.pass_time(1.1), "heartbeat_timeout")) == 1


def test_a_link_that_ends_again_moves_no_deadline_again() -> None:
    registry = Registry()
    registry.ready()
    for _ in range(8):
        registry.pass_time(10.0)
        lose_link(registry)
        report(registry, heartbeat_age_seconds=0.0)
    assert len(logged(registry.pass_time(11.0), "heartbeat_timeout")) == 1


def test_a_session_that_is_reported_after_the_link_ended_goes_on_with_its_next_heartbeat() -> None:
    registry = Registry()
    registry.ready()
    lose_link(registry)
    registry.pass_time(5.0)
    assert report(registry) == []
    assert "disconnected" in registry.claim("job-1").counts
    hand_on(registry)
    assert isinstance(registry.claim("job-2"), Claim)
    assert registry.node().liveness.suspected_until is None


@pytest.mark.parametrize("auth_off", [False, True])
def test_a_registration_that_is_repeated_because_its_link_ended_makes_no_second_node(
    *, auth_off: bool
) -> None:
    registry = Registry(auth_off=auth_off)
    registry.register()
    lose_link(registry)
    answered = ack(repeat(registry))
    assert (answered.node_id, answered.session_epoch) == ("node-1", 2)
    assert [record.node_id for record in registry.fleet.nodes()] == ["node-1"]
    lose_link(registry)
    assert ack(repeat(registry)).node_id == "node-1"


@pytest.mark.parametrize("late", [-0.5, 0.0, 0.5])
@pytest.mark.parametrize("health", ["ok", "lost"])
def test_a_heartbeat_that_was_counted_before_the_link_ended_is_not_counted_again(
    health: str, late: float
) -> None:
    registry = Registry()
    registry.register()
    registry.heartbeats(1, gpus=figures(health=health))
    before = counts(registry)
    assert sum(before[:2]) == 1
    lose_link(registry)
    registry.pass_time(5.0)
    report(registry)
    hand_on(registry, age=5.0 - late, gpus=figures(health=health))
    assert registry.node().connected
    assert counts(registry) == before


def test_a_heartbeat_that_came_after_the_link_ended_is_counted() -> None:
    registry = Registry()
    registry.register()
    registry.heartbeats(1)
    lose_link(registry)
    registry.pass_time(5.0)
    report(registry)
    hand_on(registry, age=3.0)
    assert counts(registry) == (2, 0, 2)


def counts(registry: Registry) -> tuple[int, int, int]:
    liveness = registry.node().liveness
    return liveness.healthy_heartbeats, liveness.unhealthy_heartbeats, len(liveness.recent)


def test_a_closed_connection_gives_its_node_no_more_time() -> None:
    registry = Registry()
    registry.ready()
    registry.do(ConnectionLost(1))
    assert len(logged(registry.pass_time(46.0), "heartbeat_timeout")) == 1


def test_while_the_store_fails_a_reported_session_goes_on() -> None:
    registry = taken_over()
    registry.let_store_fail()
    registry.do(ClaimRequested(7, registry.claim_request("job-1").job, "claim-1"))
    assert report(registry) == []
    hand_on(registry)
    assert registry.node().connected


def rotate(registry: Registry) -> None:
    registry.do(RotationRequested(8, "node-1"))


def test_a_rotation_goes_on_and_gives_the_node_its_token_once() -> None:
    first = Registry()
    first.ready()
    rotate(first)
    for registry in (take_over(first), take_over(first)):
        (sent,) = of(Send, report(registry))
        assert isinstance(sent.message, NodeControl)
        assert sent.message.command == "reregister"
        assert ack(repeat(registry, node_id="node-1")).node_token == "secret of another"
        again = take_over(registry)
        assert report(again, session_epoch=2) == []
        assert ack(repeat(again, node_id="node-1")).node_token is None


def test_a_rotated_token_whose_acknowledgement_never_left_is_replaced_by_another() -> None:
    first = Registry()
    first.ready()
    rotate(first)
    repeat(first, node_id="node-1")
    registry = take_over(first)
    report(registry)
    answered = ack(repeat(registry, node_id="node-1"))
    assert (answered.session_epoch, answered.node_token) == (3, "secret of another")


def test_the_last_heartbeat_brings_the_parts_that_earlier_ones_replaced() -> None:
    first = heartbeat(labels={"zone": "a"}, max_concurrent_jobs=1)
    second = heartbeat(labels={"zone": "b"}, running_jobs=("job-1",))
    last = heartbeat(running_jobs=())
    assert last.with_parts_of(second.with_parts_of(first)) == heartbeat(
        labels={"zone": "b"}, max_concurrent_jobs=1, running_jobs=()
    )


@settings(deadline=None, max_examples=100)
@given(turns=TURNS)
def test_whatever_happened_before_a_takeover_changes_no_node_and_no_claim(
    turns: list[tuple[Event | Burst, float, bool]],
) -> None:
    first = Registry(auth_off=True, gateways=False)
    for connection in (1, 2, 3):
        first.ready(connection)
    checked = CheckedRegistry(first)
    for happened, seconds, fails in turns:
        first.let_store_fail(fails=fails)
        if isinstance(happened, Burst):
            checked.heartbeats(happened)
        else:
            checked.happens(happened)
        first.now += seconds
        checked.wakes()
    first.let_store_fail(fails=False)
    registry = take_over(first)
    done = []
    for record in first.fleet.nodes():
        if record.connection is not None:
            done += report(registry, record.connection, record.node_id, session_epoch=record.epoch)
    assert done == []
    assert facts_of(registry) == facts_of(first)
    assert (
        logged(registry.pass_time(first.thresholds.heartbeat_timeout_seconds - 0.1), "heartbeat_timeout")
        == []
    )


def facts_of(registry: Registry) -> object:
    """What no takeover may change."""
    nodes = [
        (one.node_id, one.status, one.epoch, one.connection, one.desired.cordoned)
        for one in registry.fleet.nodes()
    ]
    return nodes, sorted(one.claim_id for one in registry.fleet.claims())
