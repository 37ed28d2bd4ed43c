""""""

from collections import deque
from dataclasses import replace
from itertools import count
from random import Random

import pytest
from hypothesis import given, settings, strategies

from gpu_agent.registry.actions import Answer, DocumentKind, Refusal
from gpu_agent.registry.credentials import NodeTokens
from gpu_agent.registry.deadlines import is_adrift
from gpu_agent.registry.dispatch.refusals import NoAvailableNode
from gpu_agent.registry.events import (
    ClaimRequested,
    ConnectionLost,
    CordonRequested,
    DrainRequested,
    Event,
    HeartbeatReceived,
    RegistrationReceived,
    ReleaseRequested,
    RemovalRequested,
    RenewalRequested,
    ResumeRequested,
    SaveFailed,
)
from gpu_agent.registry.job import Job
from gpu_agent.registry.node import Drain, NodeRecord, Transition
from gpu_agent.registry.saves import has_moved, parts_of_node, taken_back
from gpu_agent.wire.codes import NodeStatus, ReasonCode
from tests.registry.fuzz import Unruly
from tests.registry.harness import (
    Registry,
    answer,
    beat,
    closed,
    codes,
    declaration,
    hardware,
    notes,
    of,
    proof,
    statuses,
)
from tests.registry.slow_store import SlowRegistry, numbers, ready


def failing(registry: Registry) -> Registry:
    registry.store_fails = True
    return registry


def test_a_first_registration_that_could_not_be_saved_leaves_no_record() -> None:
    registry = failing(Registry())
    refused = registry.register()
    assert codes(refused) == ["REGISTRY_BUSY"]
    assert statuses(refused) == []
    assert registry.fleet.nodes() == []
    assert codes(registry.beat()) == ["UNKNOWN_NODE"]
    registry.store_fails = False
    registry.register()
    assert registry.node().epoch == 1


def test_a_node_that_could_not_register_anew_is_as_it_was() -> None:
    registry = Registry()
    record = registry.ready()
    refused = failing(registry).register(1, None, hardware=hardware(4))
    assert codes(refused) == ["REGISTRY_BUSY"]
    assert (record.status, record.epoch, len(record.gpus)) == ("ready", 1, 1)
    registry.store_fails = False
    assert registry.beats(1) == []
    assert registry.claim("job-1").node_id == "node-1"


def test_a_session_that_was_to_be_superseded_lives_on() -> None:
    registry = failing(Registry())
    registry.store_fails = False
    record = registry.ready()
    failing(registry)
    refused = registry.do(RegistrationReceived(2, declaration(), "unused", credential=proof("node-1")))
    assert codes(refused, 2) == ["REGISTRY_BUSY"]
    assert (codes(refused, 1), closed(refused)) == ([], [])
    assert (record.connection, record.status) == (1, "ready")
    registry.store_fails = False
    assert registry.beats(1) == []


def test_a_session_that_ended_meanwhile_is_not_brought_back() -> None:
    registry = Registry()
    record = registry.ready()
    event = RegistrationReceived(2, declaration(), "unused", credential=proof("node-1"))
    (save,) = [one for one in registry.fleet.handle(event, registry.now) if type(one).__name__ == "Save"]
    registry.do(ConnectionLost(1))
    registry.do(SaveFailed(save.save, "disk full"))  # type: ignore[union-attr]  # it is a Save
    assert (record.connection, record.status) == (None, "ready")


def test_a_cordon_and_a_resume_that_could_not_be_saved_changed_nothing() -> None:
    registry = Registry()
    registry.ready(1)
    drained = registry.ready(2)
    registry.drain("node-2")
    failing(registry)
    for event in (CordonRequested(7, "node-1", "fans"), ResumeRequested(8, "node-2")):
        assert isinstance(answer(registry.do(event)), Refusal)
    assert registry.node("node-1").cordoned is None
    assert drained.status == "offline"
    assert drained.drain is not None
    registry.store_fails = False
    assert registry.claim("job-1").node_id == "node-1"


