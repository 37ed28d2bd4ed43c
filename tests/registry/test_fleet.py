"""The fleet as a whole: the acceptance rules, its waking, and what no sequence of events may break."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from random import Random

import pytest
from hypothesis import given, settings, strategies
from hypothesis.strategies import SearchStrategy

from gpu_agent.registry.actions import (
    Action,
    Answer,
    CloseConnection,
    Kept,
    Note,
    Save,
    Send,
    TellStatus,
)
from gpu_agent.registry.census import Census
from gpu_agent.registry.deadlines import silent_until
from gpu_agent.registry.events import (
    BeatArrived,
    ClaimAsked,
    Command,
    ConnectionLost,
    ControlAsked,
    CordonAsked,
    DrainAsked,
    Event,
    FaultReported,
    GoodbyeArrived,
    RegistrationArrived,
    ReleaseAsked,
    RemovalAsked,
    RenewalAsked,
    ResumeAsked,
    Saved,
    SaveFailed,
    Traced,
)
from gpu_agent.registry.job import Job
from gpu_agent.registry.lifecycle import ARROWS
from gpu_agent.registry.quoting import LONGEST_SENTENCE
from gpu_agent.registry.record import NodeRecord
from gpu_agent.wire.codes import NodeStatus, ReasonCode
from gpu_agent.wire.messages import GpuFigures, NodeError, NodeUnregister
from tests.registry.fleets import (
    JOIN,
    Registry,
    beat,
    codes,
    declaration,
    figures,
    fresh_token,
    hardware,
    notes,
    of,
    proof,
)
from tests.registry.unruly import Unruly


def test_a1_without_a_gpu_a_node_is_never_registered() -> None:
    registry = Registry()
    for _ in range(3):
        assert codes(registry.register(hardware=hardware(0))) == ["GPU_REQUIRED"]
        assert codes(registry.beat()) == ["UNKNOWN_NODE"]
    assert registry.fleet.nodes() == []


def test_a2_a_node_is_registering_first_and_only_ready_is_schedulable() -> None:
    registry = Registry()
    registry.register()
    for count in range(3):
        assert registry.node().status == "registering"
        assert registry.claim(f"job-{count}").counts == {"status_not_ready": 1}
        registry.beats(1)
    assert registry.node().status == "ready"
    assert registry.claim("job-1").node_id == "node-1"


def test_a3_every_exclusion_is_explainable_on_request() -> None:
    registry = Registry()
    registry.ready(1)
    registry.register(2)
    explained = registry.fleet.explain(Job(job_id="job-1"), registry.now)
    assert explained.able == ("node-1",)
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


@dataclass(frozen=True)
class Burst:
    """Some beats of whichever node a connection stands for."""

    connection: int
    count: int
    told: tuple[GpuFigures, ...] | None
    running: tuple[str, ...] | None


CONNECTIONS = strategies.integers(1, 4)
NODES = strategies.sampled_from(["node-1", "node-2", "node-3"])
JOBS = strategies.sampled_from(["job-1", "job-2", "job-3"])
FIGURES = strategies.sampled_from([figures(), figures(health="lost"), None, ()])
RUNNING = strategies.sampled_from([None, (), ("job-1",), ("job-1", "job-2")])


def arrivals() -> SearchStrategy[Event]:
    return strategies.builds(
        lambda connection, wanted, fresh, proven, count, running: RegistrationArrived(
            connection,
            declaration(wanted, hardware=hardware(count), running_jobs=running),
            fresh,
            JOIN if proven is None else proof(proven),
            fresh_token=fresh_token(wanted or fresh),
        ),
        CONNECTIONS,
        NODES | strategies.none(),
        NODES,
        NODES | strategies.none(),
        strategies.sampled_from([1, 1, 1, 0]),
        RUNNING,
    )


def beats() -> SearchStrategy[Event]:
    return strategies.builds(
        lambda connection, node_id, told, age, running: BeatArrived(
            connection, beat(node_id, gpus=told, probe_age_seconds=age, running_jobs=running)
        ),
        CONNECTIONS,
        NODES,
        FIGURES,
        strategies.sampled_from([1.0, 1.0, 99.0]),
        RUNNING,
    )


def bursts() -> SearchStrategy[Burst]:
    return strategies.builds(
        Burst, CONNECTIONS, strategies.sampled_from([1, 3, 3]), strategies.just(figures()) | FIGURES, RUNNING
    )


def goodbyes() -> SearchStrategy[Event]:
    return strategies.builds(
        lambda connection, node_id, drain: GoodbyeArrived(
            connection, NodeUnregister(node_id=node_id, drain=drain)
        ),
        CONNECTIONS,
        NODES,
        strategies.booleans(),
    )


def wishes() -> SearchStrategy[Event]:
    deadlines = strategies.sampled_from([None, 0.0, 30.0])
    reasons = strategies.sampled_from([None, "fans"])
    return (
        strategies.builds(DrainAsked, strategies.just(1), NODES, deadlines)
        | strategies.builds(ResumeAsked, strategies.just(1), NODES)
        | strategies.builds(CordonAsked, strategies.just(1), NODES, reasons)
        | strategies.builds(RemovalAsked, strategies.just(1), NODES)
        | strategies.builds(ControlAsked, strategies.just(1), NODES, strategies.sampled_from(Command))
    )


def requests() -> SearchStrategy[Event]:
    jobs = strategies.builds(Job, job_id=JOBS)
    return (
        strategies.builds(ClaimAsked, strategies.just(1), jobs)
        | strategies.builds(RenewalAsked, strategies.just(1), JOBS)
        | strategies.builds(ReleaseAsked, strategies.just(1), JOBS)
    )


LOST = strategies.builds(ConnectionLost, CONNECTIONS)
FAULTS = strategies.builds(FaultReported, CONNECTIONS, strategies.just(NodeError(code="GPU_LOST")))
SECONDS = strategies.sampled_from([0.0, 0.0, 0.5, 2.0, 2.0, 16.0, 46.0, 700.0])
FAILS = strategies.sampled_from([False, False, False, True])
EVENTS = (
    bursts()
    | arrivals()
    | bursts()
    | requests()
    | bursts()
    | wishes()
    | bursts()
    | goodbyes()
    | beats()
    | LOST
    | FAULTS
)
TURNS = strategies.lists(strategies.tuples(EVENTS, SECONDS, FAILS), min_size=20, max_size=60)


@settings(deadline=None, max_examples=150)
@given(turns=TURNS, auth_off=strategies.booleans())
def test_no_sequence_of_events_breaks_what_always_holds(
    turns: list[tuple[Event | Burst, float, bool]],
    auth_off: bool,  # noqa: FBT001 - drawn, not called
) -> None:
    registry = Registry(auth_off=auth_off)
    for connection in (1, 2, 3):
        registry.ready(connection)
    watched = Watched(registry)
    for event, seconds, fails in turns:
        registry.store_fails = fails
        if isinstance(event, Burst):
            watched.beats(event)
        else:
            watched.happens(event)
        registry.now += seconds
        watched.wakes()
    registry.store_fails = False
    registry.pass_time(10_000.0)
    watched.everything_ended()


class Watched:
    """Plays a registry's events and looks at all that must hold after each."""

    def __init__(self, registry: Registry) -> None:
        self.registry = registry

    def happens(self, event: Event) -> None:
        self._carry_out(self.registry.fleet.handle(event, self.registry.now))

    def beats(self, burst: Burst) -> None:
        for record in self.registry.fleet.nodes():
            if record.connection == burst.connection:
                message = beat(record.node_id, gpus=burst.told, running_jobs=burst.running)
                for _ in range(burst.count):
                    self.happens(BeatArrived(burst.connection, message))

    def wakes(self) -> None:
        self._carry_out(self.registry.fleet.wake(self.registry.now))

    def everything_ended(self) -> None:
        """With nobody beating any more, all nodes are offline, no claim is left, and the store says so."""
        nodes = {record.node_id for record in self.registry.fleet.nodes()}
        kept = {
            key: document["status"]
            for (kind, key), (document, _) in self.registry.kept.items()
            if kind is Kept.NODE
        }
        assert kept == dict.fromkeys(nodes, "offline")
        assert all(record.status == "offline" for record in self.registry.fleet.nodes())
        assert all(record.connection is None for record in self.registry.fleet.nodes())
        assert all(self.registry.fleet.claim_of(f"job-{n}") is None for n in (1, 2, 3))

    def _carry_out(self, actions: Sequence[Action]) -> None:
        """Do what the shell does, looking at every list of actions."""
        while actions:
            self._in_order(actions)
            self._only_arrows_of_the_table(actions)
            saves = of(Save, actions)
            failed = bool(saves) and self.registry.store_fails
            if not failed:
                for save in saves:
                    self.registry.keep(save)
                self._claims_stand_on_ready_nodes(actions)
            outcome = [SaveFailed(one.save, "disk full") if failed else Saved(one.save) for one in saves]
            actions = [
                action for one in outcome for action in self.registry.fleet.handle(one, self.registry.now)
            ]
        self._one_connection_per_node()
        self._everybody_is_counted()

    def _in_order(self, actions: Sequence[Action]) -> None:
        saves = [place for place, one in enumerate(actions) if isinstance(one, Save)]
        telling = (Send, TellStatus, Answer, CloseConnection)
        told = [place for place, one in enumerate(actions) if isinstance(one, telling)]
        assert len(saves) <= 1
        assert not saves or not told or saves[0] < told[0]

    def _only_arrows_of_the_table(self, actions: Sequence[Action]) -> None:
        for note in notes(actions, "node_status_changed"):
            source = note.fields["from"]
            arrow = (None if source is None else NodeStatus(str(source)), NodeStatus(str(note.fields["to"])))
            assert ReasonCode(str(note.fields["reason_code"])) in ARROWS[arrow]
            record = self.registry.fleet.node(str(note.fields["node_id"]))
            if record is not None and note.fields["reason_code"] == "recovered":
                self._has_calmed_down(record)

    def _has_calmed_down(self, record: NodeRecord) -> None:
        limits = self.registry.thresholds
        recent = [at for at in record.exits if self.registry.now - at < limits.flap_window_seconds]
        flapped = [step for step in record.story if step.target is NodeStatus.DEGRADED][-1]
        assert flapped.reason_code is not ReasonCode.FLAPPING or len(recent) < limits.flap_limit
        assert len(record.exits) <= limits.flap_limit

    def _claims_stand_on_ready_nodes(self, actions: Sequence[Action]) -> None:
        for note in notes(actions, "job_assigned"):
            record = self.registry.node(str(note.fields["node_id"]))
            assert (record.status, record.connected, record.cordoned) == ("ready", True, None)

    def _everybody_is_counted(self) -> None:
        anew = Census()
        for record in self.registry.fleet.nodes():
            anew.count(record)
        kept = self.registry.fleet._census
        assert (kept.live, kept.warming) == (anew.live, anew.warming)

    def _one_connection_per_node(self) -> None:
        records = self.registry.fleet.nodes()
        live = [record.connection for record in records if record.connection is not None]
        assert len(live) == len(set(live))
        for record in records:
            drained = record.drain is not None and record.drain.by_operator
            if record.status == "offline" and not drained:
                assert record.connection is None


