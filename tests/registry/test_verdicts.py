import pytest

from gpu_agent.registry.claiming import Claiming
from gpu_agent.registry.dispatch.dispatch import Dispatch
from gpu_agent.registry.lifecycle import IllegalTransitionError
from gpu_agent.registry.record import Drain, NodeRecord
from gpu_agent.registry.roster import Roster
from gpu_agent.registry.step import Step
from gpu_agent.registry.thresholds import Thresholds
from gpu_agent.registry.verdicts import Verdicts
from gpu_agent.wire.codes import CloseCode, NodeStatus, ReasonCode
from tests.registry.fleets import Registry, closed, declaration, hardware, notes, statuses

NOW = 100.0


class Bench:
    """Verdicts on one registering node, connected as 1."""

    def __init__(self) -> None:
        thresholds, self.roster = Thresholds(), Roster()
        dispatch = Dispatch(thresholds, lambda: 0.0)
        claiming = Claiming(thresholds, dispatch, debug=False)
        self.verdicts = Verdicts(thresholds, self.roster, dispatch=dispatch, claiming=claiming)
        self.record = NodeRecord(
            node_id="node-1", registration=declaration(), hardware=hardware(), registered_at=0.0
        )
        self.roster.add(self.record)
        self.roster.bind(self.record, 1)
        self.give(NodeStatus.REGISTERING, ReasonCode.REGISTERED)

    def give(self, target: NodeStatus, code: ReasonCode) -> Step:
        step = Step(NOW)
        self.verdicts.give(self.record, target, code, reason="because", step=step)
        return step


def test_a_verdict_is_noted_kept_and_told() -> None:
    step = Bench().give(NodeStatus.READY, ReasonCode.HEALTH_CHECKS_PASSED)
    assert [note.fields for note in step.notes] == [
        {"node_id": "node-1", "from": "registering", "to": "ready", "reason_code": "health_checks_passed"}
    ]
    assert list(step.keys) == [("node", "node-1")]
    assert statuses(step.told) == ["ready"]


def test_a_verdict_without_an_arrow_raises_and_changes_nothing() -> None:
    bench = Bench()
    step = Step(NOW)
    with pytest.raises(IllegalTransitionError):
        bench.verdicts.give(
            bench.record, NodeStatus.DRAINING, ReasonCode.DRAIN_REQUESTED, reason="", step=step
        )
    assert bench.record.status == "registering"
    assert (step.notes, step.keys, step.told) == ([], {}, [])


@pytest.mark.parametrize("by_operator", [True, False])
def test_a_wish_for_emptiness_comes_true_in_the_same_step(by_operator: bool) -> None:  # noqa: FBT001 - a parameter of the claim
    bench = Bench()
    bench.record.drain = Drain(by_operator=by_operator, deadline=NOW + 60)
    bench.record.last_beat = NOW
    step = bench.give(NodeStatus.READY, ReasonCode.HEALTH_CHECKS_PASSED)
    assert statuses(step.told) == ["ready", "draining", "offline"]
    assert closed(step.told) == ([] if by_operator else [(1, CloseCode.GOING_AWAY)])
    assert bench.record.connected is by_operator


def test_a_wish_whose_deadline_has_passed_does_not_wait_for_jobs() -> None:
    bench = Bench()
    bench.record.drain = Drain(by_operator=True, deadline=NOW)
    bench.record.reported_job_ids = frozenset({"job-1"})
    bench.give(NodeStatus.READY, ReasonCode.HEALTH_CHECKS_PASSED)
    assert bench.record.reason_code == "drain_deadline"


def test_only_a_draining_node_can_be_settled() -> None:
    bench, step = Bench(), Step(NOW)
    bench.verdicts.settle(bench.record, step)
    bench.verdicts.drain(bench.record, step)
    assert bench.record.status == "registering"
    assert step.told == []


@pytest.mark.parametrize("code", [ReasonCode.HEARTBEAT_TIMEOUT, ReasonCode.UNREGISTERED, ReasonCode.REMOVED])
def test_an_offline_verdict_closes_the_connection_and_ignores_it_from_then_on(code: ReasonCode) -> None:
    bench = Bench()
    bench.record.drain = Drain(by_operator=True, deadline=NOW + 60)
    step = bench.give(NodeStatus.OFFLINE, code)
    assert (statuses(step.told), closed(step.told)) == (["offline"], [(1, CloseCode.GOING_AWAY)])
    assert bench.roster.dismissed(1)
    assert bench.record.connection is None


def test_a_disconnected_node_is_told_nothing() -> None:
    bench = Bench()
    bench.roster.unbind(1)
    assert bench.give(NodeStatus.OFFLINE, ReasonCode.HEARTBEAT_TIMEOUT).told == []


def test_a_node_that_leaves_ready_is_no_candidate_from_the_same_moment() -> None:
    registry = Registry()
    registry.ready()
    done = registry.drain()
    assert notes(done, "node_status_changed")
    assert registry.claim("job-1").counts == {"status_not_ready": 1}
