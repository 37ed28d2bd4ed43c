"""The fleet's figures: kept by what changed, they are what a scan of all nodes would count."""

from collections import Counter

import pytest

from gpu_agent.registry.fleet import Fleet
from gpu_agent.registry.fleet_totals import FleetTotals, Severity, node_figures
from gpu_agent.registry.node import NodeRecord
from gpu_agent.wire.codes import GpuStatus, NodeStatus, ReasonCode
from tests.registry.dispatch.nodes import gpu, gpus, node
from tests.registry.test_claims_at_random import World


def drain(fleet: Fleet, totals: FleetTotals) -> None:
    """Take in what has changed since the last call."""
    while fleet.changed_nodes:
        node_id = fleet.changed_nodes.pop()
        figures = fleet.figures_of(node_id)
        if figures is None:
            totals.remove(node_id)
        else:
            totals.put(figures)


def scanned(fleet: Fleet) -> dict[str, object]:
    """Count without any memory, by the records themselves."""
    records = fleet.nodes()
    statuses = [status for one in records for status in fleet.gpu_statuses(one.node_id)]
    declared = Counter(gpu.name for one in records for gpu in one.gpus.values() if not gpu.is_parent)
    free: dict[str, Counter[str]] = {}
    claims = {GpuStatus.CLAIMED: Counter[str](), GpuStatus.IDLE: Counter[str]()}
    for one in records:
        own = [gpu for gpu in one.gpus.values() if not gpu.is_parent]
        for state, status in zip(own, fleet.gpu_statuses(one.node_id), strict=True):
            free.setdefault(state.name, Counter())[one.node_id] += status is GpuStatus.FREE
            for kind, count in claims.items():
                count[state.name] += status is kind
    return {
        "nodes": Counter(one.status for one in records),
        "reasons": Counter((one.status, one.reason_code) for one in records),
        "gpus": Counter(statuses),
        "models": {
            name: (
                number,
                free[name].total(),
                max(free[name].values()),
                claims[GpuStatus.CLAIMED][name],
                claims[GpuStatus.IDLE][name],
            )
            for name, number in declared.items()
        },
        "slots": (sum(one.slots for one in records), sum(one.in_flight_jobs for one in records)),
        "cordoned": sum(one.desired.cordoned is not None for one in records),
        "attention": sum(needs_attention(one, fleet.gpu_statuses(one.node_id)) for one in records),
    }


def needs_attention(record: NodeRecord, statuses: tuple[GpuStatus, ...]) -> bool:
    drained = record.reason_code in {ReasonCode.DRAIN_COMPLETE, ReasonCode.DRAIN_DEADLINE}
    return (
        (record.status is NodeStatus.OFFLINE and not drained)
        or record.status is NodeStatus.DEGRADED
        or not {GpuStatus.LOST, GpuStatus.UNKNOWN}.isdisjoint(statuses)
        or any(one.health == "degraded" for one in record.gpus.values() if not one.is_parent)
    )


def kept(totals: FleetTotals) -> dict[str, object]:
    return {
        "nodes": totals.nodes,
        "reasons": totals.reasons,
        "gpus": totals.gpus,
        "models": {
            name: (one.gpus, one.free, one.most_free_on_one_node, one.claimed, one.idle)
            for name, one in totals.gpu_models.items()
        },
        "slots": (totals.slots, totals.slots_taken),
        "cordoned": totals.cordoned,
        "attention": totals.attention,
    }


@pytest.mark.parametrize("seed", range(16))
def test_what_is_kept_is_what_a_scan_counts_whatever_happens(seed: int) -> None:
    world, totals = World(seed), FleetTotals()
    for _ in range(200):
        world.step()
        drain(world.registry.fleet, totals)
        assert kept(totals) == scanned(world.registry.fleet)


def test_an_ordinary_heartbeat_marks_no_node_as_changed() -> None:
    world = World(0)
    registry = world.registry
    registry.arrive(None, 1, "node-1")
    for _ in range(20):
        registry.pass_time(2.0)
        registry.heartbeat(1, "node-1")
    registry.fleet.changed_nodes.clear()
    for _ in range(20):
        registry.pass_time(2.0)
        registry.heartbeat(1, "node-1")
    assert not registry.fleet.changed_nodes


def severity(record: NodeRecord, *statuses: GpuStatus) -> Severity:
    return node_figures(record, statuses or (GpuStatus.FREE,)).severity


def test_a_node_that_is_offline_after_its_drain_needs_no_attention() -> None:
    drained = node(status=NodeStatus.OFFLINE, reason_code=ReasonCode.DRAIN_COMPLETE)
    silent = node(status=NodeStatus.OFFLINE, reason_code=ReasonCode.HEARTBEAT_TIMEOUT)
    assert not severity(drained).needs_attention
    assert severity(silent).needs_attention


def test_a_ready_node_with_a_degraded_or_a_lost_gpu_needs_attention() -> None:
    degraded = node(gpus=gpus(gpu("GPU-0", health="degraded")))
    assert severity(degraded) is Severity.GPU_DEGRADED
    assert severity(node(), GpuStatus.LOST) is Severity.GPU_LOST
    assert severity(node()) is Severity.READY
    assert severity(node(cordoned="a fan")) is Severity.READY


def test_models_count_on_ready_nodes_only() -> None:
    totals = FleetTotals()
    totals.put(node_figures(node("node-A", ready_models=frozenset({"asr"})), (GpuStatus.FREE,)))
    offline = node("node-B", status=NodeStatus.OFFLINE, ready_models=frozenset({"asr"}))
    totals.put(node_figures(offline, (GpuStatus.NOT_SCHEDULABLE,)))
    assert totals.models == {"asr": 1}
    totals.remove("node-A")
    assert not totals.models
    assert list(totals.nodes) == [NodeStatus.OFFLINE]
