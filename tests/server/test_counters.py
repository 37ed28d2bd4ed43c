import asyncio
import time
from math import inf

import pytest

from gpu_agent.registry.actions import LogEvent
from gpu_agent.registry.gpus import Gpus, GpuState
from gpu_agent.registry.node import Declared, Drain, NodeRecord, ReportedJobs
from gpu_agent.server.counters import (
    LAG_SAMPLE_SECONDS,
    MAX_GPU_NAME_LENGTH,
    MAX_GPU_NAMES,
    NODES_IN_A_SLICE,
    OTHER,
    EventCounters,
    Histogram,
    LagSampler,
    PerformanceMeter,
    count_fleet,
    lateness_of_ticks,
)
from gpu_agent.wire.codes import ExclusionReason, NodeStatus
from gpu_agent.wire.messages import Hardware, NodeRegister
from tests.server.harness import until


def counted(*notes: LogEvent) -> EventCounters:
    counters = EventCounters()
    for note in notes:
        counters.count(note.event, note.fields)
    return counters


def test_registrations_are_counted() -> None:
    assert counted(LogEvent("node_registered", {"node_id": "a"})).registrations == 1


def test_status_changes_are_counted_by_both_statuses_and_reason() -> None:
    fields = {"node_id": "a", "from": "ready", "to": "offline", "reason_code": "heartbeat_timeout"}
    found = counted(LogEvent("node_status_changed", fields)).status_changes
    assert +found == {("ready", "offline", "heartbeat_timeout"): 1}


def test_the_first_status_of_a_node_is_counted_as_from_none() -> None:
    fields = {"node_id": "n", "from": None, "to": "registering", "reason_code": "registered"}
    found = counted(LogEvent("node_status_changed", fields)).status_changes
    assert +found == {("none", "registering", "registered"): 1}


def test_each_transition_that_may_happen_is_counted_from_0() -> None:
    fields = {"node_id": "a", "from": "ready", "to": "offline", "reason_code": "heartbeat_timeout"}
    before, after = EventCounters().status_changes, counted(LogEvent("node_status_changed", fields))
    assert before["ready", "offline", "heartbeat_timeout"] == before.total() == 0
    assert before.keys() == after.status_changes.keys()


@pytest.mark.parametrize(
    ("event", "outcome"),
    [
        ("job_assigned", "granted"),
        ("claim_released", "released"),
        ("claim_lost", "lost"),
        ("claim_expired", "expired"),
        ("claim_reattached", "reattached"),
    ],
)
def test_events_of_claims_are_counted(event: str, outcome: str) -> None:
    counters = counted(LogEvent(event, {"job_id": "j"}))
    assert counters.claims[outcome] == counters.claims.total() == 1


def test_a_failed_dispatch_counts_once_and_its_reasons_node_by_node() -> None:
    failed = LogEvent("dispatch_failed", {"job_id": "j", "counts": {"cordoned": 3, "disconnected": 1}})
    counters = counted(failed, failed)
    assert (counters.failures, +counters.exclusions) == (2, {"cordoned": 6, "disconnected": 2})
    assert counters.exclusions.keys() == set(ExclusionReason)


def test_other_events_are_not_counted() -> None:
    counters = counted(LogEvent("drain_requested", {"node_id": "a"}))
    assert counters.registrations == counters.failures == counters.claims.total() == 0


HARDWARE = Hardware.model_validate({"cpu_cores": 1, "memory_gb": 1, "gpus": []})
REGISTRATION = NodeRegister(version="1", hardware=HARDWARE)


def gpu(uuid: str, name: str = "NVIDIA L4", *, health: str = "ok", is_parent: bool = False) -> GpuState:
    return GpuState(uuid=uuid, name=name, memory_mb=1024, health=health, is_parent=is_parent)


