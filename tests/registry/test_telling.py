from gpu_agent.registry import telling
from gpu_agent.registry.actions import TellStatus
from gpu_agent.registry.events import ConnectionLost, DrainAsked, ReleaseAsked, ResumeAsked
from tests.registry.fleets import Registry, figures, of


def clears(registry: Registry) -> str | None:
    return telling.clears_when(registry.node(), registry.thresholds, registry.now)


def test_a_status_tells_what_stands_behind_it() -> None:
    registry = Registry()
    record = registry.ready()
    registry.claim("job-1")
    told = telling.status_of(record, registry.thresholds, connection=1, now=registry.now, periodic=True)
    assert (told.node_id, told.status, told.reason_code) == ("node-1", "ready", "health_checks_passed")
    assert (told.previous_status, told.since, told.periodic) == ("registering", record.since, True)
    assert (told.healthy_beats, told.beats_needed, told.in_flight_jobs) == (3, 0, 1)
    assert [check.name for check in told.checks] == [
        "gpus",
        "gpu_percent",
        "probe_age",
        "required_models",
        "ready_models",
    ]
    assert all(check.ok for check in told.checks)


def test_a_registering_node_hears_how_many_beats_are_missing() -> None:
    registry = Registry()
    registry.register()
    assert clears(registry) == "3 more healthy beats in a row"
    registry.beats(2)
    assert clears(registry) == "one more healthy beat"
    assert telling.beats_needed(registry.node(), registry.thresholds) == 1


def test_a_degraded_node_hears_what_fails() -> None:
    registry = Registry()
    registry.ready()
    told = of(TellStatus, registry.beat(gpus=figures(health="lost", reasons=("xid_79",))))
    assert told[0].clears_when == (
        "3 more healthy beats in a row; failing now: gpus (0 of 1 GPUs usable; 1 lost: xid_79)"
    )


def test_a_sentence_about_what_fails_stays_readable_whatever_the_node_wrote() -> None:
    registry = Registry()
    record = registry.ready()
    done = registry.beat(gpus=figures(health="h" * 1000, reasons=("r" * 1000,) * 64))
    (told,) = of(TellStatus, done)
    assert (told.status, len(told.reason)) == ("degraded", len(record.reason))
    assert max(map(len, (told.reason, told.clears_when or "", *(one.detail for one in told.checks)))) <= 1000


def test_a_node_that_is_wanted_empty_hears_that_it_will_drain() -> None:
    registry = Registry()
    registry.register()
    registry.drain()
    assert clears(registry) == "3 more healthy beats in a row, and then it drains, as asked"


def test_a_draining_node_hears_what_it_waits_for() -> None:
    registry = Registry()
    registry.ready()
    registry.beat(running_jobs=("a", "b"))
    told = of(TellStatus, registry.drain(deadline_seconds=90.0))
    assert told[0].clears_when == "its 2 jobs end or the deadline passes: then it goes offline"
    assert told[0].drain_deadline == registry.now + 90.0
    registry.beat(running_jobs=("b",))
    assert clears(registry) == "its last job ends or the deadline passes: then it goes offline"


def test_an_offline_node_hears_who_can_bring_it_back() -> None:
    registry = Registry()
    registry.ready()
    assert clears(registry) is None
    registry.drain()
    assert clears(registry) == "an operator resumes the node"
    registry.do(ConnectionLost(1))
    assert clears(registry) == "an operator resumes the node, and it registers again"
    registry.do(ResumeAsked(registry.ref(), "node-1"))
    assert clears(registry) == "the node registers again"


def test_a_draining_node_waits_for_what_delays_it_and_not_for_what_is_only_guessed() -> None:
    registry = Registry()
    record = registry.ready()
    registry.claim("job-1")
    assert record.usage is not None
    guess = record.usage.model_copy(update={"running_jobs": 7})
    registry.beat(running_jobs=None, resource_usage=guess)
    registry.drain()
    assert clears(registry) == "its last job ends or the deadline passes: then it goes offline"


def test_a_deadline_is_told_as_long_as_it_lies_ahead() -> None:
    registry = Registry()
    registry.register()
    assert of(TellStatus, registry.done)[-1].drain_deadline is None
    deadline = registry.now + 90.0
    registry.drain(deadline_seconds=90.0)
    told = of(TellStatus, registry.beats(3))
    assert [(one.status.value, one.drain_deadline) for one in told] == [
        ("ready", deadline),
        ("draining", deadline),
        ("offline", None),
    ]


def test_every_state_has_since_when_why_and_what_clears_it() -> None:
    registry = Registry()
    record = registry.ready()
    registry.claim("job-1")
    for event in (
        DrainAsked(1, "node-1", None, ""),
        ReleaseAsked(2, "job-1"),
        ResumeAsked(3, "node-1"),
    ):
        registry.pass_time(1.0)
        for told in of(TellStatus, registry.do(event)):
            assert told.since == registry.now
            assert told.reason == record.reason != ""
            assert told.clears_when
            assert told.previous_status is not None