def test_a_removal_that_could_not_be_saved_leaves_the_node_with_its_jobs_and_its_session() -> None:
    registry = Registry()
    registry.ready()
    claim = registry.claim("job-1")
    assert isinstance(answer(failing(registry).do(RemovalRequested(7, "node-1"))), Refusal)
    record = registry.node()
    assert (record.status, record.connection) == ("ready", 1)
    assert registry.fleet.claim_of("job-1") == claim
    assert registry.fleet.credential("digest of node-1", registry.now) == proof("node-1")
    registry.store_fails = False
    registry.do(HeartbeatReceived(1, beat()))
    assert record.last_heartbeat_at == registry.now
    assert registry.claim("job-2").node_id == "node-1"


def test_a_release_that_could_not_be_saved_leaves_the_claim_and_the_drain_it_delays() -> None:
    registry = Registry()
    record = registry.ready()
    claim = registry.claim("job-1")
    registry.drain()
    assert isinstance(answer(failing(registry).do(ReleaseRequested(7, "job-1"))), Refusal)
    assert registry.fleet.claim_of("job-1") == claim
    assert record.status == "draining"
    registry.store_fails = False
    assert statuses(registry.do(ReleaseRequested(8, "job-1"))) == ["offline"]


def test_a_renewal_that_could_not_be_saved_leaves_the_old_end() -> None:
    registry = Registry(claim_ttl_seconds=10.0)
    registry.ready()
    claim = registry.claim("job-1")
    registry.pass_time(5.0)
    assert isinstance(answer(failing(registry).do(RenewalRequested(7, "job-1"))), Refusal)
    assert registry.fleet.claim_of("job-1") == claim
    registry.store_fails = False
    registry.pass_time(6.5)
    assert registry.fleet.claim_of("job-1") is None


def test_beats_of_the_time_that_a_save_took_are_not_undone() -> None:
    registry = SlowRegistry(heartbeat_timeout_seconds=45.0)
    record = ready(registry)
    registry.do(CordonRequested(7, "node-1", "fans"))
    for _ in range(4):
        registry.pass_time(15.0)
        registry.beat()
    registry.answer(1, fails=numbers(registry))
    assert record.cordoned is None
    assert record.heard_at == registry.now
    registry.pass_time(40.0)
    assert record.status == "ready"


def test_a_verdict_that_came_meanwhile_stands() -> None:
    registry = SlowRegistry()
    record = ready(registry)
    registry.do(CordonRequested(7, "node-1", "fans"))
    registry.pass_time(50.0)
    registry.answer(1, fails=numbers(registry))
    registry.answer_all()
    registry.pass_time(2.0)
    registry.answer_all()
    assert (record.status, record.cordoned) == ("offline", None)
    assert statuses(registry.done)[-1] == "offline"


def moves(registry: SlowRegistry, told: int) -> list[tuple[object, object]]:
    """The moves that the log tells since then."""
    found = notes(registry.done[told:], "node_status_changed")
    return [(note.fields["from"], note.fields["to"]) for note in found]


def test_what_a_request_did_on_the_strength_of_one_that_never_was_is_undone_with_it() -> None:
    registry = SlowRegistry()
    record = ready(registry)
    registry.do(ClaimRequested(6, Job(job_id="job-1")))
    registry.answer_all()
    told = len(registry.done)
    registry.drain()
    registry.do(ReleaseRequested(8, "job-1"))
    assert (record.status, record.reason_code) == ("offline", "drain_complete")
    (drain, release) = registry.open
    registry.answer(1, fails=numbers(registry)[:1])
    registry.pass_time(1.0)
    registry.answer_all()
    assert (drain.rest, release.rest) == ((), ())
    assert (record.status, record.drain, set(record.claims)) == ("ready", None, {"job-1"})
    assert moves(registry, told) == []


def test_a_node_that_was_emptied_by_a_drain_that_never_was_comes_back() -> None:
    registry = SlowRegistry()
    record = ready(registry)
    registry.beat(running_jobs=("job-1",))
    told = len(registry.done)
    registry.drain()
    registry.beat(running_jobs=())
    assert (record.status, record.reason_code) == ("offline", "drain_complete")
    registry.answer(1, fails=numbers(registry)[:1])
    registry.pass_time(1.0)
    registry.answer_all()
    assert (record.status, record.drain) == ("registering", None)
    assert moves(registry, told) == [
        ("ready", "draining"),
        ("draining", "offline"),
        ("offline", "registering"),
    ]
    registry.beats(3)
    assert record.status == "ready"


