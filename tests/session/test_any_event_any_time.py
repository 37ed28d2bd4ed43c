import math
import random
from collections.abc import Sequence
from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from gpu_agent.session.machine import TRANSITIONS, SessionMachine
from gpu_agent.session.types import (
    Action,
    Connect,
    Connected,
    ConnectFailed,
    Declared,
    Disconnect,
    Disconnected,
    DrainRequested,
    Event,
    Exit,
    MessageReceived,
    RefreshRequested,
    ResumeRequested,
    Send,
    SendHeartbeat,
    Started,
    State,
    StopRequested,
)
from gpu_agent.wire.codes import ErrorCode
from gpu_agent.wire.messages import FromRegistry, NodeControl, NodeError, NodeRegisterAck, NodeStatusMessage
from tests.session.harness import ACK, BARE_ACK, NO_JITTER, OTHER_GPU, WITH_GPU, WITHOUT_GPU, error, status

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
    st.builds(DrainRequested, _TEXTS, _SPANS),
    st.sampled_from([ResumeRequested(), RefreshRequested()]),
    st.floats(min_value=0, max_value=100),
)
_SOCKET_EVENTS = (Connected, ConnectFailed, Disconnected, MessageReceived)


class _Socket:
    """The sockets of a shell: at most one, opening or open; and which events can happen then."""

    def __init__(self, addresses: Sequence[str]) -> None:
        self._addresses = addresses
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
                    assert action.address in self._addresses
                    assert not self._held, "never two sockets"
                    self.opening = True
                case Disconnect():
                    assert self._held
                    self.opening = self.open = False
                case Send() | SendHeartbeat():
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
    st.lists(_HAPPENINGS, max_size=40),
    st.sampled_from([0.0, 0.5, 0.999]),
    st.sampled_from([None, "node-A"]),
    st.sampled_from([("a",), ("a", "b"), ("a", "b", "c")]),
)
def test_whatever_happens_nothing_raises_and_no_two_sockets_are_open(
    happenings: list[Event | float], dice: float, node_id: str | None, addresses: tuple[str, ...]
) -> None:
    machine = SessionMachine(
        NO_JITTER,
        addresses=addresses,
        node_id=node_id,
        has_token=node_id is not None,
        draw=lambda: dice,
    )
    socket, now = _Socket(addresses), 0.0
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


_EVENTS: list[Event | float] = [
    Started(),
    *3 * (Declared(WITH_GPU), Connected(), MessageReceived(ACK), 70.0),
    Declared(WITHOUT_GPU),
    Declared(OTHER_GPU),
    ConnectFailed("HTTP 401", 401),
    ConnectFailed("no route"),
    Disconnected(1006, "gone"),
    MessageReceived(BARE_ACK),
    *2 * (error("GPU_REQUIRED"), error("UNKNOWN_NODE")),
    *(error(code) for code in ("SESSION_SUPERSEDED", "NODE_ID_CONFLICT", "INVALID_CAPABILITY_SCHEMA")),
    MessageReceived(NodeControl(command="reregister")),
    status("offline"),
    DrainRequested("drain", 5.0),
    *2 * (ResumeRequested(),),
    1.0,
]
_LAST_EVENTS: list[Event | float] = [
    StopRequested("stop"),
    StopRequested("stop", drain=True),
    error("SIMULATED_NODE_REFUSED"),
]
"""They end a session, so they come last."""


def test_every_transition_of_the_table_happens_and_no_other() -> None:
    dice = random.Random(7)  # noqa: S311 - the same walk each time, not a secret
    seen: set[tuple[str, str]] = set()
    for _ in range(3000):
        machine = SessionMachine(
            NO_JITTER, addresses=("a", "b"), node_id="node-A", has_token=True, draw=dice.random
        )
        socket, now = _Socket(("a", "b")), 0.0
        for event in (*dice.choices(_EVENTS, k=dice.randrange(50)), dice.choice(_LAST_EVENTS), 700.0):
            if isinstance(event, float):
                now += event
                actions = machine.wake(now)
            elif socket.allows(event) and not socket.ended and not _starts_twice(machine, event):
                socket.happened(event)
                actions = machine.handle(event, now)
            else:
                continue
            socket.carry_out(actions)
            seen |= _logged_transitions(machine)
    stated = {(before.value, after.value) for before, targets in TRANSITIONS.items() for after in targets}
    assert stated - seen == set()


def _starts_twice(machine: SessionMachine, event: object) -> bool:
    return isinstance(event, Started) and machine.state is not State.IDLE


def _logged_transitions(machine: SessionMachine) -> set[tuple[str, str]]:
    lines = machine.transition_log().splitlines()[-4:]
    moves = [line.split(" ", 1)[1].split(":")[0].partition(" → ") for line in lines if " → " in line]
    return {(before, after) for before, _, after in moves}
