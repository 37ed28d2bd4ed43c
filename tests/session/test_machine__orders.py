"""What the owner of the machine asks of it: to be emptied, taken back, looked at again (§3.6, §4)."""

from typing import Any

import pytest

from gpu_agent.session.actions import Connect, Disconnect, Exit, Probe, SaveIdentity, Send, SendBeat
from gpu_agent.session.events import (
    Connected,
    ConnectFailed,
    Declared,
    Disconnected,
    DrainAsked,
    RefreshAsked,
    ResumeAsked,
    Started,
    StopRequested,
)
from gpu_agent.session.story import State
from gpu_agent.wire.messages import NodeControl, NodeUnregister
from tests.playbook import After
from tests.session.played import (
    ACK,
    WITH_GPU,
    WITHOUT_GPU,
    Play,
    awaiting,
    connecting,
    error,
    heard,
    notes,
    play,
    ready,
    registers,
    status,
)

FANS = DrainAsked("new fans", 60)
REFUSED = ConnectFailed("connection refused")


def asks_to_drain(deadline: float | None) -> Send:
    return Send(NodeUnregister(node_id="node-A", reason="new fans", drain=True, deadline_seconds=deadline))


def draining() -> Play:
    """A ready machine that its owner drains, which its registry has confirmed."""
    session = ready()
    assert session >> FANS << SendBeat << asks_to_drain(60)
    assert session >> status("draining", timestamp=1000, details={"drain_deadline": 1060})
    return session


def drained() -> Play:
    session = draining()
    assert session >> status("offline", reason_code="drain_complete") << Disconnect(1000, "drained")
    assert session.machine.state is State.DRAINED
    return session


def test_a_drain_goes_on_beating_and_ends_apart_without_an_exit() -> None:
    session = draining()
    assert (session.machine.view.drain_reason, session.machine.view.drain_until) == ("new fans", 60)
    assert session >> After(15) << SendBeat
    assert session >> status("offline", reason_code="drain_complete") << Disconnect
    assert notes(session)[-2:] == ["node_status_changed", "node_drained"]
    assert session >> After(3600)
    assert session.machine.view.last_refusal == "drained, as its owner asked"


def test_a_resume_of_a_drained_machine_connects_and_registers() -> None:
    session = drained()
    assert session >> ResumeAsked() << Connect() >> Connected() << registers(node_id="node-A")
    assert session >> heard(ACK) << SaveIdentity << SendBeat
    assert session.machine.view.drain_reason is None


def test_a_resume_while_draining_registers_on_the_same_socket() -> None:
    session = draining()
    assert session >> ResumeAsked() << registers(node_id="node-A")
    assert session >> heard(ACK) << SaveIdentity << SendBeat
    assert session.machine.state is State.REGISTERED


def test_a_node_never_lifts_an_operators_drain() -> None:
    session = ready()
    assert session >> status("draining", reason_code="drain_requested") >> ResumeAsked()
    assert session >> status("offline", reason_code="drain_complete") >> ResumeAsked()
    assert session.machine.state is State.REGISTERED


def test_a_drain_outlives_a_lost_connection_and_is_told_again_behind_the_ack() -> None:
    session = draining()
    assert session >> Disconnected(1006, "gone") >> After(0.5) << Connect() >> Connected() << Send
    assert session >> heard(ACK) << SaveIdentity << SendBeat << asks_to_drain(59.5)
    assert session >> status("registering", reason_code="resumed", details={})
    assert session.machine.view.drain_reason == "new fans"


def test_a_drain_asked_while_no_registry_is_reached_is_told_to_the_first_that_is() -> None:
    session = connecting()
    assert session >> REFUSED >> FANS >> After(0.5) << Connect() >> Connected() << Send
    assert session >> heard(ACK) << SaveIdentity << SendBeat << asks_to_drain(59.5)


def test_a_drain_asked_while_the_answer_is_awaited_is_told_behind_it() -> None:
    session = awaiting()
    assert session >> FANS >> heard(ACK) << SaveIdentity << SendBeat << asks_to_drain(60)