def test_a_drain_whose_end_could_not_be_saved_goes_on() -> None:
    registry = SlowRegistry()
    record = ready(registry)
    registry.drain()
    registry.answer_all()
    assert record.status == "offline"
    told = len(registry.done)
    registry.do(ResumeRequested(7, "node-1"))
    registry.beats(3)
    assert record.status == "ready"
    registry.answer(1, fails=numbers(registry))
    registry.pass_time(1.0)
    registry.answer_all()
    registry.pass_time(1.0)
    registry.answer_all()
    assert (record.status, record.drain is None) == ("offline", False)
    assert moves(registry, told) == [
        ("offline", "registering"),
        ("registering", "ready"),
        ("ready", "draining"),
        ("draining", "offline"),
    ]


def test_two_requests_of_one_node_of_which_the_first_cannot_be_saved_are_both_undone() -> None:
    registry = SlowRegistry()
    record = ready(registry)
    registry.drain()
    registry.do(CordonRequested(7, "node-1", "fans"))
    registry.answer(2, fails=numbers(registry)[:1])
    assert (record.status, record.drain, record.cordoned) == ("ready", None, None)
    assert [type(one.result) for one in of(Answer, registry.done)[-2:]] == [Refusal, Refusal]


def test_a_node_that_was_purged_on_the_strength_of_a_wish_that_never_was_comes_back() -> None:
    registry = SlowRegistry(offline_retention_seconds=10.0)
    ready(registry)
    registry.do(CordonRequested(1, "node-1", "fans"))
    registry.do(ConnectionLost(1))
    registry.answer_all()
    registry.pass_time(50.0)
    registry.answer_all()
    assert registry.node().status == "offline"
    registry.do(CordonRequested(2, "node-1", None))
    registry.pass_time(100.0)
    assert registry.fleet.node("node-1") is None
    (lifted, _) = numbers(registry)
    told = len(registry.done)
    registry.answer(2, fails={lifted})
    assert registry.node().cordoned == "fans"
    registry.pass_time(2.0)
    registry.answer_all()
    registry.agree()
    assert notes(registry.done[told:], "node_purged") == []


def test_a_claim_that_never_was_is_not_found_again() -> None:
    registry = SlowRegistry()
    record = ready(registry)
    registry.do(ClaimRequested(6, Job(job_id="job-1")))
    registry.pass_time(50.0)
    assert record.status == "offline"
    registry.answer(1, fails=numbers(registry))
    registry.answer_all()
    registry.arrive(proof("node-1"), 2, running_jobs=("job-1",))
    registry.answer_all()
    assert registry.fleet.claim_of("job-1") is None


# A release that fails after its node was let go: the claim ends or stands with that.


def released_then_removed() -> SlowRegistry:
    """A registry whose store has yet to answer for a release, and for the removal of its node."""
    registry = SlowRegistry()
    ready(registry)
    registry.do(ClaimRequested(6, Job(job_id="job-1")))
    registry.answer_all()
    registry.do(ReleaseRequested(7, "job-1"))
    registry.do(RemovalRequested(8, "node-1"))
    assert len(numbers(registry)) == 2
    return registry


def test_where_both_fail_the_claim_stands_on_the_node_that_stays() -> None:
    registry = released_then_removed()
    told = len(registry.done)
    registry.answer(2, fails=numbers(registry))
    claim = registry.fleet.claim_of("job-1")
    assert claim is not None
    assert claim.node_id == "node-1"
    assert list(registry.node().claims) == ["job-1"]
    registry.pass_time(3.0)
    registry.answer_all()
    registry.agree()
    assert notes(registry.done[told:], "claim_released") == notes(registry.done[told:], "claim_lost") == []


