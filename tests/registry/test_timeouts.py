"""What time alone changes: timeouts, warm-up, mass silence, retention, and the heap of deadlines."""

from math import inf, nextafter

import pytest

from gpu_agent.registry.actions import Effect, Refusal, SendStatus, Step
from gpu_agent.registry.deadlines import Deadlines
from gpu_agent.registry.dispatch.exclusions import NoAvailableNode
from gpu_agent.registry.events import ConnectionLost, CordonRequested, RenewalRequested
from gpu_agent.registry.job import Claim
from gpu_agent.registry.lifecycle import next_deadline, purge_at, silent_until
from gpu_agent.registry.node import Drain, Liveness, NodeRecord, Schedule
from gpu_agent.registry.pacing import SPREAD
from gpu_agent.registry.settings import Thresholds
from gpu_agent.registry.timers import FEWEST_NODES, MOST_AT_ONCE, suspect_silent_nodes
from gpu_agent.wire.codes import NodeStatus
from tests.registry.dispatch.nodes import node as dispatch_node
from tests.registry.harness import (
    Registry,
    ack,
    answer,
    closed,
    codes,
    logged,
    node_record,
    of,
    proof,
    statuses,
)

DAY = 86_400.0


def test_s02_a_node_that_does_not_get_ready_in_time_is_degraded_with_its_reason() -> None:
    registry = Registry(warmup_timeout_seconds=60.0)
    registry.register()
    registry.heartbeats(1, probe_age_seconds=99.0)
    sent = registry.heartbeats(30, probe_age_seconds=99.0)
    assert statuses(sent)[-1] == "degraded"
    record = registry.node()
    assert (record.status, record.reason_code) == ("degraded", "warmup_timeout")
    assert record.since == pytest.approx(1060.0, abs=1.0)
    assert record.reason == (
        "0 of 3 healthy heartbeats in a row within 60 s; failing: "
        "probe_age: last good GPU reading 99 s ago, limit 60 s"
    )


def test_s06_a_silent_node_is_offline_within_its_timeout_and_one_second() -> None:
    registry = Registry(heartbeat_timeout_seconds=45.0)
    record = registry.ready()
    not_stored = registry.now
    sent = registry.pass_time(44.9)
    assert record.status == "ready"
    sent += registry.pass_time(1.1)
    assert (record.status, record.reason_code) == ("offline", "heartbeat_timeout")
    assert record.since <= not_stored + 46.0
    assert statuses(sent)[-1] == "offline"
    assert closed(sent) == [(1, 1001)]
    (entry,) = logged(sent, "heartbeat_timeout")
    assert entry.fields["node_id"] == "node-1"
    assert entry.fields["last_seen_ms"] == pytest.approx(45_000, abs=1000)


def test_a4_lost_heartbeats_take_a_disconnected_node_offline_in_bounded_time() -> None:
    registry = Registry()
    record = registry.ready()
    registry.do(ConnectionLost(1))
    registry.pass_time(46.0)
    assert record.status == "offline"


def test_a_node_given_a_longer_interval_has_a_longer_timeout() -> None:
    registry = Registry(heartbeat_interval_seconds=30.0, heartbeat_timeout_seconds=45.0)
    record = registry.ready()
    registry.pass_time(89.0)
    assert record.status == "ready"
    registry.pass_time(2.0)
    assert record.status == "offline"


def test_heartbeats_keep_a_node_from_timing_out() -> None:
    registry = Registry()
    record = registry.ready()
    registry.heartbeats(100, every=15.0)
    assert record.status == "ready"


def test_a_heartbeat_on_the_connection_of_a_node_that_timed_out_is_ignored_until_it_is_closed() -> None:
    registry = Registry()
    record = registry.ready()
    registry.pass_time(46.0)
    assert registry.heartbeat() == []
    registry.do(ConnectionLost(1))
    assert record.status == "offline"
    assert codes(registry.heartbeat()) == ["UNKNOWN_NODE"]


def test_the_status_is_sent_again_every_interval() -> None:
    registry = Registry(node_status_interval_seconds=60.0)
    registry.ready()
    sent = of(SendStatus, registry.heartbeats(20, every=15.0))
    assert len(sent) == 5
    assert all(one.periodic and one.status == "ready" for one in sent)
    assert sent[0].checks
    assert sent[0].heartbeat_interval_seconds == 15.0


