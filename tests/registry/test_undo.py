from gpu_agent.registry.actions import Refusal
from gpu_agent.registry.events import (
    BeatArrived,
    ConnectionLost,
    CordonAsked,
    RegistrationArrived,
    ReleaseAsked,
    RemovalAsked,
    RenewalAsked,
    ResumeAsked,
    SaveFailed,
)
from tests.registry.fleets import (
    Registry,
    answer,
    beat,
    closed,
    codes,
    declaration,
    hardware,
    proof,
    statuses,
)


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