def test_where_the_release_fails_alone_the_claim_is_lost_with_its_node_and_the_disk_forgets_it() -> None:
    registry = released_then_removed()
    told = len(registry.done)
    release, _ = numbers(registry)
    registry.answer(2, fails={release})
    registry.pass_time(3.0)
    registry.answer_all()
    assert registry.fleet.claim_of("job-1") is None
    assert (DocumentKind.CLAIM, "job-1") not in registry.kept
    registry.agree()
    (lost,) = notes(registry.done[told:], "claim_lost")
    assert lost.fields == {"job_id": "job-1", "node_id": "node-1", "reason_code": "removed"}


def test_where_the_removal_fails_alone_the_claim_is_released() -> None:
    registry = released_then_removed()
    _, removal = numbers(registry)
    registry.answer(2, fails={removal})
    assert registry.fleet.claim_of("job-1") is None
    assert registry.node().claims == {}
    registry.pass_time(3.0)
    registry.answer_all()
    registry.agree()


# Whatever fails of several saves, store and fleet agree, and nothing that was refused is in effect.


@settings(deadline=None, max_examples=150, derandomize=True)
@given(dice=strategies.randoms(use_true_random=True))
def test_whatever_fails_of_several_saves_store_and_fleet_agree_and_nothing_refused_is_in_effect(
    dice: Random,
) -> None:
    registry = SlowRegistry(claim_ttl_seconds=20.0, offline_retention_seconds=200.0)
    unruly = Unruly(dice)
    wishes = Wishes(registry)
    for connection in range(1, 8):
        registry.register(connection, hardware=hardware(2))
    for _ in range(40):
        for record in registry.fleet.nodes():
            if record.connection is not None and dice.random() < 0.7:
                registry.do(HeartbeatReceived(record.connection, beat(record.node_id, gpus=None)))
        wishes.ask(unruly.anything())
        if dice.random() < 0.6:
            worst = dice.choice((0.0, 0.3, 1.0))
            doomed = [number for number in numbers(registry) if dice.random() < worst]
            registry.answer(dice.randint(1, 5), fails=doomed)
        registry.pass_time(dice.choice((0.0, 0.0, 2.0, 10.0, 31.0)))
    registry.answer_all()
    registry.pass_time(3.0)
    registry.answer_all()
    assert registry.courses == deque()
    registry.agree()
    wishes.hold()


class Wishes:
    """Asks with a name for each wish, and looks whether one that was refused is in effect."""

    def __init__(self, registry: SlowRegistry) -> None:
        self._registry = registry
        self._asked: dict[int, Event] = {}
        self._refs = count(1000)

    def ask(self, event: Event) -> None:
        if isinstance(event, DrainRequested | CordonRequested):
            ref = next(self._refs)
            lifts = isinstance(event, CordonRequested) and event.reason is None
            event = replace(event, ref=ref) if lifts else replace(event, ref=ref, reason=f"wish {ref}")
            self._asked[ref] = event
        elif isinstance(event, ClaimRequested):
            ref = next(self._refs)
            event = ClaimRequested(ref, replace(event.job, job_id=f"job {ref}"))
            self._asked[ref] = event
        self._registry.do(event)

    def hold(self) -> None:
        fleet = self._registry.fleet
        results = {one.ref: one.result for one in of(Answer, self._registry.done)}
        assert self._asked.keys() <= results.keys()
        refused = {ref for ref, result in results.items() if isinstance(result, Refusal | NoAvailableNode)}
        reasons = {record.drain.reason for record in fleet.nodes() if record.drain is not None}
        reasons |= {record.cordoned for record in fleet.nodes() if record.cordoned is not None}
        for ref in refused & self._asked.keys():
            assert f"wish {ref}" not in reasons
            assert fleet.claim_of(f"job {ref}") is None


BEFORE = NodeRecord(
    node_id="node-1", registration=declaration(), hardware=hardware(), registered_at=0.0, connection=1
)
DRAIN = Drain(by_operator=True, deadline=9.0)


def moved(record: NodeRecord, status: NodeStatus) -> NodeRecord:
    move = Transition(
        at=5.0, source=record.status, target=status, reason_code=ReasonCode.HEALTH_CHECKS_PASSED
    )
    return replace(record, status=status, since=5.0, story=(*record.story, move))


