from dataclasses import replace
from typing import Any

import pytest

from gpu_agent.session.actions import Connect, Credential, Disconnect, Exit, Send
from gpu_agent.session.events import (
    Connected,
    ConnectFailed,
    Declared,
    Disconnected,
    Event,
    Started,
    StopRequested,
)
from gpu_agent.session.settings import SessionSettings
from gpu_agent.session.story import IllegalEventError, State
from gpu_agent.wire.messages import GpuDeclaration, Hardware, NodeError
from tests.playbook import After
from tests.session.played import (
    ACK,
    WITH_GPU,
    WITHOUT_GPU,
    Play,
    awaiting,
    connecting,
    heard,
    notes,
    play,
    ready,
    registered,
)

REFUSED = ConnectFailed("connection refused")


def test_a_fleet_does_not_arrive_as_one_the_start_is_jittered() -> None:
    started = play(SessionSettings(startup_jitter_seconds=4), dice=0.5)
    assert started >> Declared(WITH_GPU) >> Started() >> After(1.9) >> After(0.1) << Connect()


def test_a1_without_a_gpu_nothing_connects() -> None:
    started = play()
    assert started >> Started() >> After(60)
    assert started.machine.view.last_refusal == "not probed yet"
    assert started >> Declared(WITHOUT_GPU) >> Declared(WITHOUT_GPU) >> After(3600)
    assert started.machine.state is State.WAITING_GPU
    assert started.machine.view.last_refusal == "no usable GPU to declare"
    assert notes(started) == ["waiting_for_gpu", "waiting_for_gpu"]


def test_a1_a_gpu_that_appears_later_registers_then() -> None:
    started = play()
    assert started >> Declared(WITHOUT_GPU) >> Started() >> After(3600)
    assert started >> Declared(WITH_GPU) << Connect()
    assert started >> Connected() << Send


def test_a1_gpus_that_vanish_while_connecting_are_not_registered() -> None:
    opening = connecting()
    assert opening >> Declared(WITHOUT_GPU) >> Connected() << Disconnect
    assert opening.machine.state is State.WAITING_GPU


def test_a1_gpus_that_vanish_while_backing_off_wait_for_their_return() -> None:
    waiting = connecting()
    assert waiting >> REFUSED >> Declared(WITHOUT_GPU) >> After(10)
    assert waiting.machine.state is State.WAITING_GPU


def test_other_gpus_declared_meanwhile_are_tried_at_once_after_a_refusal() -> None:
    asked = awaiting()
    other = Hardware(cpu_cores=8, memory_gb=64, gpus=(GpuDeclaration(name="H100", memory_gb=80),))
    assert asked >> Declared(replace(WITH_GPU, hardware=other))
    assert asked >> heard(NodeError(code="GPU_REQUIRED")) << Disconnect << Connect()


def test_failures_back_off_by_doubling_to_the_ceiling() -> None:
    failing, delays = connecting(), []
    for _ in range(9):
        assert failing >> REFUSED
        assert failing.machine.deadline is not None
        delays.append(failing.machine.deadline - failing.now)
        assert failing >> After(delays[-1]) << Connect()
    assert delays == [0.5, 1, 2, 4, 8, 16, 30, 30, 30]


def test_a_lost_connection_backs_off_and_attaches_again_with_its_id() -> None:
    lost = ready()
    assert lost >> Disconnected(1006, "reset by peer") >> After(0.5) << Connect()
    assert lost >> Connected() << (lambda action: action.message.node_id == "node-A")
    assert lost.machine.view.last_refusal == "connection closed (1006): reset by peer"


def test_a_session_that_lasted_resets_the_backoff_and_a_short_one_does_not() -> None:
    for lasting, delay in ((121.0, 0.5), (30.0, 1.0)):
        session = connecting()
        assert session >> REFUSED >> After(0.5) << Connect() >> Connected() << Send
        session >> heard(ACK)
        session.pending.clear()
        session >> After(lasting)
        session.pending.clear()
        assert session >> Disconnected(1001, "")
        assert session.machine.deadline == session.now + delay


def test_401_for_a_node_token_tries_the_join_token_once_then_waits_at_the_ceiling() -> None:
    refused = connecting(node_id="node-A", has_token=True)
    answer = ConnectFailed("HTTP 401", http_status=401)
    assert refused >> answer << Connect(Credential.JOIN)
    assert refused >> answer
    assert refused.machine.deadline == refused.now + 60
    assert "join token" in (refused.machine.view.last_refusal or "")
    assert refused >> After(60) << Connect(Credential.BEST)


def test_a_join_token_that_is_let_in_suggests_the_known_id() -> None:
    refused = connecting(node_id="node-A", has_token=True)
    assert refused >> ConnectFailed("HTTP 401", http_status=401) << Connect(Credential.JOIN)
    assert refused >> Connected() << (lambda action: action.message.node_id == "node-A")


@pytest.mark.parametrize("failure", [{"http_status": 401}, {"http_status": 403}, {"lasting": True}])
def test_what_only_a_person_can_mend_waits_around_the_ceiling(failure: dict[str, Any]) -> None:
    refused = connecting()
    assert refused >> ConnectFailed("no", **failure)
    assert refused.machine.deadline == refused.now + 60


def test_a_full_registry_is_tried_again_no_sooner_than_it_asked() -> None:
    refused = connecting()
    assert refused >> ConnectFailed("HTTP 503", http_status=503, retry_after_seconds=20)
    assert refused.machine.deadline == refused.now + 20.5


def test_a_stop_without_a_connection_just_exits() -> None:
    assert play() >> StopRequested("bye") << Exit("bye")
    assert connecting() >> REFUSED >> StopRequested("bye", drain=True) << Exit("bye")


def test_a_stop_while_connecting_gives_the_attempt_up() -> None:
    assert connecting() >> StopRequested("bye") << Disconnect << Exit("bye")


def test_after_the_exit_nothing_matters_any_more() -> None:
    stopped = play()
    assert stopped >> StopRequested("bye") << Exit
    assert stopped >> StopRequested("bye") >> Declared(WITH_GPU) >> After(60)
    assert stopped.machine.state is State.STOPPED


def test_models_left_out_of_the_frame_are_noted_once_and_viewed() -> None:
    full = replace(WITH_GPU, left_out=("big-model",))
    started = play()
    assert started >> Declared(full) >> Declared(full)
    assert notes(started) == ["models_left_out"]
    assert started.machine.view.models_left_out == ("big-model",)


@pytest.mark.parametrize(
    ("session", "event"),
    [
        (play(), Connected()),
        (play(), Disconnected(1000, "")),
        (connecting(), Started()),
        (connecting(), heard(ACK)),
        (registered(), Connected()),
        (registered(), REFUSED),
    ],
)
def test_an_event_that_the_shell_must_not_send_raises_and_changes_nothing(
    session: Play, event: Event
) -> None:
    machine = session.machine
    before = machine.view
    with pytest.raises(IllegalEventError, match="cannot happen now"):
        machine.handle(event, 100.0)
    assert machine.view == before


def test_an_illegal_event_tells_the_story() -> None:
    with pytest.raises(IllegalEventError, match="connecting → awaiting_ack: connected"):
        registered().machine.handle(Started(), 100.0)
