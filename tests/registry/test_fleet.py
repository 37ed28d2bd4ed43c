"""The fleet as a whole: the acceptance rules, its waking, and what no sequence of events may break."""

import json
from collections.abc import Sequence
from itertools import pairwise
from math import inf
from random import Random

import pytest
from hypothesis import given, settings, strategies

from gpu_agent.registry.actions import (
    CloseConnection,
    Effect,
    LogEvent,
    Send,
    SendStatus,
    unknown_node_message,
    unknown_token_message,
)
from gpu_agent.registry.events import (
    Event,
    HeartbeatReceived,
    RemovalRequested,
    RenewalRequested,
    ResumeRequested,
    Traced,
)
from gpu_agent.registry.job import Job
from gpu_agent.registry.lifecycle import silent_until
from gpu_agent.registry.node import NodeRecord, NodeTable
from gpu_agent.registry.quoting import LONGEST_SENTENCE
from gpu_agent.registry.settings import Policy
from gpu_agent.wire.messages import GpuDeclaration, Hardware
from tests.registry.fuzz import Fuzzer
from tests.registry.harness import Registry, codes, hardware, heartbeat, logged, node_record, of
from tests.registry.invariants import CheckedRegistry
from tests.registry.random_events import TURNS, Burst


def test_a1_without_a_gpu_a_node_is_never_registered() -> None:
    registry = Registry()
    for _ in range(3):
        assert codes(registry.register(hardware=hardware(0))) == ["GPU_REQUIRED"]
        assert codes(registry.heartbeat()) == ["UNKNOWN_NODE"]
    assert registry.fleet.nodes() == []


def test_a2_a_node_is_registering_first_and_only_ready_is_schedulable() -> None:
    registry = Registry()
    registry.register()
    for count in range(3):
        assert registry.node().status == "registering"
        assert registry.claim(f"job-{count}").counts == {"status_not_ready": 1}
        registry.heartbeats(1)
    assert registry.node().status == "ready"
    assert registry.claim("job-1").grants[0].node_id == "node-1"


def test_a3_every_exclusion_is_explainable_on_request() -> None:
    registry = Registry()
    registry.ready(1)
    other = GpuDeclaration(name="NVIDIA H100", memory_gb=80, uuid="GPU-of-another-node")
    registry.register(2, hardware=Hardware(cpu_cores=8, memory_gb=64, gpus=(other,)))
    explained = registry.fleet.explain(Job(job_id="job-1"), registry.now)
    assert explained.eligible == ("node-1",)
    assert [(one.node_id, one.reason) for one in explained.excluded] == [("node-2", "status_not_ready")]


def test_waking_early_is_harmless() -> None:
    registry = Registry()
    registry.ready()
    deadline = registry.fleet.deadline
    assert deadline is not None
    registry.now = deadline - 0.001
    assert registry.wake() == []
    assert registry.fleet.deadline == deadline


def test_an_empty_fleet_waits_for_nothing() -> None:
    registry = Registry()
    assert registry.fleet.deadline is None
    assert registry.wake() == []


def test_the_fleet_is_woken_at_most_twice_per_scan_interval_so_that_no_timeout_is_noticed_later() -> None:
    registry = Registry(scan_interval_seconds=1.0)
    for connection in range(1, 30):
        registry.now += 0.07
        registry.register(connection)
    woken = []
    while (deadline := registry.fleet.deadline) is not None and deadline < 1200.0:
        registry.now = deadline
        woken.append(deadline)
        registry.wake()
    assert all(after - before >= 0.5 for before, after in pairwise(woken))
    assert min(after - before for before, after in pairwise(woken)) < 0.9


def test_nodes_are_listed_by_id_and_found_by_it() -> None:
    registry = Registry()
    for connection in (3, 1, 2):
        registry.register(connection)
    assert [record.node_id for record in registry.fleet.nodes()] == ["node-1", "node-2", "node-3"]
    assert [record.node_id for record in registry.fleet.nodes(after="node-1")] == ["node-2", "node-3"]
    assert registry.fleet.node("node-9") is None
    assert registry.fleet.size == 3


@settings(deadline=None, max_examples=150)
@given(turns=TURNS, auth_off=strategies.booleans())
def test_no_sequence_of_events_breaks_what_always_holds(
    turns: list[tuple[Event | Burst, float, bool]],
    auth_off: bool,  # noqa: FBT001 - drawn, not called
) -> None:
    registry = Registry(auth_off=auth_off)
    for connection in (1, 2, 3):
        registry.ready(connection)
    checked = CheckedRegistry(registry)
    for event, seconds, fails in turns:
        registry.let_store_fail(fails=fails)
        if isinstance(event, Burst):
            checked.heartbeats(event)
        else:
            checked.happens(event)
        registry.now += seconds
        checked.wakes()
    registry.let_store_fail(fails=False)
    registry.pass_time(10_000.0)
    checked.everything_ended()


@pytest.mark.parametrize("kind", [SendStatus, Send])
def test_a_healthy_heartbeat_sends_nothing(kind: type) -> None:
    registry = Registry()
    registry.ready()
    assert of(kind, registry.heartbeats(5)) == []


