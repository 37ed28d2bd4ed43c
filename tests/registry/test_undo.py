from gpu_agent.registry.actions import Answer, Refusal
from gpu_agent.registry.events import (
    BeatArrived,
    ClaimAsked,
    ConnectionLost,
    CordonAsked,
    RegistrationArrived,
    ReleaseAsked,
    RemovalAsked,
    RenewalAsked,
    ResumeAsked,
    SaveFailed,
)
from gpu_agent.registry.job import Job
from tests.registry.fleets import (
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
    refused = registry.do(RegistrationArrived(2, declaration(), "unused", credential=proof("node-1")))
    assert codes(refused, 2) == ["REGISTRY_BUSY"]
    assert (codes(refused, 1), closed(refused)) == ([], [])
    assert (record.connection, record.status) == (1, "ready")
    registry.store_fails = False
    assert registry.beats(1) == []


def test_a_session_that_ended_meanwhile_is_not_brought_back() -> None:
    registry = Registry()
    record = registry.ready()
    event = RegistrationArrived(2, declaration(), "unused", credential=proof("node-1"))
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
    for event in (CordonAsked(7, "node-1", "fans"), ResumeAsked(8, "node-2")):
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
    assert isinstance(answer(failing(registry).do(RemovalAsked(7, "node-1"))), Refusal)
    record = registry.node()
    assert (record.status, record.connection) == ("ready", 1)
    assert registry.fleet.claim_of("job-1") == claim
    assert registry.fleet.credential("digest of node-1", registry.now) == proof("node-1")
    registry.store_fails = False
    registry.do(BeatArrived(1, beat()))
    assert record.last_beat == registry.now
    assert registry.claim("job-2").node_id == "node-1"


def test_a_release_that_could_not_be_saved_leaves_the_claim_and_the_drain_it_delays() -> None:
    registry = Registry()
    record = registry.ready()
    claim = registry.claim("job-1")
    registry.drain()
    assert isinstance(answer(failing(registry).do(ReleaseAsked(7, "job-1"))), Refusal)
    assert registry.fleet.claim_of("job-1") == claim
    assert record.status == "draining"
    registry.store_fails = False
    assert statuses(registry.do(ReleaseAsked(8, "job-1"))) == ["offline"]


def test_a_renewal_that_could_not_be_saved_leaves_the_old_end() -> None:
    registry = Registry(claim_ttl_seconds=10.0)
    registry.ready()
    claim = registry.claim("job-1")
    registry.pass_time(5.0)
    assert isinstance(answer(failing(registry).do(RenewalAsked(7, "job-1"))), Refusal)
    assert registry.fleet.claim_of("job-1") == claim
    registry.store_fails = False
    registry.pass_time(6.5)
    assert registry.fleet.claim_of("job-1") is None


def test_beats_of_the_time_that_a_save_took_are_not_undone() -> None:
    registry = SlowRegistry(heartbeat_timeout_seconds=45.0)
    record = ready(registry)
    registry.do(CordonAsked(7, "node-1", "fans"))
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
    registry.do(CordonAsked(7, "node-1", "fans"))
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
    registry.do(ClaimAsked(6, Job(job_id="job-1")))
    registry.answer_all()
    told = len(registry.done)
    registry.drain()
    registry.do(ReleaseAsked(8, "job-1"))
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
    registry.do(ResumeAsked(7, "node-1"))
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
    registry.do(CordonAsked(7, "node-1", "fans"))
    registry.answer(2, fails=numbers(registry)[:1])
    assert (record.status, record.drain, record.cordoned) == ("ready", None, None)
    assert [type(one.result) for one in of(Answer, registry.done)[-2:]] == [Refusal, Refusal]


def test_a_node_that_was_purged_on_the_strength_of_a_wish_that_never_was_comes_back() -> None:
    registry = SlowRegistry(offline_retention_seconds=10.0)
    ready(registry)
    registry.do(CordonAsked(1, "node-1", "fans"))
    registry.do(ConnectionLost(1))
    registry.answer_all()
    registry.pass_time(50.0)
    registry.answer_all()
    assert registry.node().status == "offline"
    registry.do(CordonAsked(2, "node-1", None))
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
    registry.do(ClaimAsked(6, Job(job_id="job-1")))
    registry.pass_time(50.0)
    assert record.status == "offline"
    registry.answer(1, fails=numbers(registry))
    registry.answer_all()
    registry.arrive(proof("node-1"), 2, running_jobs=("job-1",))
    registry.answer_all()
    assert registry.fleet.claim_of("job-1") is None
