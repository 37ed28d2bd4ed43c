import math
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpu_agent.session.actions import Action, Connect, Credential, Disconnect, Exit, Send, SendBeat
from gpu_agent.session.events import (
    Connected,
    ConnectFailed,
    Declared,
    Disconnected,
    DrainAsked,
    Event,
    MessageReceived,
    RefreshAsked,
    ResumeAsked,
    Started,
    StopRequested,
)
from gpu_agent.session.machine import SessionMachine
from gpu_agent.session.settings import SessionSettings
from gpu_agent.session.story import IllegalEventError, State
from gpu_agent.wire.codes import ErrorCode
from gpu_agent.wire.messages import (
    FromRegistry,
    GpuDeclaration,
    Hardware,
    NodeControl,
    NodeError,
    NodeRegisterAck,
    NodeStatusMessage,
)
from tests.playbook import After
from tests.session.played import (
    ACK,
    NO_JITTER,
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


# Whatever a peer does

_TEXTS = st.text(max_size=8)
_SPANS = st.none() | st.floats(min_value=0, max_value=1e15)
_MESSAGES: st.SearchStrategy[FromRegistry] = st.one_of(
    st.builds(
        NodeRegisterAck,
        node_id=st.sampled_from(["node-A", "node-B"]),
        node_token=st.none() | _TEXTS,
        heartbeat_interval_seconds=_SPANS,
        warmup_heartbeat_interval_seconds=_SPANS,
    ),
    st.builds(
        NodeError,
        code=st.sampled_from([*(code.value for code in ErrorCode), "NO_GPU_AVAILABLE", "NEW"]),
        message=_TEXTS,
        details=st.none()
        | st.dictionaries(st.just("supported"), st.lists(st.sampled_from(["1.0", "1.1", "2"]))),
        retry_after_seconds=_SPANS,
    ),
    st.builds(
        NodeStatusMessage,
        node_id=st.sampled_from(["node-A", "node-B"]),
        status=st.sampled_from(["registering", "ready", "draining", "offline", "new"]),
        heartbeat_interval_seconds=_SPANS,
    ),
    st.builds(NodeControl, command=st.sampled_from(["reregister", "refresh", "new"])),
)
_HAPPENINGS = st.one_of(
    st.just(Connected()),
    st.builds(ConnectFailed, _TEXTS, st.sampled_from([None, 401, 403, 503]), _SPANS),
    st.builds(Disconnected, st.none() | st.just(1006), _TEXTS),
    st.builds(MessageReceived, _MESSAGES),
    st.builds(MessageReceived, _MESSAGES),
    st.builds(Declared, st.sampled_from([WITH_GPU, WITHOUT_GPU, replace(WITH_GPU, simulated=True)])),
    st.builds(StopRequested, _TEXTS, st.booleans(), _SPANS),
    st.builds(DrainAsked, _TEXTS, _SPANS),
    st.sampled_from([ResumeAsked(), RefreshAsked()]),
    st.floats(min_value=0, max_value=100),
)
_SOCKET_EVENTS = (Connected, ConnectFailed, Disconnected, MessageReceived)


class _Socket:
    """What a shell has in hand: at most one socket, opening or open. Tells which events can happen."""

    def __init__(self) -> None:
        self.opening = self.open = self.ended = False

    @property
    def _held(self) -> bool:
        return self.opening or self.open

    def allows(self, event: object) -> bool:
        if isinstance(event, Connected | ConnectFailed):
            return self.opening
        return self.open if isinstance(event, _SOCKET_EVENTS) else True

    def happened(self, event: object) -> None:
        if isinstance(event, _SOCKET_EVENTS):
            self.open = isinstance(event, Connected | MessageReceived)
            self.opening = False

    def carry_out(self, actions: list[Action]) -> None:
        for action in actions:
            assert not self.ended, "nothing follows the exit"
            match action:
                case Connect():
                    assert not self._held, "never two sockets"
                    self.opening = True
                case Disconnect():
                    assert self._held
                    self.opening = self.open = False
                case Send() | SendBeat():
                    assert self.open, "what is sent has a socket"
                case Exit():
                    self.ended = True
                    assert not self._held, "the socket is let go first"
                case _:
                    pass


def _check_deadline(machine: SessionMachine, now: float) -> None:
    if machine.deadline is not None:
        assert math.isfinite(machine.deadline)
        if now < machine.deadline:
            assert machine.wake(now) == []


@given(
    st.lists(_HAPPENINGS, max_size=40), st.sampled_from([0.0, 0.5, 0.999]), st.sampled_from([None, "node-A"])
)
def test_whatever_happens_nothing_raises_and_no_two_sockets_are_open(
    happenings: list[Event | float], dice: float, node_id: str | None
) -> None:
    machine = SessionMachine(NO_JITTER, node_id=node_id, has_token=node_id is not None, draw=lambda: dice)
    socket, now = _Socket(), 0.0
    socket.carry_out(machine.handle(Started(), now))
    for happening in happenings:
        if isinstance(happening, float):
            now += happening
            actions = machine.wake(now)
        elif socket.allows(happening) and not socket.ended:
            socket.happened(happening)
            actions = machine.handle(happening, now)
        else:
            continue
        socket.carry_out(actions)
        _check_deadline(machine, now)