def record(node_id: str, *gpus: GpuState, status: NodeStatus = NodeStatus.READY) -> NodeRecord:
    return NodeRecord(
        node_id=node_id,
        declared=Declared(registration=REGISTRATION),
        registered_at=0.0,
        status=status,
        gpus=Gpus(gpus),
    )


async def test_nodes_and_slots_are_counted_by_status() -> None:
    busy, lost = record("a"), record("b", status=NodeStatus.OFFLINE)
    busy.declared = Declared(registration=REGISTRATION, max_concurrent_jobs=8)
    busy.jobs, busy.connection = ReportedJobs.of(None, 3), 1
    lost.desired.cordoned, lost.desired.drain = "broken", Drain(by_operator=True, deadline=1.0)
    counted = await count_fleet([busy, lost])
    assert (counted.statuses["ready"], counted.statuses["offline"], counted.statuses["degraded"]) == (
        1,
        1,
        0,
    )
    assert (counted.slots["ready"], counted.occupied["ready"]) == (8, 3)
    assert (counted.connected, counted.open, counted.cordoned, counted.drained) == (1, 1, 1, 1)
    assert (counted.claims, counted.held_gpus, counted.cordoned_gpus) == (0, 0, 0)


async def test_a_node_may_take_jobs_while_it_is_ready_connected_and_not_cordoned() -> None:
    nodes = [record(node_id) for node_id in "abc"]
    nodes.append(record("d", status=NodeStatus.DRAINING))
    for number, one in enumerate(nodes[1:]):
        one.connection = number
    assert (await count_fleet(nodes)).open == 2
    nodes[1].desired.cordoned = ""
    assert (await count_fleet(nodes)).open == 1


async def test_gpus_are_counted_by_name_and_health_without_parents_of_mig_devices() -> None:
    counters = await count_fleet(
        [
            record("a", gpu("1"), gpu("2", health="lost")),
            record("b", gpu("1"), gpu("2", "H100", is_parent=True), gpu("3", "H100 MIG 1g.10gb")),
        ]
    )
    assert counters.gpus == {
        ("NVIDIA L4", "ok"): 2,
        ("NVIDIA L4", "lost"): 1,
        ("H100 MIG 1g.10gb", "ok"): 1,
    }


async def test_names_that_peers_choose_are_bounded() -> None:
    odd = [gpu(str(number), f"{number:03d}{'x' * 500}", health=f"h{number}") for number in range(100)]
    gpus = (await count_fleet([record("a", *odd)])).gpus
    names = {name for name, _ in gpus}
    assert len(names) == MAX_GPU_NAMES + 1
    assert OTHER in names
    assert max(map(len, names)) == MAX_GPU_NAME_LENGTH
    assert {health for _, health in gpus} == {OTHER}
    assert gpus.total() == 100


async def test_a_gpus_name_controls_no_terminal_that_shows_it() -> None:
    assert (await count_fleet([record("a", gpu("1", "L4\x1b[2J\r\n"))])).gpus == {("L4?[2J??", "ok"): 1}


async def test_other_tasks_run_while_ten_thousand_nodes_are_counted() -> None:
    """The cost of a slice is measured by a benchmark."""
    fleet = [record(str(number), *(gpu(str(place)) for place in range(8))) for number in range(10_000)]
    counting, turns = asyncio.ensure_future(count_fleet(fleet)), 0
    while not counting.done():
        await asyncio.sleep(0)
        turns += 1
    assert turns >= 10_000 / NODES_IN_A_SLICE
    assert counting.result().gpus == {("NVIDIA L4", "ok"): 80_000}


def test_heartbeats_are_counted_over_the_period() -> None:
    meter = PerformanceMeter(now=10.0)
    assert meter.read(now=20.0, heartbeats=500).heartbeats_per_second == 50.0
    assert meter.read(now=30.0, heartbeats=500).heartbeats_per_second == 0.0