@pytest.mark.parametrize("kind", [TellStatus, Send])
def test_a_healthy_beat_tells_nobody_anything(kind: type) -> None:
    registry = Registry()
    registry.ready()
    assert of(kind, registry.beats(5)) == []


@settings(deadline=None, max_examples=30)
@given(dice=strategies.randoms(use_true_random=True), auth_off=strategies.booleans())
def test_s06_nothing_that_nodes_may_say_stops_the_clock_or_lets_a_silent_one_stay(
    dice: Random,
    auth_off: bool,  # noqa: FBT001 - drawn, not called
) -> None:
    registry, unruly = Registry(auth_off=auth_off, claim_ttl_seconds=20.0), Unruly(dice)
    for connection in range(1, 15):
        registry.register(connection, hardware=hardware(2))
    for _ in range(60):
        registry.store_fails = dice.random() < 1 / 10
        beating = dice.choice((0.0, 0.3, 0.9, 0.9))
        for record in registry.fleet.nodes():
            if record.connection is not None and dice.random() < beating:
                odd = dice.random() < 1 / 3
                message = unruly.beat(record.node_id) if odd else beat(record.node_id, gpus=None)
                registry.do(BeatArrived(record.connection, message))
        registry.do(unruly.anything())
        registry.pass_time(dice.choice((0.0, 2.0, 10.0, 10.0, 31.0)))
        nobody_is_silent_for_too_long(registry)
    nothing_said_is_longer_than_a_person_reads(registry.done)
    json.dumps([document for document, _ in registry.kept.values()], allow_nan=False)


