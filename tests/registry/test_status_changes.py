"""Status changes: the table of transitions, what is sent, and what follows from one."""

from itertools import product

import pytest

from gpu_agent.registry.actions import SendStatus, Step
from gpu_agent.registry.claims import ClaimRequests
from gpu_agent.registry.dispatch.dispatch import Dispatch
from gpu_agent.registry.events import ConnectionLost, DrainRequested, ReleaseRequested, ResumeRequested
from gpu_agent.registry.lifecycle import (
    HISTORY_LENGTH,
    TRANSITIONS,
    IllegalTransitionError,
    change_status,
    clears_when,
    describe_history,
    heartbeats_needed,
    status_of,
)
from gpu_agent.registry.node import Drain, NodeRecord, NodeTable, ReportedJobs, Transition
from gpu_agent.registry.persistence import StoredDocument, UnstoredChanges
from gpu_agent.registry.settings import Thresholds
from gpu_agent.registry.status import StatusTransitions, current_status
from gpu_agent.wire.codes import CloseCode, NodeStatus, ReasonCode
from gpu_agent.wire.messages import ResourceUsage
from tests.registry.harness import (
    Registry,
    closed,
    figures,
    logged,
    node_record,
    of,
    proof,
    statuses,
)

NOW = 100.0


class Bench:
    """Transitions of one registering node, connected as 1."""

    def __init__(self) -> None:
        thresholds, self.nodes = Thresholds(), NodeTable()
        dispatch = Dispatch(thresholds, lambda: 0.0)
        claims = ClaimRequests(thresholds, dispatch, debug=lambda: False)
        self.transitions = StatusTransitions(
            thresholds, self.nodes, dispatch=dispatch, claims=claims, unstored=UnstoredChanges()
        )
        self.record = node_record()
        self.nodes.add(self.record)
        self.nodes.bind(self.record, 1)
        self.change(NodeStatus.REGISTERING, ReasonCode.REGISTERED)

    def change(self, target: NodeStatus, code: ReasonCode) -> Step:
        step = Step(NOW)
        self.transitions.change(self.record, target, code, reason="because", step=step)
        return step


def test_a_transition_is_logged_stored_and_sent() -> None:
    step = Bench().change(NodeStatus.READY, ReasonCode.HEALTH_CHECKS_PASSED)
    assert [entry.fields for entry in step.logged] == [
        {"node_id": "node-1", "from": "registering", "to": "ready", "reason_code": "health_checks_passed"}
    ]
    assert list(step.changed) == [("node", "node-1")]
    assert statuses(step.effects) == ["ready"]


def test_a_transition_that_the_table_lacks_raises_and_changes_nothing() -> None:
    bench = Bench()
    step = Step(NOW)
    with pytest.raises(IllegalTransitionError):
        bench.transitions.change(
            bench.record, NodeStatus.DRAINING, ReasonCode.DRAIN_REQUESTED, reason="", step=step
        )
    assert bench.record.status == "registering"
    assert (step.logged, step.changed, step.effects) == ([], {}, [])


@pytest.mark.parametrize("by_operator", [True, False])
def test_a_requested_drain_starts_in_the_step_that_makes_it_possible(by_operator: bool) -> None:  # noqa: FBT001 - a parameter of the claim
    bench = Bench()
    bench.record.desired.drain = Drain(by_operator=by_operator, deadline=NOW + 60)
    bench.record.liveness.last_heartbeat_at = NOW
    step = bench.change(NodeStatus.READY, ReasonCode.HEALTH_CHECKS_PASSED)
    assert statuses(step.effects) == ["ready", "draining", "offline"]
    assert closed(step.effects) == ([] if by_operator else [(1, CloseCode.GOING_AWAY)])
    assert bench.record.connected is by_operator


def test_a_drain_whose_deadline_has_passed_does_not_wait_for_jobs() -> None:
    bench = Bench()
    bench.record.desired.drain = Drain(by_operator=True, deadline=NOW)
    bench.record.jobs = ReportedJobs.of(("job-1",), None)
    bench.change(NodeStatus.READY, ReasonCode.HEALTH_CHECKS_PASSED)
    assert bench.record.reason_code == "drain_deadline"