def test_the_largest_lag_of_the_period_is_in_milliseconds() -> None:
    meter = PerformanceMeter(now=0.0)
    for seconds in (0.001, 0.0254, 0.002):
        meter.lagged(seconds)
    assert meter.read(now=1.0, heartbeats=0).loop_lag_ms == 25.4
    assert meter.read(now=2.0, heartbeats=0).loop_lag_ms == 0.0


def test_lag_has_a_median_and_a_99th_percentile() -> None:
    meter = PerformanceMeter(now=0.0)
    for milliseconds in range(1, 201):
        meter.lagged(milliseconds / 1e3)
    figures = meter.read(now=1.0, heartbeats=0)
    assert (figures.loop_lag_p50_ms, figures.loop_lag_p99_ms) == (101.0, 199.0)
    assert meter.read(now=2.0, heartbeats=0).loop_lag_p99_ms is None


def test_the_99th_percentile_of_selections_is_in_microseconds() -> None:
    meter = PerformanceMeter(now=0.0)
    for microseconds in range(1, 201):
        meter.selected(microseconds / 1e6)
    assert meter.read(now=1.0, heartbeats=0).select_p99_us == 199.0


def test_the_99th_percentile_of_commits_is_that_of_the_period() -> None:
    meter = PerformanceMeter(now=0.0)
    commits = [milliseconds / 1e3 for milliseconds in range(200, 0, -1)]
    assert meter.read(now=1.0, heartbeats=0, commits=commits).commit_p99_ms == 199.0
    assert meter.read(now=2.0, heartbeats=0).commit_p99_ms is None


def test_without_selections_there_is_no_percentile() -> None:
    assert PerformanceMeter(now=0.0).read(now=1.0, heartbeats=0).select_p99_us is None


def test_a_value_counts_for_its_bound_and_all_above() -> None:
    histogram = Histogram((1.0, 2.0))
    for value in (0.5, 1.0, 1.5, 9.0):
        histogram.add(value)
    assert list(histogram.cumulative()) == [(1.0, 2), (2.0, 3), (inf, 4)]
    assert histogram.sum == 12.0


def test_nothing_measured_is_nothing_counted() -> None:
    assert list(Histogram((1.0,)).cumulative()) == [(1.0, 0), (inf, 0)]


def test_a_stall_counts_once_for_every_tick_that_it_delayed() -> None:
    assert lateness_of_ticks(0.0) == [0.0]
    assert lateness_of_ticks(0.015) == [0.015]
    assert lateness_of_ticks(0.25) == pytest.approx([0.25, 0.15, 0.05])
    assert len(lateness_of_ticks(1.0)) == pytest.approx(1.0 / LAG_SAMPLE_SECONDS, abs=1)


def test_a_night_of_suspension_counts_a_bounded_number_of_ticks() -> None:
    assert len(lateness_of_ticks(40_000.0)) < 1000
    assert lateness_of_ticks(40_000.0)[0] == 40_000.0


async def test_a_stalled_loop_is_measured_as_late() -> None:
    late: list[float] = []
    sampler = LagSampler(late.append, monotonic=time.monotonic)
    sampler.start()
    await until(lambda: len(late) >= 2, what="a quiet loop sampled")
    late.clear()
    time.sleep(0.4)  # noqa: ASYNC251 - the stall itself
    await until(lambda: late, what="the stall noted")
    assert max(late) > 0.25
    assert len(late) >= 0.25 / LAG_SAMPLE_SECONDS
    sampler.stop()


async def test_a_stopped_sampler_measures_no_more() -> None:
    late: list[float] = []
    sampler = LagSampler(late.append, monotonic=time.monotonic)
    sampler.stop()
    sampler.start()
    await until(lambda: late, what="a first sample")
    sampler.stop()
    known = len(late)
    other = LagSampler(late.append, monotonic=time.monotonic)
    other.start()
    await until(lambda: len(late) > known, what="a sampler that still runs")
    other.stop()
    assert len(late) == known + 1
