import pytest

from gpu_agent.registry.actions import TellStatus
from gpu_agent.registry.events import ConnectionLost, CordonAsked
from gpu_agent.registry.pacing import SPREAD
from tests.registry.fleets import Registry, closed, codes, notes, of, statuses

DAY = 86_400.0


def test_s02_a_node_that_does_not_get_ready_in_time_is_degraded_with_its_reason() -> None:
    registry = Registry(warmup_timeout_seconds=60.0)
    registry.register()
    registry.beats(1, probe_age_seconds=99.0)
    told = registry.beats(30, probe_age_seconds=99.0)
    assert statuses(told)[-1] == "degraded"
    record = registry.node()
    assert (record.status, record.reason_code) == ("degraded", "warmup_timeout")
    assert record.since == pytest.approx(1060.0, abs=1.0)
    assert record.reason == (
        "0 of 3 healthy beats in a row within 60 s; failing: "
        "probe_age: last good GPU reading 99 s ago, limit 60 s"
    )


def test_s06_a_silent_node_is_offline_within_its_timeout_and_one_second() -> None:
    registry = Registry(heartbeat_timeout_seconds=45.0)
    record = registry.ready()
    beaten = registry.now
    told = registry.pass_time(44.9)
    assert record.status == "ready"
    told += registry.pass_time(1.1)
    assert (record.status, record.reason_code) == ("offline", "heartbeat_timeout")
    assert record.since <= beaten + 46.0
    assert statuses(told)[-1] == "offline"
    assert closed(told) == [(1, 1001)]
    (note,) = notes(told, "heartbeat_timeout")
    assert note.fields["node_id"] == "node-1"
    assert note.fields["last_seen_ms"] == pytest.approx(45_000, abs=1000)


def test_a4_lost_beats_take_a_disconnected_node_offline_in_bounded_time() -> None:
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


def test_beats_keep_a_node_from_timing_out() -> None:
    registry = Registry()
    record = registry.ready()
    registry.beats(100, every=15.0)
    assert record.status == "ready"


def test_a_beat_on_the_connection_of_a_node_that_timed_out_is_ignored_until_it_is_closed() -> None:
    registry = Registry()
    record = registry.ready()
    registry.pass_time(46.0)
    assert registry.beat() == []
    registry.do(ConnectionLost(1))
    assert record.status == "offline"
    assert codes(registry.beat()) == ["UNKNOWN_NODE"]


def test_the_status_is_told_again_every_interval() -> None:
    registry = Registry(node_status_interval_seconds=60.0)
    registry.ready()
    told = of(TellStatus, registry.beats(20, every=15.0))
    assert len(told) == 5
    assert all(one.periodic and one.status == "ready" for one in told)
    assert told[0].checks
    assert told[0].heartbeat_interval_seconds == 15.0


def test_a_node_is_told_a_longer_interval_when_the_fleet_has_grown() -> None:
    registry = Registry(
        heartbeat_interval_seconds=1.0, node_status_interval_seconds=5.0, max_beats_per_second=1.0
    )
    record = registry.ready()
    assert record.interval_seconds == pytest.approx(1.0, rel=0.1)
    for connection in range(2, 12):
        registry.register(connection)
    told = [one for one in of(TellStatus, registry.beats(6, every=1.0)) if one.connection == 1]
    assert told[-1].heartbeat_interval_seconds == pytest.approx(11.0 * (1 + SPREAD / 2))
    assert record.timeout_seconds == 45.0


def test_a_node_that_may_still_beat_slowly_keeps_its_longer_timeout_for_one_more_interval() -> None:
    registry = Registry(heartbeat_interval_seconds=15.0, node_status_interval_seconds=60.0)
    record = registry.ready()
    record.interval_seconds = 40.0
    first = registry.beats(6, every=10.0)
    assert of(TellStatus, first)[0].heartbeat_interval_seconds == 15.0
    assert record.timeout_seconds == 120.0
    registry.beats(6, every=10.0)
    assert record.timeout_seconds == 45.0


def test_a_drain_past_its_deadline_takes_a_node_offline_with_its_jobs() -> None:
    registry = Registry(drain_deadline_seconds=30.0)
    record = registry.ready()
    assert registry.claim("job-1").node_id == "node-1"
    registry.drain()
    told = registry.beats(4, every=10.0, running_jobs=("job-1",))
    assert (record.status, record.reason_code) == ("offline", "drain_deadline")
    assert record.reason == "the drain's deadline passed with 1 in flight"
    assert [note.fields["job_id"] for note in notes(told, "claim_lost")] == ["job-1"]


def test_a_drained_node_whose_open_session_falls_silent_is_closed_and_stays_offline() -> None:
    registry = Registry()
    record = registry.ready()
    registry.drain()
    assert (record.status, record.connection) == ("offline", 1)
    told = registry.pass_time(46.0)
    assert closed(told) == [(1, 1001)]
    assert (record.status, record.reason_code) == ("offline", "drain_complete")


def test_an_offline_record_is_let_go_after_its_retention() -> None:
    registry = Registry(offline_retention_seconds=7 * DAY)
    registry.ready()
    registry.do(ConnectionLost(1))
    registry.pass_time(7 * DAY)
    assert registry.fleet.node("node-1") is not None
    told = registry.pass_time(60.0)
    assert notes(told, "node_purged")
    assert registry.fleet.nodes() == []
    assert registry.kept_names == []
    registry.register(2, "node-1")
    assert registry.node().epoch == 1


def test_a_record_with_an_operators_wish_is_not_let_go() -> None:
    registry = Registry(offline_retention_seconds=DAY)
    registry.ready(1)
    registry.ready(2)
    registry.drain("node-1")
    registry.do(CordonAsked(registry.ref(), "node-2", "new fans"))
    registry.do(ConnectionLost(1))
    registry.do(ConnectionLost(2))
    registry.pass_time(30 * DAY)
    assert [record.node_id for record in registry.fleet.nodes()] == ["node-1", "node-2"]