def test_a_node_receives_a_longer_interval_when_the_fleet_has_grown() -> None:
    registry = Registry(
        heartbeat_interval_seconds=1.0, node_status_interval_seconds=5.0, max_heartbeats_per_second=1.0
    )
    record = registry.ready()
    assert record.schedule.interval_seconds == pytest.approx(1.0, rel=0.1)
    for connection in range(2, 12):
        registry.register(connection)
    sent = [one for one in of(SendStatus, registry.heartbeats(6, every=1.0)) if one.connection == 1]
    assert sent[-1].heartbeat_interval_seconds == pytest.approx(11.0 * (1 + SPREAD / 2))
    assert record.schedule.timeout_seconds == 45.0


def test_a_node_that_may_still_send_heartbeats_slowly_keeps_its_longer_timeout_for_one_more_interval() -> (
    None
):
    registry = Registry(heartbeat_interval_seconds=15.0, node_status_interval_seconds=60.0)
    record = registry.ready()
    record.schedule.interval_seconds = 40.0
    first = registry.heartbeats(6, every=10.0)
    assert of(SendStatus, first)[0].heartbeat_interval_seconds == 15.0
    assert record.schedule.timeout_seconds == 120.0
    registry.heartbeats(6, every=10.0)
    assert record.schedule.timeout_seconds == 45.0


def test_a_drain_past_its_deadline_takes_a_node_offline_with_its_jobs() -> None:
    registry = Registry(drain_deadline_seconds=30.0)
    record = registry.ready()
    assert registry.claim("job-1").grants[0].node_id == "node-1"
    registry.drain()
    sent = registry.heartbeats(4, every=10.0, running_jobs=("job-1",))
    assert (record.status, record.reason_code) == ("offline", "drain_deadline")
    assert record.reason == "the drain's deadline passed with 1 in flight"
    assert [entry.fields["job_id"] for entry in logged(sent, "claim_lost")] == ["job-1"]


def test_a_drained_node_whose_open_session_falls_silent_is_closed_and_stays_offline() -> None:
    registry = Registry()
    record = registry.ready()
    registry.drain()
    assert (record.status, record.connection) == ("offline", 1)
    sent = registry.pass_time(46.0)
    assert closed(sent) == [(1, 1001)]
    assert (record.status, record.reason_code) == ("offline", "drain_complete")


def test_an_offline_record_is_removed_after_its_retention() -> None:
    registry = Registry(offline_retention_seconds=7 * DAY)
    registry.ready()
    registry.do(ConnectionLost(1))
    registry.pass_time(7 * DAY)
    assert registry.fleet.node("node-1") is not None
    sent = registry.pass_time(60.0)
    assert logged(sent, "node_purged")
    assert registry.fleet.nodes() == []
    assert registry.document_names == []
    registry.register(2, "node-1")
    assert registry.node().epoch == 1


def test_a_record_that_an_operator_drains_or_cordons_is_not_removed() -> None:
    registry = Registry(offline_retention_seconds=DAY)
    registry.ready(1)
    registry.ready(2)
    registry.drain("node-1")
    registry.do(CordonRequested(registry.ref(), "node-2", "new fans"))
    registry.do(ConnectionLost(1))
    registry.do(ConnectionLost(2))
    registry.pass_time(30 * DAY)
    assert [record.node_id for record in registry.fleet.nodes()] == ["node-1", "node-2"]


def fleet_of(count: int, **thresholds: float) -> Registry:
    registry = Registry(**thresholds)  # type: ignore[arg-type] # floats only
    for connection in range(1, count + 1):
        registry.register(connection)
    for _ in range(3):
        registry.pass_time(2.0)
        for connection in range(1, count + 1):
            registry.heartbeat(connection)
    return registry


def heartbeat_on(registry: Registry, connections: range, seconds: float) -> list[Effect]:
    done = []
    for _ in range(int(seconds / 10)):
        done += registry.pass_time(10.0)
        for connection in connections:
            done += registry.heartbeat(connection)
    return done


