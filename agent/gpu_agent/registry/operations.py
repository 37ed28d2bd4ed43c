"""What operators request for a node: drain, resume, cordon, uncordon, remove, refresh, reregister (§3.6, §4).

The desired state of a node survives restarts of both sides. A control message is not stored: a node that is
not connected cannot receive it, so the request is refused.

To add a request:

1. `events`: its event, added to `NodeChangeRequest`; here: its `case` in `_change`, which mypy asks for;
2. a route that sends it: see `server.api.nodes`, which says what that needs, client and commands included;
3. where it must outlive a registration and a restart: a field of `node.DesiredState`, which counts in
   `by_operator`, and its place in `_NodeDocument`, `serialize_node` and `load_node` of `persistence`; to show
   it, a field of `wire.api.NodeDetail`, filled in `server.views`;
4. where it logs an event of its own: a line of `docs/reference/logs.md` and of `SENTENCES` in
   `wire.event_words`.
"""

from typing import assert_never

from gpu_agent.registry.actions import Level, Send, Step, said_by_operator, unknown_node_message
from gpu_agent.registry.dispatch.dispatch import Dispatch
from gpu_agent.registry.events import (
    ControlRequested,
    CordonRequested,
    DrainRequested,
    GpuCordonRequested,
    NodeChangeRequest,
    NodeRequest,
    RemovalRequested,
    ResumeRequested,
)
from gpu_agent.registry.node import GpuCordon, NodeRecord, NodeTable
from gpu_agent.registry.quoting import clip_quote, clip_sentence
from gpu_agent.registry.removal import NodeRemoval, name_of
from gpu_agent.registry.status import StatusTransitions
from gpu_agent.wire.codes import ErrorCode, NodeStatus, ReasonCode
from gpu_agent.wire.messages import NodeControl

UNKNOWN_GPU = "UNKNOWN_GPU"
NODE_NOT_CONNECTED = "NODE_NOT_CONNECTED"
"""No session of the node is open."""
DRAINED_BY_NODE = "DRAINED_BY_NODE"
"""The node drains on its own request: its machine ends that, and no operator."""


