"""What the tests of the session share: a declaration, and a machine brought to a state."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from gpu_agent.session.machine import SessionMachine
from gpu_agent.session.types import (
    Connect,
    Connected,
    Declared,
    Event,
    LogEvent,
    MessageReceived,
    Send,
    SessionSettings,
    Started,
)
from gpu_agent.wire.declaration import Declaration
from gpu_agent.wire.messages import (
    FromRegistry,
    GpuDeclaration,
    Hardware,
    InstalledModel,
    NodeError,
    NodeRegister,
    NodeRegisterAck,
    NodeStatusMessage,
)
from tests.playbook import Playbook

GPU = GpuDeclaration(name="A100", memory_gb=80, uuid="GPU-1", memory_mb=81920, health="ok")
WITH_GPU = Declaration(
    platform="linux",
    hardware=Hardware(cpu_cores=8, memory_gb=64, gpus=(GPU,)),
    installed_models=(InstalledModel(model_id="whisper", version="1"),),
    capability_state={"whisper": "ready"},
)
OTHER_GPU = replace(
    WITH_GPU,
    hardware=Hardware(cpu_cores=8, memory_gb=64, gpus=(GPU.model_copy(update={"uuid": "GPU-2"}),)),
)
WITHOUT_GPU = replace(WITH_GPU, hardware=Hardware(cpu_cores=8, memory_gb=64))
ADDRESS = "wss://registry.example:8080/ws/node"
CONNECT = Connect(address=ADDRESS)
NO_JITTER = SessionSettings(startup_jitter_seconds=0)
ACK = NodeRegisterAck(
    node_id="node-A", heartbeat_interval_seconds=15, warmup_heartbeat_interval_seconds=2, session_epoch=1
)
BARE_ACK = NodeRegisterAck(node_id="node-A")

Play = Playbook[SessionMachine]


def play(
    settings: SessionSettings = NO_JITTER,
    *,
    node_id: str | None = None,
    has_token: bool = False,
    dice: float = 0.5,
    addresses: Sequence[str] = (ADDRESS,),
) -> Play:
    """A machine before its start; whatever it draws is `dice`."""
    machine = SessionMachine(
        settings, addresses=addresses, node_id=node_id, has_token=has_token, draw=lambda: dice
    )
    return Playbook(machine, optional=(LogEvent,))


def connecting(settings: SessionSettings = NO_JITTER, **identity: object) -> Play:
    """A machine whose connection is being opened."""
    return _quietly(play(settings, **identity), Declared(WITH_GPU), Started())  # type: ignore[arg-type]  # passed through


def awaiting(settings: SessionSettings = NO_JITTER, **identity: object) -> Play:
    """A machine that has sent `node_register`."""
    return _quietly(connecting(settings, **identity), Connected())


def registered(ack: NodeRegisterAck = ACK, **identity: object) -> Play:
    """A machine that was acknowledged and has sent its first heartbeat."""
    return _quietly(awaiting(**identity), received(ack))  # type: ignore[arg-type]  # passed through


def ready(ack: NodeRegisterAck = ACK) -> Play:
    """A registered machine with the status ready."""
    return _quietly(registered(ack), status("ready"))


def received(message: FromRegistry) -> MessageReceived:
    return MessageReceived(message)


def error(code: str, **fields: object) -> MessageReceived:
    return received(
        NodeError.model_validate({"type": "node_error", "code": code, "message": f"{code}!", **fields})
    )


def status(name: str, **fields: object) -> MessageReceived:
    return received(
        NodeStatusMessage.model_validate({"node_id": "node-A", "status": name, "reason": "so", **fields})
    )


def logged(play: Play) -> list[str]:
    """The identifiers of all events logged so far."""
    return [action.event for action in play.actions if isinstance(action, LogEvent)]


def registers(**expected: object) -> Any:  # noqa: ANN401 - a question for the playbook
    """Ask of an action whether it sends a registration with these parts."""

    def asks(action: object) -> bool:
        return (
            isinstance(action, Send)
            and isinstance(action.message, NodeRegister)
            and all(getattr(action.message, name) == value for name, value in expected.items())
        )

    return asks


def _quietly(play: Play, *events: Event) -> Play:
    for event in events:
        play >> event
        play.pending.clear()
    return play
