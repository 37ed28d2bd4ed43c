"""How often a fleet heartbeats: never more than the registry was set up for, and evenly."""

import heapq
from collections import Counter
from collections.abc import Iterable
from random import Random

import pytest

from gpu_agent.registry.actions import DocumentKind, Send, SendStatus
from gpu_agent.registry.events import (
    ConnectionLost,
    HeartbeatReceived,
    RegistrationReceived,
    RemovalRequested,
)
from gpu_agent.registry.node import FleetCounters, NodeRecord
from gpu_agent.registry.pacing import SPREAD, interval_for, warmup_interval_for, worth_sending
from gpu_agent.registry.persistence import StoredDocument
from gpu_agent.registry.settings import Thresholds
from gpu_agent.wire.codes import NodeStatus
from gpu_agent.wire.messages import NodeRegisterAck
from tests.registry.dispatch.nodes import node
from tests.registry.harness import Registry, declaration, heartbeat, of, proof

SETTINGS = Thresholds()
RATE = SETTINGS.max_heartbeats_per_second
UNEVENNESS = 1.1
"""By so much a single second may exceed the rate, by chance."""


def busiest(heartbeats: Iterable[float], *, after: float = 0.0) -> int:
    """How many heartbeats come in the busiest second."""
    return max(Counter(int(at) for at in heartbeats if at >= after).values(), default=0)


def test_a_small_fleet_sends_heartbeats_as_configured_whatever_was_drawn() -> None:
    assert interval_for(1, SETTINGS, share=0.9) == 15.0
    assert interval_for(6000, SETTINGS, share=0.9) == 15.0


def test_a_large_fleet_is_spread() -> None:
    assert interval_for(10_000, SETTINGS, share=0.0) == 15.0
    assert interval_for(10_000, SETTINGS, share=0.5) == pytest.approx(15.0 * (1 + SPREAD / 2))


@pytest.mark.parametrize("nodes", [1, 100, 60_000, 60_001, 100_000, 1_000_000])
def test_the_fleet_never_sends_heartbeats_faster_than_the_rate_allows(nodes: int) -> None:
    interval = interval_for(nodes, SETTINGS)
    assert nodes / interval <= RATE
    assert interval >= SETTINGS.heartbeat_interval_seconds


def test_the_rate_is_a_setting() -> None:
    assert interval_for(50_000, Thresholds(max_heartbeats_per_second=500.0)) == 100.0


def test_a_longer_interval_is_sent_at_once_and_a_shorter_one_when_it_matters() -> None:
    assert not worth_sending(15.0, 15.1)
    assert worth_sending(15.0, 15.5)
    assert not worth_sending(30.0, 25.0)
    assert worth_sending(30.0, 15.0)


def test_a_hundred_thousand_settled_nodes_send_heartbeats_under_the_rate_and_evenly() -> None:
    dice, heartbeats = Random(7), list[float]()  # noqa: S311
    for _ in range(100_000):
        interval = interval_for(100_000, SETTINGS, share=dice.random())
        at = dice.random() * interval
        while at < 120.0:
            heartbeats.append(at)
            at += interval
    assert len(heartbeats) / 120.0 <= RATE
    assert busiest(heartbeats) <= RATE * UNEVENNESS


def test_a_few_nodes_warm_up_as_configured() -> None:
    assert warmup_interval_for(1, SETTINGS, share=0.9) == 2.0
    assert warmup_interval_for(800, SETTINGS, share=0.9) == 2.0


@pytest.mark.parametrize("nodes", [1_000, 5_000, 10_000, 17_000, 34_000])
def test_when_all_come_back_in_the_same_second_their_heartbeats_after_the_first_stay_under_the_rate(
    nodes: int,
) -> None:
    dice, heartbeats, settled_at = Random(7), list[float](), 0.0  # noqa: S311
    for _ in range(nodes):
        came, warmup = dice.random(), warmup_interval_for(nodes, SETTINGS, share=dice.random())
        interval = interval_for(nodes, SETTINGS, share=dice.random())
        ready_at = came + 2 * warmup
        heartbeats += [came + warmup, ready_at]
        heartbeats += [ready_at + count * interval for count in range(1, 8)]
        settled_at = max(settled_at, ready_at)
    assert busiest(heartbeats) <= RATE * UNEVENNESS
    assert settled_at <= SETTINGS.warmup_timeout_seconds / 2 + 1