def test_only_a_draining_node_can_be_settled() -> None:
    bench, step = Bench(), Step(NOW)
    bench.transitions.finish_drain(bench.record, step)
    bench.record.desired.drain = Drain(by_operator=True, deadline=NOW)
    bench.transitions.apply_drain(bench.record, step)
    assert bench.record.status == "registering"
    assert step.effects == []


@pytest.mark.parametrize("code", [ReasonCode.HEARTBEAT_TIMEOUT, ReasonCode.UNREGISTERED, ReasonCode.REMOVED])
def test_going_offline_closes_the_connection_and_ignores_it_from_then_on(code: ReasonCode) -> None:
    bench = Bench()
    bench.record.desired.drain = Drain(by_operator=True, deadline=NOW + 60)
    step = bench.change(NodeStatus.OFFLINE, code)
    assert (statuses(step.effects), closed(step.effects)) == (["offline"], [(1, CloseCode.GOING_AWAY)])
    assert bench.nodes.is_dismissed(1)
    assert bench.record.connection is None


def test_a_disconnected_node_receives_nothing() -> None:
    bench = Bench()
    bench.nodes._unbind(1)
    assert bench.change(NodeStatus.OFFLINE, ReasonCode.HEARTBEAT_TIMEOUT).effects == []


def test_a_node_that_leaves_ready_is_no_candidate_from_the_same_moment() -> None:
    registry = Registry()
    registry.ready()
    done = registry.drain()
    assert logged(done, "node_status_changed")
    assert registry.claim("job-1").counts == {"status_not_ready": 1}


def test_s05_a_draining_node_takes_no_job_and_goes_offline_when_its_jobs_end() -> None:
    registry = Registry()
    record = registry.ready()
    assert registry.claim("job-1").grants[0].node_id == "node-1"
    assert statuses(registry.drain()) == ["draining"]
    assert registry.claim("job-2").counts == {"status_not_ready": 1}
    left = registry.do(ReleaseRequested(registry.ref(), "job-1"))
    assert statuses(left) == ["offline"]
    assert record.reason_code == "drain_complete"


def test_s05_a_draining_node_goes_offline_when_its_deadline_passes() -> None:
    registry = Registry()
    record = registry.ready()
    registry.heartbeat(running_jobs=("job-1",))
    registry.drain(deadline_seconds=20.0)
    registry.heartbeats(2, every=9.0, running_jobs=("job-1",))
    assert record.status == "draining"
    sent = registry.heartbeats(1, every=3.0, running_jobs=("job-1",))
    assert statuses(sent) == ["offline"]
    assert record.reason_code == "drain_deadline"


def test_a7_a_draining_node_finishes_the_jobs_it_reports_and_ends_offline() -> None:
    registry = Registry()
    record = registry.ready()
    registry.heartbeat(running_jobs=("job-1", "job-2"))
    registry.drain()
    registry.heartbeat(running_jobs=("job-2",))
    assert record.status == "draining"
    registry.heartbeat(running_jobs=())
    assert record.status == "offline"


def test_a_count_that_is_only_guessed_never_delays_a_drain() -> None:
    registry = Registry()
    record = registry.ready()
    guess = ResourceUsage(cpu_percent=5.0, mem_percent=10.0, running_jobs=3)
    registry.heartbeat(running_jobs=None, resource_usage=guess, gpus=figures(processes=3))
    assert record.in_flight_jobs == 0
    registry.drain()
    assert record.status == "offline"


@pytest.mark.parametrize("schema", [None, "1.0"])
def test_an_older_nodes_count_is_its_word_and_delays_a_drain(schema: str | None) -> None:
    registry = Registry()
    record = registry.ready(capability_schema_version=schema)
    counted = ResourceUsage(cpu_percent=5.0, mem_percent=10.0, running_jobs=1)
    registry.heartbeat(running_jobs=None, resource_usage=counted)
    registry.drain()
    assert record.status == "draining"
    registry.heartbeat(running_jobs=None)
    assert record.status == "offline"


