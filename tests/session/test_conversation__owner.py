"""What an owner changes while a session lasts: told by a beat, or, where no beat tells it, by registering."""

from dataclasses import replace

import pytest

from gpu_agent.session.actions import SaveIdentity, Send, SendBeat
from gpu_agent.session.events import (
    Connected,
    Declared,
    Disconnected,
    DrainAsked,
    OwnerChanged,
    StopRequested,
)
from gpu_agent.session.story import State
from gpu_agent.wire.declaration import Declaration, Owner
from tests.playbook import After
from tests.session.played import ACK, WITH_GPU, awaiting, heard, ready, registered, registers, status

MODERN = ACK.model_copy(update={"capability_schema_version": "1.1"})
ELSEWHERE = replace(WITH_GPU, owner=Owner(endpoint="10.0.0.7:9000"))
CHANGES = [
    pytest.param(ELSEWHERE, id="endpoint"),
    pytest.param(replace(WITH_GPU, features_supported={"speech_rate_control": True}), id="features"),
    pytest.param(replace(WITH_GPU, advanced_features=("kv_cache",)), id="advanced features"),
]


@pytest.mark.parametrize("declaration", CHANGES)
def test_what_no_beat_tells_is_registered_anew_on_the_same_socket(declaration: Declaration) -> None:
    play = ready(MODERN)
    assert play >> OwnerChanged() >> Declared(declaration) << registers(node_id="node-A")
    assert play >> heard(MODERN) << SaveIdentity << SendBeat
    assert play >> Declared(declaration) >> After(1.9)


def test_a_declaration_that_follows_later_is_waited_for() -> None:
    play = ready(MODERN)
    assert play >> OwnerChanged() >> Declared(WITH_GPU) >> After(5)
    assert play >> Declared(ELSEWHERE) << registers(endpoint="10.0.0.7:9000")


def test_what_a_beat_tells_needs_no_registration() -> None:
    play = ready(MODERN)
    labelled = replace(WITH_GPU, owner=Owner(labels={"zone": "b"}))
    assert play >> OwnerChanged() >> After(5)
    assert play >> Declared(labelled) << (lambda action: action.changed.labels == {"zone": "b"})


def test_without_the_owners_word_a_feature_that_comes_and_goes_registers_nothing() -> None:
    play = ready(MODERN)
    assert play >> Declared(replace(WITH_GPU, features_supported={"emotion_detection": True})) >> After(5)


def test_a_change_while_the_registry_still_answers_is_registered_after_its_answer() -> None:
    play = awaiting()
    assert play >> OwnerChanged() >> Declared(ELSEWHERE)
    assert play >> heard(MODERN) << SaveIdentity << registers(endpoint="10.0.0.7:9000")


def test_a_change_while_nothing_is_connected_goes_with_the_next_registration_and_no_other() -> None:
    play = registered(MODERN)
    play >> Disconnected(1006, "gone")
    play >> OwnerChanged() >> Declared(ELSEWHERE) >> After(2)
    play.pending.clear()
    assert play >> Connected() << registers(endpoint="10.0.0.7:9000")
    assert play >> heard(MODERN) << SaveIdentity << SendBeat


def test_an_older_scheduler_that_would_hold_the_id_against_us_is_left_in_peace() -> None:
    play = ready()
    assert play >> OwnerChanged() >> Declared(ELSEWHERE) >> After(5)


def test_a_node_that_leaves_registers_no_more() -> None:
    play = ready(MODERN)
    play >> StopRequested("bye", drain=True)
    play.pending.clear()
    assert play >> OwnerChanged() >> Declared(ELSEWHERE)
    assert play.machine.state is State.LEAVING


def test_an_owner_s_drain_outlives_registrations_that_follow_each_other() -> None:
    play = ready(MODERN)
    drain = DrainAsked("new fans", 60)
    assert play >> drain << SendBeat << Send
    assert play >> status("draining", timestamp=1000, details={"drain_deadline": 1060})
    assert play >> OwnerChanged() >> Declared(ELSEWHERE) << registers(endpoint="10.0.0.7:9000")
    assert play >> OwnerChanged() >> Declared(WITH_GPU)
    assert play >> heard(MODERN) << SaveIdentity << registers()
    assert play >> status("registering", details={})  # of the first of the two, which lifted the drain (§4)
    assert play.machine.view.drain_reason == "new fans"
    assert play >> heard(MODERN) << SaveIdentity << SendBeat << (lambda action: action.message.drain)


def test_the_end_of_a_job_is_told_at_once_while_the_node_drains() -> None:
    play = ready()
    busy, idle = Declared(WITH_GPU, running_jobs=("job-1",)), Declared(WITH_GPU, running_jobs=())
    assert play >> busy >> After(15) << SendBeat
    assert play >> status("draining") >> busy >> After(5)
    assert play >> idle << SendBeat
    assert play >> idle >> After(5)


def test_the_end_of_a_job_waits_for_the_next_beat_else() -> None:
    play = ready()
    assert play >> Declared(WITH_GPU, running_jobs=("job-1",)) >> After(15) << SendBeat
    assert play >> Declared(WITH_GPU, running_jobs=()) >> After(14)
