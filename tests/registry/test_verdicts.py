import pytest

from gpu_agent.registry.actions import TellStatus
from gpu_agent.registry.claiming import Claiming
from gpu_agent.registry.dispatch.dispatch import Dispatch
from gpu_agent.registry.documents import Restored
from gpu_agent.registry.events import ReleaseAsked
from gpu_agent.registry.lifecycle import IllegalTransitionError
from gpu_agent.registry.record import Drain, NodeRecord
from gpu_agent.registry.roster import Roster
from gpu_agent.registry.step import Step
from gpu_agent.registry.thresholds import Thresholds
from gpu_agent.registry.verdicts import Verdicts
from gpu_agent.wire.codes import CloseCode, NodeStatus, ReasonCode
from tests.registry.fleets import Registry, closed, declaration, hardware, notes, of, proof, statuses

NOW = 100.0


class Bench:
    """Verdicts on one registering node, connected as 1."""

    def __init__(self) -> None:
        thresholds, self.roster = Thresholds(), Roster()
        dispatch = Dispatch(thresholds, lambda: 0.0)
        claiming = Claiming(thresholds, dispatch, debug=lambda: False)
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


def test_s05_a_draining_node_takes_no_job_and_goes_offline_when_its_jobs_end() -> None:
    registry = Registry()
    record = registry.ready()
    assert registry.claim("job-1").node_id == "node-1"
    assert statuses(registry.drain()) == ["draining"]
    assert registry.claim("job-2").counts == {"status_not_ready": 1}
    left = registry.do(ReleaseAsked(registry.ref(), "job-1"))
    assert statuses(left) == ["offline"]
    assert record.reason_code == "drain_complete"


def test_s05_a_draining_node_goes_offline_when_its_deadline_passes() -> None:
    registry = Registry()
    record = registry.ready()
    registry.beat(running_jobs=("job-1",))
    registry.drain(deadline_seconds=20.0)
    registry.beats(2, every=9.0, running_jobs=("job-1",))
    assert record.status == "draining"
    told = registry.beats(1, every=3.0, running_jobs=("job-1",))
    assert statuses(told) == ["offline"]
    assert record.reason_code == "drain_deadline"


def test_a7_a_draining_node_finishes_the_jobs_it_reports_and_ends_offline() -> None:
    registry = Registry()
    record = registry.ready()
    registry.beat(running_jobs=("job-1", "job-2"))
    registry.drain()
    registry.beat(running_jobs=("job-2",))
    assert record.status == "draining"
    registry.beat(running_jobs=())
    assert record.status == "offline"


def test_a_count_that_is_only_guessed_never_delays_a_drain() -> None:
    registry = Registry()
    record = registry.ready()
    assert record.usage is not None
    guess = record.usage.model_copy(update={"running_jobs": 3})
    registry.beat(running_jobs=None, resource_usage=guess)
    assert record.in_flight_jobs == 3
    registry.drain()
    assert record.status == "offline"


@pytest.mark.parametrize("schema", [None, "1.0"])
def test_an_older_nodes_count_is_its_word_and_delays_a_drain(schema: str | None) -> None:
    registry = Registry()
    record = registry.ready(capability_schema_version=schema)
    assert record.usage is not None
    counted = record.usage.model_copy(update={"running_jobs": 1})
    registry.beat(running_jobs=None, resource_usage=counted)
    registry.drain()
    assert record.status == "draining"
    registry.beat(running_jobs=None)
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
    registry.beat(running_jobs=reported)
    told = of(TellStatus, registry.drain())
    assert told[0].in_flight_jobs == record.jobs_to_finish == waits_for
    assert record.status == ("draining" if waits_for else "offline")


def restarted(registry: Registry) -> Registry:
    fresh = Registry()
    fresh.restore(
        [Restored(kind, key, document, 1.0) for (kind, key), (document, _) in registry.kept.items()]
    )
    return fresh


def test_after_a_restart_a_drain_waits_until_the_node_has_said_what_runs() -> None:
    registry = Registry()
    registry.ready()
    registry.claim("job-1")
    registry.beat(running_jobs=("job-1", "job-2"))
    registry.drain()
    fresh = restarted(registry)
    fresh.do(ReleaseAsked(fresh.ref(), "job-1"))
    assert (fresh.node().status, fresh.node().in_flight_jobs) == ("draining", 0)
    (told,) = of(TellStatus, fresh.arrive(proof("node-1"), 1, "node-1"))
    assert told.clears_when is not None
    assert told.clears_when.startswith("a beat shows that no job runs")
    fresh.beat(running_jobs=("job-2",))
    assert fresh.node().status == "draining"
    assert statuses(fresh.beat(running_jobs=())) == ["offline"]


def test_a_drain_whose_node_never_says_what_runs_ends_with_its_deadline() -> None:
    registry = Registry()
    registry.ready()
    registry.claim("job-1")
    registry.drain(deadline_seconds=20.0)
    fresh = restarted(registry)
    fresh.do(ReleaseAsked(fresh.ref(), "job-1"))
    fresh.pass_time(20.0)
    assert fresh.node().reason_code == "drain_deadline"
    assert fresh.node().reason == "the drain's deadline passed before the node said what runs"


def test_a_drain_of_a_node_that_names_its_jobs_as_it_registers_need_not_wait_for_a_beat() -> None:
    registry = Registry()
    registry.ready()
    registry.claim("job-1")
    registry.drain()
    fresh = restarted(registry)
    fresh.arrive(proof("node-1"), 1, "node-1", running_jobs=())
    assert statuses(fresh.do(ReleaseAsked(fresh.ref(), "job-1"))) == ["offline"]