@pytest.mark.parametrize(
    ("claimed", "reported", "waits_for"),
    [((), (), 0), (("a",), (), 1), ((), ("b",), 1), (("a",), ("a",), 1), (("a",), ("b", "c"), 3)],
    ids=str,
)
def test_a_drain_waits_for_jobs_that_are_claimed_and_for_those_that_the_node_reports(
    claimed: tuple[str, ...], reported: tuple[str, ...], waits_for: int
) -> None:
    registry = Registry()
    record = registry.ready()
    for job_id in claimed:
        registry.claim(job_id)
    registry.heartbeat(running_jobs=reported)
    sent = of(SendStatus, registry.drain())
    assert sent[0].in_flight_jobs == record.in_flight_jobs == waits_for
    assert record.status == ("draining" if waits_for else "offline")


def restarted(registry: Registry) -> Registry:
    fresh = Registry()
    fresh.restore(
        [
            StoredDocument(kind, key, document, 1.0)
            for (kind, key), (document, _) in registry.documents.items()
        ]
    )
    return fresh


def test_after_a_restart_a_drain_waits_until_the_node_has_said_what_runs() -> None:
    registry = Registry()
    registry.ready()
    registry.claim("job-1")
    registry.heartbeat(running_jobs=("job-1", "job-2"))
    registry.drain()
    fresh = restarted(registry)
    fresh.do(ReleaseRequested(fresh.ref(), "job-1"))
    assert (fresh.node().status, fresh.node().in_flight_jobs) == ("draining", 0)
    (sent,) = of(SendStatus, fresh.arrive(proof("node-1"), 1, "node-1"))
    assert sent.clears_when is not None
    assert sent.clears_when.startswith("a heartbeat shows that no job runs")
    fresh.heartbeat(running_jobs=("job-2",))
    assert fresh.node().status == "draining"
    assert statuses(fresh.heartbeat(running_jobs=())) == ["offline"]


def test_a_drain_whose_node_never_says_what_runs_ends_with_its_deadline() -> None:
    registry = Registry()
    registry.ready()
    registry.claim("job-1")
    registry.drain(deadline_seconds=20.0)
    fresh = restarted(registry)
    fresh.do(ReleaseRequested(fresh.ref(), "job-1"))
    fresh.pass_time(20.0)
    assert fresh.node().reason_code == "drain_deadline"
    assert fresh.node().reason == "the drain's deadline passed before the node reported its jobs"


def test_a_drain_of_a_node_that_names_its_jobs_as_it_registers_need_not_wait_for_a_heartbeat() -> None:
    registry = Registry()
    registry.ready()
    registry.claim("job-1")
    registry.drain()
    fresh = restarted(registry)
    fresh.arrive(proof("node-1"), 1, "node-1", running_jobs=())
    assert statuses(fresh.do(ReleaseRequested(fresh.ref(), "job-1"))) == ["offline"]


def clears(registry: Registry) -> str | None:
    return clears_when(registry.node(), registry.thresholds, registry.now)


def test_a_status_tells_what_stands_behind_it() -> None:
    registry = Registry()
    record = registry.ready()
    registry.claim("job-1")
    sent = current_status(record, registry.thresholds, now=registry.now, periodic=True)
    assert (sent.node_id, sent.status, sent.reason_code) == ("node-1", "ready", "health_checks_passed")
    assert (sent.previous_status, sent.since, sent.periodic) == ("registering", record.since, True)
    assert (sent.healthy_heartbeats, sent.heartbeats_needed, sent.in_flight_jobs) == (3, 0, 1)
    assert [check.name for check in sent.checks] == [
        "gpus",
        "gpu_percent",
        "probe_age",
        "required_models",
        "ready_models",
    ]
    assert all(check.ok for check in sent.checks)


