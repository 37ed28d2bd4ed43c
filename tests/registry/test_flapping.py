"""Flap damping: who leaves ready too often takes no jobs for a while."""

import json

import pytest

from gpu_agent.registry.actions import DocumentKind, Effect, SendStatus
from gpu_agent.registry.events import ConnectionLost, ResumeRequested, UnregistrationReceived
from gpu_agent.registry.lifecycle import clears_when
from gpu_agent.registry.persistence import StoredDocument
from gpu_agent.wire.messages import NodeUnregister
from tests.registry.harness import Registry, figures, of, proof, statuses

LOST = figures(health="lost", reasons=("xid_79",))


def fail(registry: Registry) -> None:
    """Leave ready by a GPU that is gone for one heartbeat."""
    registry.heartbeat(gpus=LOST)
    assert registry.node().status == "degraded"


def fail_and_recover(registry: Registry) -> None:
    fail(registry)
    registry.heartbeats(3)
    assert registry.node().status == "ready"


def flapping() -> Registry:
    """A registry whose node has just left ready for the third time."""
    registry = Registry()
    registry.ready()
    fail_and_recover(registry)
    fail_and_recover(registry)
    fail(registry)
    return registry


def heartbeats(registry: Registry, count: int, connection: int, *, every: float = 2.0) -> list[Effect]:
    """Send so many healthy heartbeats of node-1 on this connection."""
    done = []
    for _ in range(count):
        done += registry.pass_time(every)
        done += registry.heartbeat(connection, "node-1")
    return done


def come_back(registry: Registry, connection: int) -> None:
    registry.come_back(connection)
    heartbeats(registry, 3, connection)
    assert registry.node().status == "ready"


def test_the_third_exit_within_the_window_is_flapping_and_names_its_cause() -> None:
    record = flapping().node()
    assert (record.status, record.reason_code) == ("degraded", "flapping")
    assert record.reason == (
        "left ready 3 times within 600 s, last for gpu_unavailable: "
        "gpus: the GPU is not usable (lost: xid_79)"
    )


def test_an_exit_that_is_not_one_too_many_keeps_its_own_reason() -> None:
    registry = Registry()
    registry.ready()
    fail_and_recover(registry)
    fail(registry)
    assert registry.node().reason_code == "gpu_unavailable"


def test_healthy_heartbeats_do_not_make_a_flapping_node_ready_before_its_exits_are_old() -> None:
    registry = flapping()
    record = registry.node()
    first = record.exits[0]
    while registry.now + 15.0 < first + 600.0:
        registry.heartbeats(1, every=15.0)
        assert record.status == "degraded"
    registry.heartbeats(1, every=15.0)
    assert registry.now >= first + 600.0
    assert (record.status, record.reason_code) == ("ready", "recovered")


def test_old_exits_alone_do_not_make_a_flapping_node_ready() -> None:
    registry = flapping()
    record = registry.node()
    registry.heartbeats(41, every=15.0, gpus=LOST)
    assert registry.now > record.exits[0] + 600.0
    assert record.status == "degraded"
    registry.heartbeats(2)
    assert record.status == "degraded"
    registry.heartbeats(1)
    assert record.status == "ready"


def test_what_clears_it_names_both_conditions_and_the_seconds_left() -> None:
    registry = flapping()
    (sent,) = [one for one in of(SendStatus, registry.done) if one.reason_code == "flapping"]
    assert sent.clears_when == (
        "3 more healthy heartbeats in a row, and in 588 s, when fewer than 3 exits within 600 s are left; "
        "failing now: gpus (the GPU is not usable (lost: xid_79))"
    )
    again = [one.clears_when for one in of(SendStatus, registry.heartbeats(9, every=15.0)) if one.periodic]
    assert again[-1] is not None
    assert again[-1].startswith("its heartbeats stay healthy, and in 501 s")


def test_damping_needs_no_waking_of_its_own() -> None:
    registry = flapping()
    registry.heartbeats(3)
    before = registry.fleet.deadline
    assert before is not None
    assert before < registry.node().exits[0] + 600.0
    looks = registry.fleet._sweep.deadlines._due["node-1"]
    assert looks == min(
        registry.node().schedule.next_status_at, registry.node().liveness.last_seen_at + 45.0, looks
    )


def test_exits_by_silence_count_too() -> None:
    registry = Registry()
    record = registry.ready()
    for connection in (2, 3):
        registry.pass_time(46.0)
        assert record.reason_code == "heartbeat_timeout"
        registry.do(ConnectionLost(connection - 1))
        come_back(registry, connection)
    registry.heartbeat(3, "node-1", gpus=LOST)
    assert (record.status, record.reason_code) == ("degraded", "flapping")