def nobody_is_silent_for_too_long(registry: Registry) -> None:
    for record in registry.fleet.nodes():
        late = registry.now - silent_until(record)
        assert record.status == "offline" or late <= registry.thresholds.scan_interval_seconds


def nothing_said_is_longer_than_a_person_reads(done: Sequence[Action]) -> None:
    told = of(TellStatus, done)
    said = [one.reason for one in told] + [one.clears_when or "" for one in told]
    said += [check.detail for one in told for check in one.checks]
    said += [one.reason for one in of(CloseConnection, done)]
    said += [
        value
        for one in of(Note, done)
        for name, value in one.fields.items()
        if isinstance(value, str) and name not in ("reason", "job_id")  # no node wrote these
    ]
    assert max(map(len, said)) <= LONGEST_SENTENCE


def test_what_follows_from_a_question_is_noted_with_its_trace_and_what_time_brought_about_is_not() -> None:
    registry = Registry()
    registry.ready()
    registry.do(ClaimAsked(registry.ref(), Job(job_id="job-1")))
    registry.drain()
    registry.now += 61.0  # the claim is over, though nobody woke the fleet to see it
    renewed = registry.do(Traced(RenewalAsked(registry.ref(), "job-1"), "trace-1"))
    assert [note.fields.get("trace_id") for note in notes(renewed, "claim_expired")] == [None]
    done = registry.do(Traced(ResumeAsked(registry.ref(), "node-1"), "trace-2"))
    told = [(note.event, note.fields["trace_id"]) for note in of(Note, done)]
    assert told == [("resume_wished", "trace-2"), ("node_status_changed", "trace-2")]
    assert "trace_id" not in of(Note, registry.do(ResumeAsked(registry.ref(), "node-1")))[0].fields