def test_a_registering_node_receives_how_many_heartbeats_are_missing() -> None:
    registry = Registry()
    registry.register()
    assert clears(registry) == "3 more healthy heartbeats in a row"
    registry.heartbeats(2)
    assert clears(registry) == "one more healthy heartbeat"
    assert heartbeats_needed(registry.node(), registry.thresholds) == 1


def test_a_degraded_node_receives_what_fails() -> None:
    registry = Registry()
    registry.ready()
    sent = of(SendStatus, registry.heartbeat(gpus=figures(health="lost", reasons=("xid_79",))))
    assert sent[0].clears_when == (
        "3 more healthy heartbeats in a row; failing now: gpus (the GPU is not usable (lost: xid_79))"
    )


def test_a_sentence_about_what_fails_stays_readable_whatever_the_node_wrote() -> None:
    registry = Registry()
    record = registry.ready()
    done = registry.heartbeat(gpus=figures(health="h" * 1000, reasons=("r" * 1000,) * 64))
    (sent,) = of(SendStatus, done)
    assert (sent.status, len(sent.reason)) == ("degraded", len(record.reason))
    assert max(map(len, (sent.reason, sent.clears_when or "", *(one.detail for one in sent.checks)))) <= 1000


def test_a_node_with_a_requested_drain_receives_that_it_will_drain() -> None:
    registry = Registry()
    registry.register()
    registry.drain()
    assert clears(registry) == "3 more healthy heartbeats in a row, and then it drains, as requested"


def test_a_draining_node_receives_what_it_waits_for() -> None:
    registry = Registry()
    registry.ready()
    registry.heartbeat(running_jobs=("a", "b"))
    sent = of(SendStatus, registry.drain(deadline_seconds=90.0))
    assert sent[0].clears_when == "its 2 jobs end or the deadline passes: then it goes offline"
    assert sent[0].drain_deadline == registry.now + 90.0
    registry.heartbeat(running_jobs=("b",))
    assert clears(registry) == "its last job ends or the deadline passes: then it goes offline"


def test_an_offline_node_receives_who_can_bring_it_back() -> None:
    registry = Registry()
    registry.ready()
    assert clears(registry) is None
    registry.drain()
    assert clears(registry) == "an operator resumes the node"
    registry.do(ConnectionLost(1))
    assert clears(registry) == "an operator resumes the node, and it registers again"
    registry.do(ResumeRequested(registry.ref(), "node-1"))
    assert clears(registry) == "the node registers again"


def test_a_draining_node_waits_for_what_delays_it_and_not_for_what_is_only_guessed() -> None:
    registry = Registry()
    registry.ready()
    registry.claim("job-1")
    guess = ResourceUsage(cpu_percent=5.0, mem_percent=10.0, running_jobs=7)
    registry.heartbeat(running_jobs=None, resource_usage=guess, gpus=figures(processes=7))
    registry.drain()
    assert clears(registry) == "its last job ends or the deadline passes: then it goes offline"


def test_a_deadline_is_sent_as_long_as_it_lies_ahead() -> None:
    registry = Registry()
    registry.register()
    assert of(SendStatus, registry.done)[-1].drain_deadline is None
    deadline = registry.now + 90.0
    registry.drain(deadline_seconds=90.0)
    sent = of(SendStatus, registry.heartbeats(3))
    assert [(one.status.value, one.drain_deadline) for one in sent] == [
        ("ready", deadline),
        ("draining", deadline),
        ("offline", None),
    ]


def test_every_state_has_since_when_why_and_what_clears_it() -> None:
    registry = Registry()
    record = registry.ready()
    registry.claim("job-1")
    for event in (
        DrainRequested(1, "node-1", None, ""),
        ReleaseRequested(2, "job-1"),
        ResumeRequested(3, "node-1"),
    ):
        registry.pass_time(1.0)
        for sent in of(SendStatus, registry.do(event)):
            assert sent.since == registry.now
            assert sent.reason == record.reason != ""
            assert sent.clears_when
            assert sent.previous_status is not None


