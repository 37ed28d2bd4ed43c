"""What the agent tells the registry of faults that belong to no job (§3.3)."""

from typing import Any

from gpu_agent.session.actions import SaveIdentity, Send, SendBeat
from gpu_agent.session.conversation import MOST_FAULTS_WAITING
from gpu_agent.session.events import Connected, Disconnected, FaultFound
from gpu_agent.session.story import State
from gpu_agent.wire.messages import NodeError, NodeRegister
from tests.playbook import After
from tests.session.played import ACK, BARE_ACK, Play, connecting, heard, play, registered

NAMED = ACK.model_copy(update={"capability_schema_version": "1.1"})
LOST = FaultFound("GPU_LOST", "GPU 3 is lost")


def _told(message: str = LOST.message) -> Send:
    return Send(NodeError(node_id="node-A", code="GPU_LOST", message=message))


def _registers(action: Any) -> bool:  # noqa: ANN401 - a question for the playbook
    return isinstance(action, Send) and isinstance(action.message, NodeRegister)


def _acknowledged(playing: Play) -> Play:
    return playing >> Connected() << _registers >> heard(NAMED) << SaveIdentity << SendBeat


def test_a_fault_is_told_at_once_while_registered() -> None:
    assert registered(NAMED) >> LOST << _told()


def test_faults_found_before_there_is_a_registration_follow_the_first_beat_and_are_told_once() -> None:
    playing = connecting()
    assert playing >> LOST >> FaultFound("GPU_LOST", "another")
    assert _acknowledged(playing) << _told() << _told("another")
    assert playing >> After(2) << SendBeat


def test_a_fault_found_while_the_registry_is_away_is_told_when_it_is_back() -> None:
    playing = registered(NAMED) >> Disconnected(1006, "gone")
    assert playing >> LOST
    while playing.machine.state is not State.CONNECTING:
        playing >> After(1)
        playing.pending.clear()
    assert _acknowledged(playing) << _told()


def test_an_older_scheduler_is_told_of_no_fault() -> None:
    assert registered(BARE_ACK) >> LOST >> After(10) << SendBeat


def test_a_fault_found_before_anything_began_waits() -> None:
    assert play() >> LOST


def test_of_too_many_faults_that_wait_the_newest_are_kept() -> None:
    playing = connecting()
    for number in range(MOST_FAULTS_WAITING + 3):
        assert playing >> FaultFound("GPU_LOST", str(number))
    _acknowledged(playing)
    for number in range(3, MOST_FAULTS_WAITING + 3):
        playing << _told(str(number))
    assert playing