def test_what_is_as_it_was_left_goes_back_whole() -> None:
    assert taken_back("before", "after", "after") == "before"
    assert taken_back("before", "after", "other") == "other"
    assert taken_back(None, BEFORE, BEFORE) is None
    assert taken_back(BEFORE, None, None) is BEFORE
    assert taken_back(None, BEFORE, replace(BEFORE, epoch=7)) == replace(BEFORE, epoch=7)


def test_each_part_goes_back_unless_it_has_changed_since() -> None:
    after = replace(BEFORE, cordoned="fans", drain=DRAIN)
    present = replace(after, cordoned="fans and dust", healthy_beats=3)
    assert taken_back(BEFORE, after, present) == replace(BEFORE, cordoned="fans and dust", healthy_beats=3)


def test_parts_of_a_part_go_back_by_themselves() -> None:
    before, after = NodeTokens(joined_by="old"), NodeTokens(joined_by="new")
    present = replace(after, spent=True)
    assert taken_back(before, after, present) == NodeTokens(joined_by="old", spent=True)


def test_a_status_goes_back_with_all_that_belongs_to_it_or_not_at_all() -> None:
    after = moved(BEFORE, NodeStatus.READY)
    assert not has_moved(after, after)
    assert taken_back(BEFORE, after, replace(after, epoch=2)) == replace(BEFORE, epoch=2)
    present = moved(after, NodeStatus.DEGRADED)
    assert has_moved(after, present)
    assert taken_back(BEFORE, after, present) == present


def test_what_happened_to_a_node_is_no_decision_and_stays() -> None:
    after = replace(BEFORE, epoch=1, heard_at=5.0, suspected=False)
    parts = parts_of_node(replace(BEFORE, heard_at=1.0, suspected=True), after, after)
    assert parts["epoch"] == 0
    assert not {"heard_at", "suspected", "connection", "claims"} & set(parts)


def test_a_connection_goes_back_in_what_is_only_remembered() -> None:
    after = replace(BEFORE, connection=2, epoch=1)
    assert taken_back(BEFORE, after, replace(after, cordoned="fans")).connection == 1
    assert taken_back(BEFORE, after, replace(after, cordoned="fans", connection=3)).connection == 3


ADRIFT_DRAIN = Drain(by_operator=True, deadline=0.0)


def node(
    status: NodeStatus, reason: ReasonCode, *, drain: Drain | None = None, connection: int | None = 1
) -> NodeRecord:
    return NodeRecord(
        node_id="node-1",
        registration=declaration(),
        hardware=hardware(),
        registered_at=0.0,
        status=status,
        reason_code=reason,
        drain=drain,
        connection=connection,
    )


@pytest.mark.parametrize(
    ("record", "adrift"),
    [
        (node(NodeStatus.READY, ReasonCode.RECOVERED), False),
        (node(NodeStatus.READY, ReasonCode.RECOVERED, drain=ADRIFT_DRAIN), True),
        (node(NodeStatus.DEGRADED, ReasonCode.FLAPPING, drain=ADRIFT_DRAIN), True),
        (node(NodeStatus.REGISTERING, ReasonCode.REGISTERED, drain=ADRIFT_DRAIN), False),
        (node(NodeStatus.DRAINING, ReasonCode.DRAIN_REQUESTED, drain=ADRIFT_DRAIN), False),
        (node(NodeStatus.DRAINING, ReasonCode.DRAIN_REQUESTED), True),
        (node(NodeStatus.OFFLINE, ReasonCode.DRAIN_COMPLETE, drain=ADRIFT_DRAIN), False),
        (node(NodeStatus.OFFLINE, ReasonCode.DRAIN_COMPLETE), True),
        (node(NodeStatus.OFFLINE, ReasonCode.DRAIN_COMPLETE, connection=None), False),
        (node(NodeStatus.OFFLINE, ReasonCode.HEARTBEAT_TIMEOUT), False),
    ],
)
def test_a_node_is_adrift_where_its_status_stands_on_no_wish_or_ignores_one(
    record: NodeRecord, *, adrift: bool
) -> None:
    assert is_adrift(record) is adrift