def in_status(registry: Registry, status: str) -> int:
    return sum(record.status == status for record in registry.fleet.nodes())


def test_when_most_of_a_fleet_falls_silent_the_registry_suspects_itself_first() -> None:
    registry = fleet_of(12)
    done = heartbeat_on(registry, range(1, 6), 60.0)
    (entry,) = logged(done, "mass_disconnect_suspected")
    assert entry.fields == {"live": 12, "silent": 7, "waited_for": 7}
    assert in_status(registry, "ready") == 12


def test_suspected_nodes_are_disconnected_for_dispatch_until_their_next_heartbeat() -> None:
    registry = fleet_of(12)
    heartbeat_on(registry, range(1, 6), 60.0)
    assert registry.claim("job-1", allowed_nodes=("node-9",)).counts == {"disconnected": 7, "not_allowed": 5}
    registry.heartbeat(9)
    assert registry.claim("job-1", allowed_nodes=("node-9",)).grants[0].node_id == "node-9"


def test_suspected_nodes_are_waited_for_once_and_no_longer_than_two_timeouts() -> None:
    registry = fleet_of(12)
    heartbeat_on(registry, range(1, 6), 90.0)
    done = registry.pass_time(1.0)
    assert in_status(registry, "offline") == 7
    assert not logged(done, "mass_disconnect_suspected")


def test_a_suspected_node_with_a_new_heartbeat_has_its_whole_timeout_again() -> None:
    registry = fleet_of(12)
    heartbeat_on(registry, range(1, 6), 60.0)
    done = heartbeat_on(registry, range(1, 13), 120.0)
    assert in_status(registry, "ready") == 12
    assert not [one for connection in range(1, 13) for one in statuses(done, connection) if one == "offline"]


def test_s06_a_suspected_node_with_one_more_heartbeat_has_one_timeout_from_that_heartbeat() -> None:
    registry = fleet_of(12, node_status_interval_seconds=72.0)
    heartbeat_on(registry, range(2, 13), 10.0)
    registry.pass_time(40.0)
    assert registry.node("node-2").liveness.suspected_until is not None
    registry.heartbeat(2)
    heartbeat_on(registry, range(3, 13), 40.0)
    assert registry.node("node-2").status == "ready"
    registry.pass_time(6.0)
    assert registry.node("node-2").status == "offline"


def test_a_suspected_node_that_registers_is_not_suspected_any_more() -> None:
    registry = fleet_of(12)
    heartbeat_on(registry, range(1, 6), 60.0)
    assert registry.node("node-9").liveness.suspected_until is not None
    registry.arrive(proof("node-9"), 20, "node-9")
    for _ in range(3):
        registry.heartbeat(20, "node-9")
    assert registry.claim("job-1", allowed_nodes=("node-9",)).grants[0].node_id == "node-9"
    heartbeat_on(registry, range(1, 6), 40.0)
    assert registry.pass_time(6.0)
    assert registry.node("node-9").status == "offline"


def test_half_of_a_fleet_falling_silent_is_no_sign_of_anything() -> None:
    registry = fleet_of(12)
    done = heartbeat_on(registry, range(1, 7), 60.0)
    assert not logged(done, "mass_disconnect_suspected")
    assert in_status(registry, "offline") == 6


@pytest.mark.parametrize(("count", "offline"), [(9, 9), (10, 0)])
def test_ten_live_nodes_are_enough_to_suspect_the_registry_and_nine_are_not(count: int, offline: int) -> None:
    registry = fleet_of(count)
    done = registry.pass_time(46.0)
    assert len(logged(done, "mass_disconnect_suspected")) == (offline == 0)
    assert in_status(registry, "offline") == offline


@pytest.mark.parametrize(("seconds", "silent"), [(20.0, 0), (20.001, FEWEST_NODES)])
def test_a_node_is_silent_after_more_than_two_of_its_intervals(seconds: float, silent: int) -> None:
    heard = [
        dispatch_node(f"node-{place}", last_seen_at=1000.0, interval_seconds=10.0)
        for place in range(FEWEST_NODES)
    ]
    assert suspect_silent_nodes(heard, Step(1000.0 + seconds)) == heard[:silent]