class Operations:
    """Handles operators' requests for nodes."""

    def __init__(
        self,
        nodes: NodeTable,
        transitions: StatusTransitions,
        *,
        removal: NodeRemoval,
        dispatch: Dispatch,
        auth_off: bool,
    ) -> None:
        self._nodes = nodes
        self._transitions = transitions
        self._removal = removal
        self._dispatch = dispatch
        self._auth_off = auth_off

    def handle(self, event: NodeRequest, step: Step) -> None:
        """Do what an operator requests, or refuse it."""
        record = self._nodes.records.get(event.node_id)
        if record is None:
            step.refuse(event.ref, ErrorCode.UNKNOWN_NODE, unknown_node_message(event.node_id))
            return
        if isinstance(event, ControlRequested):
            self._control(record, event, step)
            return
        refusal = _refusal(record, event)
        if refusal is not None:
            step.refuse(event.ref, *refusal)
            return
        step.change_node(record)
        self._change(record, event, step)
        step.answer(event.ref)

    def _change(self, record: NodeRecord, event: NodeChangeRequest, step: Step) -> None:
        match event:
            case DrainRequested():
                self._drain(record, event, step)
            case ResumeRequested():
                self._resume(record, event, step)
            case CordonRequested():
                self._cordon(record, event, step)
            case GpuCordonRequested():
                self._cordon_gpu(record, event, step)
            case RemovalRequested():
                self._remove(record, event, step)
            case _ as unreachable:
                assert_never(unreachable)

    def _drain(self, record: NodeRecord, event: DrainRequested, step: Step) -> None:
        """Drain a node: at once where its status allows, otherwise once it becomes ready or degraded."""
        seconds = self._transitions.set_drain(
            record, by_operator=True, seconds=event.deadline_seconds, reason=event.reason, now=step.now
        )
        fields = said_by_operator(event.reason, event.by) | {"deadline_seconds": seconds}
        step.log("drain_requested", {"node_id": record.node_id, **fields})
        self._transitions.apply_drain(record, step)

    def _resume(self, record: NodeRecord, event: ResumeRequested, step: Step) -> None:
        """Resume a node: it proves itself again where its session is open, otherwise once it registers."""
        record.desired.drain = None
        said = said_by_operator(event.reason, event.by)
        step.log("resume_requested", {"node_id": record.node_id, **said})
        drained = record.status is NodeStatus.OFFLINE and record.connection is not None
        if record.status is NodeStatus.DRAINING or drained:
            reason = "an operator resumed it; its health is not proven yet"
            self._transitions.resume(record, reason=reason, step=step)

    def _cordon(self, record: NodeRecord, event: CordonRequested, step: Step) -> None:
        """Give a node no new jobs, or lift that; its status stays."""
        record.desired.cordoned = event.reason
        self._dispatch.update(record)
        changed = "node_uncordoned" if event.reason is None else "node_cordoned"
        reason = event.lifted_because if event.reason is None else event.reason
        step.log(changed, {"node_id": record.node_id, **said_by_operator(reason, event.by)})

    def _cordon_gpu(self, record: NodeRecord, event: GpuCordonRequested, step: Step) -> None:
        """Give one GPU to no claim any more, or lift that (§5.5)."""
        cordons = record.desired.gpu_cordons
        if event.reason is None:
            cordons.pop(event.uuid, None)
        else:
            cordons[event.uuid] = GpuCordon(reason=event.reason, by=event.by)
        self._dispatch.update_cordons(record)
        changed = "gpu_uncordoned" if event.reason is None else "gpu_cordoned"
        reason = event.lifted_because if event.reason is None else event.reason
        fields = {"node_id": record.node_id, "gpu_uuid": clip_sentence(event.uuid)}
        step.log(changed, fields | said_by_operator(reason, event.by))

    def _remove(self, record: NodeRecord, event: RemovalRequested, step: Step) -> None:
        """Remove a node's record; the session of a node that is alive is closed first."""
        reason = "an operator removed its record"
        if record.status is NodeStatus.OFFLINE:
            self._transitions.close(record, reason, step)
        else:
            self._transitions.change(record, NodeStatus.OFFLINE, ReasonCode.REMOVED, reason=reason, step=step)
        self._removal.remove(record, step)
        said = said_by_operator(event.reason, event.by)
        step.log("node_removed", name_of(record) | said, Level.WARNING)

    def _control(self, record: NodeRecord, event: ControlRequested, step: Step) -> None:
        """Send a node an operator's command, or say why it cannot receive it."""
        if record.connection is None:
            refused = f"node {event.node_id!r} has no open session, so it cannot receive this: "
            step.refuse(event.ref, NODE_NOT_CONNECTED, refused + self._way_back(record))
            return
        message = NodeControl(command=event.command.value, reason="an operator requested it")
        step.effects.append(Send(record.connection, message))
        fields = {"node_id": record.node_id, "command": event.command.value}
        step.log("node_control_sent", fields | said_by_operator(event.reason, event.by))
        step.answer(event.ref)

    def _way_back(self, record: NodeRecord) -> str:
        """Say how a node without a session gets one."""
        if record.tokens.all or self._auth_off:
            return "it registers by itself once its agent runs and reaches the registry"
        return (
            "its token was ended, and lets it in no more; run `gpu-agent registry node readmit "
            f"{record.node_id}` and give its agent the token that this prints"
        )


def _refusal(record: NodeRecord, event: NodeChangeRequest) -> tuple[str, str] | None:
    """Return code and sentence of what stands against a request; None where nothing does."""
    if not record.acknowledged and not isinstance(event, RemovalRequested):
        return ErrorCode.REGISTRY_BUSY, _not_acknowledged(record.node_id)
    drain = record.desired.drain
    if isinstance(event, ResumeRequested) and drain is not None and not drain.by_operator:
        return DRAINED_BY_NODE, (
            f"node {record.node_id!r} was drained on its own machine ({drain.reason}), and is resumed only "
            "there: run `gpu-agent resume` on that machine, or start its agent again"
        )
    if isinstance(event, GpuCordonRequested) and event.uuid not in record.desired.gpu_cordons:
        return _unknown_gpu(record, event.uuid)
    return None


def _unknown_gpu(record: NodeRecord, uuid: str) -> tuple[str, str] | None:
    if uuid.startswith("#"):
        fix = "a GPU without a UUID cannot be cordoned, cordon the node"
    elif uuid not in record.gpus:
        fix = f"`gpu-agent registry node show {record.node_id}` lists its GPUs"
    else:
        return None
    return UNKNOWN_GPU, f"node {record.node_id!r} declares no GPU {clip_quote(uuid)}: {fix}"


def _not_acknowledged(node_id: str) -> str:
    """The record goes with its connection unless the node is acknowledged, and a request would go with it."""
    return (
        f"node {node_id!r} has registered, and its registration is not acknowledged yet: send the same "
        "request again in a moment"
    )