@pytest.mark.parametrize("nodes", [34_000, 100_000, 1_000_000])
def test_however_many_come_back_the_healthy_heartbeats_fit_into_the_warmup_with_one_to_spare(
    nodes: int,
) -> None:
    longest = warmup_interval_for(nodes, SETTINGS, share=1.0)
    assert longest * SETTINGS.healthy_heartbeats_needed < SETTINGS.warmup_timeout_seconds
    assert longest * 3 <= SETTINGS.heartbeat_timeout_seconds


def test_a_hundred_thousand_that_come_back_at_once_exceed_the_rate_for_less_than_a_warmup() -> None:
    """There the warm-up binds: what the rate would need does not fit into a minute."""
    dice, heartbeats = Random(7), list[float]()  # noqa: S311
    for _ in range(100_000):
        warmup = warmup_interval_for(100_000, SETTINGS, share=dice.random())
        interval = interval_for(100_000, SETTINGS, share=dice.random())
        heartbeats += [warmup, 2 * warmup, *(2 * warmup + count * interval for count in range(1, 5))]
    assert busiest(heartbeats) <= 3 * RATE
    over = [second for second, count in Counter(map(int, heartbeats)).items() if count > RATE * UNEVENNESS]
    assert max(over) - min(over) < SETTINGS.warmup_timeout_seconds


def test_nodes_that_warm_up_leave_room_for_those_that_have_settled() -> None:
    alone = warmup_interval_for(8_000, SETTINGS, share=1.0)
    beside = warmup_interval_for(8_000, SETTINGS, settled=30_000, share=1.0)
    crowded = warmup_interval_for(8_000, SETTINGS, settled=1_000_000, share=1.0)
    assert alone < beside < crowded <= 15.0


def test_a_node_that_needs_one_healthy_heartbeat_is_not_slowed_down() -> None:
    assert warmup_interval_for(10_000, Thresholds(healthy_heartbeats_needed=1), share=1.0) == 2.0


def test_a_configured_warmup_interval_is_never_shortened() -> None:
    slow = Thresholds(warmup_heartbeat_interval_seconds=30.0)
    assert warmup_interval_for(100_000, slow, share=1.0) == 30.0


NODES, FLEET_RATE = 1000, 200.0


def restarted() -> Registry:
    """A registry that has just come back, with a fleet that it knows and that has not come back yet."""
    before = Registry(max_heartbeats_per_second=FLEET_RATE)
    for connection in range(1, NODES + 1):
        before.ready(connection)
    fresh = Registry(max_heartbeats_per_second=FLEET_RATE)
    dice = Random(7)  # noqa: S311
    fresh.fleet._sweep._pacer._draw = dice.random
    fresh.restore(
        [
            StoredDocument(DocumentKind(kind), key, document, 0.0)
            for (kind, key), (document, _) in before.documents.items()
        ]
    )
    return fresh


def test_a_fleet_that_comes_back_after_a_restart_sends_heartbeats_under_the_rate_and_is_ready_in_time() -> (
    None
):
    registry, dice = restarted(), Random(8)  # noqa: S311
    began = registry.now
    due = [(began + dice.random(), connection, 0) for connection in range(1, NODES + 1)]
    heapq.heapify(due)
    intervals: dict[int, tuple[float, float]] = {}
    heartbeats = list[float]()
    while due[0][0] < began + 60.0:
        at, connection, turn = heapq.heappop(due)
        registry.pass_time(max(0.0, at - registry.now))
        node_id = f"node-{connection}"
        if turn == 0:
            done = registry.do(
                RegistrationReceived(connection, declaration(), "x", credential=proof(node_id))
            )
            (ack,) = [one.message for one in of(Send, done) if isinstance(one.message, NodeRegisterAck)]
            assert ack.warmup_heartbeat_interval_seconds is not None
            assert ack.heartbeat_interval_seconds is not None
            intervals[connection] = (ack.warmup_heartbeat_interval_seconds, ack.heartbeat_interval_seconds)
        elif turn > 1:
            heartbeats.append(at - began)
        registry.do(HeartbeatReceived(connection, heartbeat(node_id)))
        warmup, steady = intervals[connection]
        ready = registry.node(node_id).status == "ready"
        heapq.heappush(due, (at + (steady if ready else warmup), connection, turn + 1))
    assert busiest(heartbeats) <= FLEET_RATE * UNEVENNESS
    became = [record.since - began for record in registry.fleet.nodes() if record.status == "ready"]
    assert len(became) == NODES
    assert max(became) < registry.thresholds.warmup_timeout_seconds