@pytest.mark.parametrize("status", NodeStatus)
def test_every_node_that_is_not_offline_lives_and_may_be_waited_for(status: NodeStatus) -> None:
    heard = [
        dispatch_node(f"node-{place}", last_seen_at=1000.0, status=status) for place in range(FEWEST_NODES)
    ]
    waited_for = suspect_silent_nodes(heard, Step(2000.0))
    assert waited_for == ([] if status is NodeStatus.OFFLINE else heard)


SETTINGS = Thresholds()


def node(status: NodeStatus, *, connection: int | None = 1) -> NodeRecord:
    return node_record(
        registered_at=100.0,
        since=100.0,
        status=status,
        connection=connection,
        liveness=Liveness(last_seen_at=100.0, warmup_until=130.0),
        schedule=Schedule(next_status_at=160.0),
    )


def test_a_node_is_reached_once_at_its_time() -> None:
    deadlines = Deadlines()
    deadlines.at("a", 10.0)
    deadlines.at("b", 5.0)
    assert deadlines.earliest == 5.0
    assert list(deadlines.due(4.9)) == []
    assert list(deadlines.due(10.0)) == ["b", "a"]
    assert list(deadlines.due(99.0)) == []
    assert deadlines.earliest == inf


def test_an_earlier_deadline_replaces_a_later_one_and_not_the_other_way_round() -> None:
    deadlines = Deadlines()
    deadlines.at("a", 10.0)
    deadlines.at("a", 20.0)
    assert list(deadlines.due(10.0)) == ["a"]
    deadlines.at("a", 20.0)
    deadlines.at("a", 15.0)
    assert list(deadlines.due(30.0)) == ["a"]


def test_a_forgotten_node_is_not_reached() -> None:
    deadlines = Deadlines()
    deadlines.at("a", 10.0)
    deadlines.cancel("a")
    assert list(deadlines.due(99.0)) == []


def test_looks_that_were_given_up_take_no_room_for_long() -> None:
    deadlines = Deadlines()
    for node_id in ("a", "b"):
        deadlines.at(node_id, 7.0)
    for _ in range(10_000):
        deadlines.at("c", 604_800.0)
        deadlines.cancel("c")
    deadlines.at("c", 8.0)
    assert deadlines.entries < 100
    assert list(deadlines.due(9.0)) == ["a", "b", "c"]


def test_no_drain_waits_for_ever() -> None:
    deadlines = Deadlines()
    deadlines.at("a", inf)
    assert deadlines.earliest == inf


def test_a_silent_node_times_out_after_its_timeout_and_a_suspected_one_when_it_was_given_until() -> None:
    record = node(NodeStatus.READY)
    assert silent_until(record) == 145.0
    record.liveness.suspected_until = 190.0
    assert silent_until(record) == 190.0


def test_the_next_look_is_the_first_thing_that_time_may_change() -> None:
    missed = nextafter(100.0 + 1.5 * 15.0 + 1.0, inf)
    assert next_deadline(node(NodeStatus.READY), SETTINGS) == missed
    assert next_deadline(node(NodeStatus.REGISTERING, connection=None), SETTINGS) == 130.0
    assert next_deadline(node(NodeStatus.READY, connection=None), SETTINGS) == 145.0
    draining = node(NodeStatus.DRAINING)
    draining.desired.drain = Drain(by_operator=True, deadline=120.0)
    assert next_deadline(draining, SETTINGS) == 120.0
    assert next_deadline(node(NodeStatus.OFFLINE), SETTINGS) == missed
    assert next_deadline(node(NodeStatus.OFFLINE, connection=None), SETTINGS) == 100.0 + 604800.0


def test_a_record_is_removed_only_when_offline_disconnected_and_without_a_request() -> None:
    assert purge_at(node(NodeStatus.READY, connection=None), SETTINGS) == inf
    assert purge_at(node(NodeStatus.OFFLINE), SETTINGS) == inf
    cordoned = node(NodeStatus.OFFLINE, connection=None)
    cordoned.desired.cordoned = ""
    assert purge_at(cordoned, SETTINGS) == inf
    by_itself = node(NodeStatus.OFFLINE, connection=None)
    by_itself.desired.drain = Drain(by_operator=False, deadline=0.0)
    assert purge_at(by_itself, SETTINGS) < inf