@settings(deadline=None, max_examples=30)
@given(dice=strategies.randoms(use_true_random=True), auth_off=strategies.booleans())
def test_s06_nothing_that_nodes_may_send_stops_the_clock_or_lets_a_silent_one_stay(
    dice: Random,
    auth_off: bool,  # noqa: FBT001 - drawn, not called
) -> None:
    registry, fuzzer = Registry(auth_off=auth_off, claim_ttl_seconds=20.0), Fuzzer(dice)
    for connection in range(1, 15):
        registry.register(connection, hardware=hardware(2))
    for _ in range(60):
        registry.let_store_fail(fails=dice.random() < 1 / 10)
        beating = dice.choice((0.0, 0.3, 0.9, 0.9))
        for record in registry.fleet.nodes():
            if record.connection is not None and dice.random() < beating:
                odd = dice.random() < 1 / 3
                message = fuzzer.heartbeat(record.node_id) if odd else heartbeat(record.node_id, gpus=None)
                registry.do(HeartbeatReceived(record.connection, message))
        registry.do(fuzzer.anything())
        registry.pass_time(dice.choice((0.0, 2.0, 10.0, 10.0, 31.0)))
        if not registry.failing:
            nobody_is_silent_for_too_long(registry)
    nothing_said_is_longer_than_a_person_reads(registry.done)
    json.dumps([document for document, _ in registry.documents.values()], allow_nan=False)


def nobody_is_silent_for_too_long(registry: Registry) -> None:
    for record in registry.fleet.nodes():
        late = registry.now - silent_until(record)
        assert record.status == "offline" or late <= registry.thresholds.scan_interval_seconds


def nothing_said_is_longer_than_a_person_reads(done: Sequence[Effect]) -> None:
    sent = of(SendStatus, done)
    said = [one.reason for one in sent] + [one.clears_when or "" for one in sent]
    said += [check.detail for one in sent for check in one.checks]
    said += [one.reason for one in of(CloseConnection, done)]
    said += [
        value
        for one in of(LogEvent, done)
        for name, value in one.fields.items()
        if isinstance(value, str) and name not in ("reason", "job_id")  # no node wrote these
    ]
    assert max(map(len, said)) <= LONGEST_SENTENCE


def test_what_follows_from_a_request_is_logged_with_its_trace_and_what_time_made_due_is_not() -> None:
    registry = Registry()
    registry.ready()
    registry.do(registry.claim_request("job-1"))
    registry.drain()
    registry.now += 61.0  # the claim is over, and the fleet was not woken since
    renewed = registry.do(Traced(RenewalRequested(registry.ref(), "job-1"), "trace-1"))
    assert [entry.fields.get("trace_id") for entry in logged(renewed, "claim_expired")] == [None]
    done = registry.do(Traced(ResumeRequested(registry.ref(), "node-1"), "trace-2"))
    sent = [(entry.event, entry.fields["trace_id"]) for entry in of(LogEvent, done)]
    assert sent == [("resume_requested", "trace-2"), ("node_status_changed", "trace-2")]
    assert "trace_id" not in of(LogEvent, registry.do(ResumeRequested(registry.ref(), "node-1")))[0].fields


def test_the_default_policy_is_the_strict_one() -> None:
    assert not Policy().allow_simulated
    assert not Policy().auth_off


def test_an_unknown_id_is_named_with_the_command_that_lists_the_known_ones() -> None:
    assert (
        unknown_node_message("node-7")
        == "no node 'node-7' is known: `gpu-agent registry node list` lists them"
    )
    token = unknown_token_message("3f9a01bc")
    assert token == "no token '3f9a01bc' is known: `gpu-agent registry token list` lists them"


def test_a_removed_node_has_no_deadline_no_count_and_no_token() -> None:
    registry = Registry()
    registry.ready()
    fleet = registry.fleet
    assert fleet._sweep.deadlines.earliest < inf
    assert fleet._counters.live == 1
    assert fleet.credential("digest of node-1", registry.now) is not None
    registry.do(RemovalRequested(registry.ref(), "node-1"))
    assert list(fleet._sweep.deadlines._due) == []
    assert fleet._counters.live == 0
    assert fleet.credential("digest of node-1", registry.now) is None


def table_with_node() -> tuple[NodeTable, NodeRecord]:
    nodes = NodeTable()
    record = node_record()
    nodes.add(record)
    nodes.bind(record, 1)
    return nodes, record


def test_a_bound_connection_stands_for_its_node_until_it_ends() -> None:
    nodes, record = table_with_node()
    assert (nodes.by_connection, record.connection) == ({1: record}, 1)
    assert nodes.connection_ended(1) is record
    assert (nodes.by_connection, record.connection) == ({}, None)
    assert nodes.connection_ended(1) is None


def test_a_dismissed_connection_is_not_listened_to_and_is_forgotten_when_it_ends() -> None:
    nodes, record = table_with_node()
    nodes.dismiss(1)
    assert nodes.is_dismissed(1)
    assert record.connection is None
    assert nodes.connection_ended(1) is None
    assert not nodes.is_dismissed(1)


def test_a_removed_node_is_not_known_and_its_connection_stands_for_no_node() -> None:
    nodes, record = table_with_node()
    nodes.remove(record)
    nodes.remove(record)
    assert (nodes.records, nodes.by_connection) == ({}, {})