def test_a_fleet_that_grows_receives_longer_intervals_and_one_that_shrinks_shorter_ones() -> None:
    registry = Registry(
        heartbeat_interval_seconds=10.0, node_status_interval_seconds=10.0, max_heartbeats_per_second=1.0
    )
    record = registry.ready()
    for connection in range(2, 42):
        registry.register(connection)
    sent = [one for one in of(SendStatus, registry.heartbeats(3, every=10.0)) if one.connection == 1]
    grown = sent[-1].heartbeat_interval_seconds
    assert grown == pytest.approx(41.0 * (1 + SPREAD * record.schedule.share))
    registry.heartbeats(30, every=10.0)
    assert record.schedule.interval_seconds < 13.0


def test_a_node_keeps_its_share_within_the_spread() -> None:
    registry = Registry(heartbeat_interval_seconds=10.0, max_heartbeats_per_second=1.0)
    registry.fleet._sweep._pacer._draw = iter([0.25] * 3 + [0.75] * 300).__next__
    record = registry.ready()
    for connection in range(2, 42):
        registry.register(connection)
    registry.heartbeats(10, every=10.0)
    assert record.schedule.share == 0.25


def counts(*records: NodeRecord) -> tuple[int, int]:
    counters = FleetCounters()
    for record in records:
        counters.count(record)
    return counters.live, counters.warming


def test_a_settled_node_is_live_and_one_that_registers_warms_up() -> None:
    assert counts(node(), node("node-B", status=NodeStatus.REGISTERING)) == (2, 1)


def test_a_node_that_will_come_back_will_warm_up() -> None:
    assert counts(node(connection=None), node("node-B", suspected_until=9.0)) == (2, 2)


def test_a_node_that_is_offline_counts_while_its_session_is_open() -> None:
    gone = node(status=NodeStatus.OFFLINE, connection=None)
    emptied = node("node-B", status=NodeStatus.OFFLINE)
    assert counts(gone, emptied) == (1, 0)


def test_a_node_is_counted_as_it_was_last_and_not_once_it_is_forgotten() -> None:
    counters, record = FleetCounters(), node(status=NodeStatus.REGISTERING)
    counters.count(record)
    record.status = NodeStatus.READY
    counters.count(record)
    assert (counters.live, counters.warming) == (1, 0)
    counters.remove("node-A")
    counters.remove("node-A")
    assert counters.live == 0


def test_the_fleets_counters_are_what_a_recount_finds() -> None:
    registry, dice = Registry(), Random(7)  # noqa: S311
    for _ in range(300):
        connection = dice.randrange(1, 9)
        known = registry.fleet.node(f"node-{connection}")
        match dice.randrange(6):
            case 0:
                registry.register(connection)
            case 1 if known is not None and known.connection is not None:
                registry.do(ConnectionLost(connection))
            case 2 if known is not None:
                registry.drain(f"node-{connection}")
            case 3 if known is not None and dice.random() < 0.2:
                registry.do(RemovalRequested(registry.ref(), f"node-{connection}"))
            case 4:
                registry.pass_time(10.0 * dice.random())
            case _:
                registry.heartbeat(connection)
        counters = registry.fleet._counters
        assert (counters.live, counters.warming) == counts(*registry.fleet.nodes())