def crowd(count: int, **thresholds: float) -> Registry:
    """A fleet too large for one sweep."""
    registry = Registry(**thresholds)  # type: ignore[arg-type] # floats only
    for connection in range(1, count + 1):
        registry.register(connection)
    for _ in range(3):
        registry.pass_time(2.0)
        for connection in range(1, count + 1):
            registry.heartbeat(connection)
    return registry


def test_many_that_fall_silent_together_are_judged_in_parts_at_the_same_time() -> None:
    registry = crowd(3 * MOST_AT_ONCE)
    component = range(1, len(registry.fleet.nodes()) // 2 + 1)
    for _ in range(4):
        registry.pass_time(10.0)
        for connection in component:
            registry.heartbeat(connection)
    registry.now += 6.0
    parts = []
    while registry.fleet.deadline is not None and registry.fleet.deadline <= registry.now:
        parts.append(len(logged(registry.wake(), "heartbeat_timeout")))
    assert max(parts) <= MOST_AT_ONCE
    assert sum(parts) == in_status(registry, "offline") == 3 * MOST_AT_ONCE - len(component)


def test_what_a_scan_leaves_is_due_at_once_and_done_before_the_next_scan_interval() -> None:
    registry = crowd(3 * MOST_AT_ONCE, node_status_interval_seconds=1000.0)
    registry.now += 200.0
    wakings = 0
    while in_status(registry, "ready"):
        assert registry.fleet.deadline is not None
        assert registry.fleet.deadline <= registry.now
        registry.wake()
        wakings += 1
    assert wakings == 3
    assert registry.fleet.deadline is None or registry.fleet.deadline > registry.now


def test_mass_silence_is_checked_once_for_all_that_are_due_together() -> None:
    registry = crowd(3 * MOST_AT_ONCE, node_status_interval_seconds=1000.0)
    registry.now += 46.0
    first = registry.wake()
    (entry,) = logged(first, "mass_disconnect_suspected")
    assert entry.fields["waited_for"] == 3 * MOST_AT_ONCE
    assert registry.claim("job-1").counts == {"disconnected": 3 * MOST_AT_ONCE}
    assert logged(registry.pass_time(10.0), "mass_disconnect_suspected") == []
    assert in_status(registry, "ready") == 3 * MOST_AT_ONCE


def test_many_claims_that_are_over_end_in_parts_and_one_that_is_requested_before() -> None:
    count = 2 * MOST_AT_ONCE
    registry = Registry(claim_ttl_seconds=10.0)
    registry.ready(max_concurrent_jobs=count)
    for number in range(count):
        registry.claim(f"job-{number}")
    registry.now += 11.0
    renewed = answer(registry.do(RenewalRequested(registry.ref(), "job-99")))
    assert isinstance(renewed, Refusal)
    assert len(registry.fleet.claims()) == count - MOST_AT_ONCE - 1
    registry.pass_time(0.0)
    assert registry.fleet.claims() == []


def test_a_node_silent_for_more_than_one_and_a_half_intervals_gets_no_job_and_its_timeout_stays() -> None:
    registry = Registry()
    record = registry.ready()
    registry.pass_time(23.5)
    assert record.connected
    registry.pass_time(1.0)
    assert not registry.node().connected
    assert isinstance(registry.claim("job"), NoAvailableNode)
    registry.heartbeat()
    assert registry.node().connected
    assert isinstance(registry.claim("job"), Claim)
    registry.pass_time(44.9)
    assert record.status == "ready"
    registry.pass_time(1.1)
    assert record.status == "offline"


def test_with_auth_off_the_id_of_a_silent_node_may_be_taken_over_and_its_connection_is_closed() -> None:
    registry = Registry(auth_off=True)
    registry.ready(1)
    assert codes(registry.register(2, node_id="node-1"), 2) == ["NODE_ID_CONFLICT"]
    registry.pass_time(24.0)
    done = registry.register(3, node_id="node-1")
    assert ack(done).node_id == "node-1"
    assert codes(done, 1) == ["SESSION_SUPERSEDED"]
    assert [connection for connection, _ in closed(done)] == [1]
    assert registry.heartbeat(1, "node-1") == []