def test_a_drain_whose_time_is_over_before_a_registry_is_reached_connects_no_more() -> None:
    session = connecting()
    assert session >> REFUSED >> DrainAsked("new fans", 0.2) >> After(3600)
    assert session.machine.state is State.DRAINED
    assert "no registry was reached" in (session.machine.view.last_refusal or "")


def test_a_registry_that_gives_no_verdict_is_waited_for_until_the_deadline_and_a_little() -> None:
    session = ready()
    assert session >> DrainAsked("new fans", 5) << SendBeat << asks_to_drain(5)
    assert session >> After(9.9) >> After(0.1) << Disconnect(1000, "drained")
    assert session.machine.state is State.DRAINED


def test_an_operator_who_resumes_the_node_ends_the_drain_of_its_owner() -> None:
    session = draining()
    assert session >> status("registering", reason_code="resumed", details={})
    assert session.machine.view.drain_reason is None
    session >> After(600)
    assert {type(action) for action in session.pending} == {SendBeat}


def test_an_order_to_register_again_is_obeyed_while_draining_and_the_drain_is_told_again() -> None:
    session = draining()
    assert session >> heard(NodeControl(command="reregister")) << registers(node_id="node-A")
    assert session >> heard(ACK) << SaveIdentity << SendBeat << asks_to_drain(60)


def test_a_stop_goes_before_a_drain() -> None:
    session = draining()
    assert session >> StopRequested("bye") << Send << Disconnect << Exit("bye")
    session = draining()
    assert session >> StopRequested("bye", drain=True, deadline_seconds=600) << SendBeat << Send
    session >> After(65)
    assert session.machine.state is State.LEAVING


def test_a_drained_machine_leaves_when_it_is_stopped() -> None:
    assert drained() >> StopRequested("bye") << Exit("bye")


def test_a_resume_is_the_word_that_a_session_which_yielded_waits_for() -> None:
    session = ready()
    assert session >> error("SESSION_SUPERSEDED") << Disconnect
    assert session.machine.state is State.YIELDED
    assert session >> ResumeAsked() << Connect()


def test_a_resume_ends_the_waiting_for_the_next_attempt() -> None:
    session = connecting()
    assert session >> REFUSED >> ResumeAsked() << Connect()


@pytest.mark.parametrize("session", [play(), connecting(), awaiting(), ready()])
def test_a_resume_where_nothing_is_to_be_resumed_does_nothing(session: Play) -> None:
    assert session >> ResumeAsked()


def test_a_resume_without_a_gpu_waits_for_one() -> None:
    session = drained()
    assert session >> Declared(WITHOUT_GPU) >> ResumeAsked()
    assert session.machine.state is State.WAITING_GPU


def test_a_refresh_probes_and_tells_everything_with_the_next_beat() -> None:
    session = ready()

    def is_full(action: Any) -> bool:  # noqa: ANN401 - a question for the playbook
        return isinstance(action, SendBeat) and action.changed.hardware is not None

    assert session >> RefreshAsked() << Probe() >> Declared(WITH_GPU) << is_full


@pytest.mark.parametrize("session", [play(), connecting(), awaiting()])
def test_a_refresh_without_a_session_only_probes(session: Play) -> None:
    assert session >> RefreshAsked() << Probe()


def test_an_order_before_the_start_is_remembered() -> None:
    session = play()
    assert session >> Declared(WITH_GPU) >> FANS >> Started() << Connect() >> Connected() << Send
    assert session >> heard(ACK) << SaveIdentity << SendBeat << asks_to_drain(60)


def test_a_drain_that_is_asked_for_while_the_agent_leaves_shortens_no_job() -> None:
    session = ready()
    assert session >> StopRequested("bye", drain=True, deadline_seconds=600) << SendBeat << Send
    assert session >> DrainAsked("new fans", 0)
    assert session >> After(15) << SendBeat
    assert session.machine.state is State.LEAVING
    assert session.machine.view.drain_reason is None