REGISTERING, READY, DEGRADED = NodeStatus.REGISTERING, NodeStatus.READY, NodeStatus.DEGRADED
DRAINING, OFFLINE = NodeStatus.DRAINING, NodeStatus.OFFLINE

ARROWS_OF_THE_PAGE = {
    (None, REGISTERING): "registered",
    (REGISTERING, REGISTERING): "registered",
    (READY, REGISTERING): "registered",
    (DEGRADED, REGISTERING): "registered",
    (OFFLINE, REGISTERING): "registered resumed",
    (DRAINING, REGISTERING): "resumed",
    (REGISTERING, READY): "health_checks_passed",
    (REGISTERING, DEGRADED): "model_missing gpu_unavailable check_failed warmup_timeout",
    (READY, DEGRADED): "gpu_unavailable model_missing check_failed health_checks_failed flapping",
    (DEGRADED, READY): "recovered",
    (READY, DRAINING): "drain_requested",
    (DEGRADED, DRAINING): "drain_requested",
    (DRAINING, OFFLINE): "drain_complete drain_deadline heartbeat_timeout unregistered removed",
    (REGISTERING, OFFLINE): "heartbeat_timeout unregistered removed",
    (READY, OFFLINE): "heartbeat_timeout unregistered removed",
    (DEGRADED, OFFLINE): "heartbeat_timeout unregistered removed",
}
"""The table of §4, written down a second time."""


def node(status: NodeStatus | None) -> NodeRecord:
    record = node_record()
    if status is not None:
        record.status = status
        record.history = (Transition(at=1.0, source=None, target=status, reason_code=ReasonCode.REGISTERED),)
    return record


@pytest.mark.parametrize(
    ("source", "target", "reason_code"),
    list(product((None, *NodeStatus), NodeStatus, ReasonCode)),
    ids=str,
)
def test_every_transition_of_the_protocol_exists_and_no_other(
    source: NodeStatus | None, target: NodeStatus, reason_code: ReasonCode
) -> None:
    record = node(source)
    before = repr(record)
    if reason_code in ARROWS_OF_THE_PAGE.get((source, target), "").split():
        change_status(record, target, reason_code=reason_code, reason="because", now=7.0)
        assert (record.status, record.reason_code, record.reason) == (target, reason_code, "because")
        assert (record.previous_status, record.since) == (source, 7.0)
    else:
        with pytest.raises(IllegalTransitionError):
            change_status(record, target, reason_code=reason_code, reason="because", now=7.0)
        assert repr(record) == before


def test_the_table_holds_nothing_beyond_the_page() -> None:
    assert TRANSITIONS.keys() == ARROWS_OF_THE_PAGE.keys()


def test_an_illegal_transition_raises_with_the_history_of_the_node() -> None:
    record = node(None)
    change_status(record, REGISTERING, reason_code=ReasonCode.REGISTERED, reason="", now=10.0)
    change_status(record, READY, reason_code=ReasonCode.HEALTH_CHECKS_PASSED, reason="", now=16.0)
    with pytest.raises(IllegalTransitionError) as refused:
        change_status(record, READY, reason_code=ReasonCode.RECOVERED, reason="", now=17.0)
    assert str(refused.value) == (
        "node node-1: no transition ready → ready for recovered; its history: "
        "none → registering (registered, -6.000 s) → ready (health_checks_passed, 0.000 s)"
    )


def test_a_record_without_a_history_has_no_status_yet() -> None:
    assert status_of(node(None)) is None
    assert status_of(node(READY)) is READY
    assert describe_history(()) == "none yet"


def test_a_history_keeps_only_the_last_changes() -> None:
    record = node(None)
    for turn in range(HISTORY_LENGTH + 3):
        change_status(record, REGISTERING, reason_code=ReasonCode.REGISTERED, reason="", now=float(turn))
    assert len(record.history) == HISTORY_LENGTH
    assert record.history[-1].at == HISTORY_LENGTH + 2