def test_a_node_back_from_one_silence_too_many_is_held_in_the_step_that_makes_it_ready() -> None:
    registry = Registry()
    record = registry.ready(max_concurrent_jobs=1)
    for connection in (2, 3):
        registry.pass_time(46.0)
        come_back(registry, connection)
    registry.pass_time(46.0)
    registry.come_back(4)
    first, exits = record.exits[0], record.exits
    assert statuses(heartbeats(registry, 3, 4), 4) == ["ready", "degraded"]
    assert (record.status, record.reason_code) == ("degraded", "flapping")
    assert record.reason == "left ready 3 times within 600 s"
    assert record.exits == exits, "being held is no exit"
    assert registry.claim("job-1").counts == {"status_not_ready": 1}
    while registry.now + 15.0 < first + 600.0:
        heartbeats(registry, 1, 4, every=15.0)
        assert record.status == "degraded"
    assert statuses(heartbeats(registry, 1, 4, every=15.0), 4) == ["ready"]
    assert registry.claim("job-1").grants[0].node_id == "node-1"


def test_a_flapping_node_whose_agent_registers_again_stays_damped() -> None:
    registry = flapping()
    record, exits = registry.node(), registry.node().exits
    registry.come_back(2)
    assert record.status == "registering"
    assert statuses(heartbeats(registry, 3, 2), 2) == ["ready", "degraded"]
    assert (record.reason_code, record.exits) == ("flapping", exits)


def test_a_flapping_node_with_a_requested_drain_drains() -> None:
    registry = flapping()
    registry.come_back(2)
    registry.drain()
    heartbeats(registry, 3, 2)
    assert (registry.node().status, registry.node().reason_code) == ("offline", "drain_complete")


def test_between_its_last_exit_and_the_next_heartbeat_it_waits_for_one_heartbeat_more() -> None:
    registry = flapping()
    record = registry.node()
    registry.heartbeats(39, every=15.0)
    registry.now = record.exits[0] + 601.0
    assert clears_when(record, registry.thresholds, registry.now) == "one more healthy heartbeat"


def test_registering_is_no_exit_and_wipes_none() -> None:
    registry = Registry()
    record = registry.ready()
    fail_and_recover(registry)
    fail(registry)
    come_back(registry, 2)
    come_back(registry, 2)
    assert len(record.exits) == 2
    registry.heartbeat(2, "node-1", gpus=LOST)
    assert (record.status, record.reason_code) == ("degraded", "flapping")


def test_leaving_as_planned_is_no_exit() -> None:
    registry = Registry()
    record = registry.ready()
    for _ in range(3):
        registry.drain()
        registry.do(ResumeRequested(registry.ref(), "node-1"))
        registry.heartbeats(3)
        assert record.status == "ready"
    assert record.exits == ()


def test_an_unregistration_is_no_exit() -> None:
    registry = Registry()
    record = registry.ready()
    for connection in (1, 2, 3):
        registry.do(UnregistrationReceived(connection, NodeUnregister(node_id="node-1")))
        assert record.status == "offline"
        registry.arrive(proof("node-1"), connection + 1, "node-1")
        for _ in range(3):
            registry.heartbeat(connection + 1, "node-1")
        assert record.status == "ready"
    assert record.exits == ()


def test_exits_outside_the_window_do_not_count() -> None:
    registry = Registry()
    record = registry.ready()
    fail_and_recover(registry)
    fail_and_recover(registry)
    registry.heartbeats(40, every=15.0)
    fail(registry)
    assert record.reason_code == "gpu_unavailable"


def test_exits_survive_a_restart_of_the_registry() -> None:
    registry = Registry()
    registry.ready()
    fail_and_recover(registry)
    fail_and_recover(registry)
    stored = [
        StoredDocument(
            DocumentKind(kind), key, json.loads(json.dumps(document)), 60.0 + registry.now - written
        )
        for (kind, key), (document, written) in registry.documents.items()
    ]
    fresh = Registry()
    fresh.now = registry.now + 60.0
    fresh.restore(stored)
    assert fresh.node().exits == pytest.approx(registry.node().exits)
    come_back(fresh, 1)
    fresh.heartbeat(gpus=LOST)
    assert fresh.node().reason_code == "flapping"


def test_the_limit_and_the_window_are_settings() -> None:
    registry = Registry(flap_limit=2, flap_window_seconds=30.0)
    record = registry.ready()
    fail_and_recover(registry)
    fail(registry)
    assert record.reason_code == "flapping"
    registry.heartbeats(2, every=10.0)
    assert statuses(registry.heartbeats(1, every=10.0)) == ["ready"]


def test_a_node_whose_heartbeats_flap_without_too_many_exits_is_back_after_healthy_heartbeats() -> None:
    registry = Registry()
    record = registry.ready()
    for healthy in (False, True, False, True, False):
        registry.heartbeat(probe_age_seconds=1.0 if healthy else 99.0)
    assert record.reason_code == "flapping"
    registry.heartbeats(3)
    assert record.status == "ready"
