"""A session goes on under another leader: its gateway reports it, and its node notices nothing (§4).

The fleet was loaded from the store, or the link to the gateway ended for a while: the node is known, and no
connection stands for it. Over all leaders a newer connection has a higher number, and a node's document holds
the one on which it registered last. So a report proves that its session is the node's newest, and a
registration that a gateway repeats is recognised where it was stored, and its answer got lost.

What heartbeats alone show is not stored. Until its first heartbeat behind the report the node keeps the
status that was stored, and is excluded from dispatch as disconnected.
"""

from gpu_agent.registry.actions import CloseConnection, Level, Send, Step
from gpu_agent.registry.events import Command, RegistrationReceived, SessionReported
from gpu_agent.registry.lifecycle import silent_until
from gpu_agent.registry.node import NodeRecord, NodeTable
from gpu_agent.registry.pacing import Pacer
from gpu_agent.registry.registration import superseded
from gpu_agent.registry.settings import Policy
from gpu_agent.registry.status import may_stay
from gpu_agent.registry.token_issuing import REGISTER_FOR_TOKEN
from gpu_agent.registry.tokens import Credential, CredentialKind
from gpu_agent.wire.codes import CloseCode, ErrorCode, NodeStatus
from gpu_agent.wire.messages import NodeControl, NodeError

_DECLARE_AGAIN = NodeControl(
    command=Command.REREGISTER,
    reason="the registry's leader has changed, and does not know all that this node declared",
)


class ReportedSessions:
    """Handles what gateways report of the connections that they hold."""

    def __init__(self, policy: Policy, nodes: NodeTable, pacer: Pacer) -> None:
        self._policy = policy
        self._nodes = nodes
        self._pacer = pacer

    def report(self, event: SessionReported, step: Step) -> None:
        """Go on with a session, or close its connection so that the node registers again."""
        record = self._nodes.records.get(event.node_id)
        if event.connection in self._nodes.by_connection:
            return  # it goes on
        if record is None:
            self._close(event, CloseCode.SERVICE_RESTART, "this node is not known", step=step)
        elif not self._is_proven(record, event.credential):
            self._refuse(event, _unauthorized(event), step)
        elif event.connection < max(record.connection or 0, record.registered_on or 0):
            self._refuse(event, superseded(record.node_id, record.address), step)
        elif not _is_last(record, event):
            self._close(event, CloseCode.SERVICE_RESTART, "this session is not known", step=step)
        elif record.status is NodeStatus.OFFLINE and not may_stay(record):
            self._close(event, CloseCode.GOING_AWAY, record.reason, step=step)
        else:
            self._resume(record, event, step)

    def bind_repeated(self, event: RegistrationReceived, step: Step) -> None:
        """Bind the node that this registration made or renewed before a takeover, or before its link ended.

        It then registers again on its own connection: it gets its id, and uses no join token once more.
        """
        if not event.is_inherited or event.connection in self._nodes.by_connection:
            return
        record = self._nodes.registered_on(event.connection)
        if record is None or record.connection is not None or record.status is NodeStatus.OFFLINE:
            return
        if self._is_proven(record, event.credential):
            self._bind(record, event.connection, step)

    def _resume(self, record: NodeRecord, event: SessionReported, step: Step) -> None:
        before, liveness = record.connection, record.liveness
        if before is not None:
            step.effects.append(Send(before, superseded(record.node_id, event.address)))
            self._dismiss(before, CloseCode.POLICY_VIOLATION, ErrorCode.SESSION_SUPERSEDED, step=step)
        record.address = event.address
        if liveness.last_heartbeat_at is None:
            self._pacer.resume(record, step.now)
            liveness.resume_session(
                step.now, event.heartbeat_age_seconds, timeout_seconds=record.schedule.timeout_seconds
            )
        self._bind(record, event.connection, step)
        if not event.is_complete:
            self._ask(record, event.connection, _DECLARE_AGAIN, step=step)
        elif record.tokens.rotating:
            self._go_on_rotating(record, event, step)

    def _bind(self, record: NodeRecord, connection: int, step: Step) -> None:
        """Let the connection stand for the node, which is suspected until it says something."""
        self._nodes.bind(record, connection)
        record.liveness.suspected_until = silent_until(record)
        step.touched[record.node_id] = None

    def _go_on_rotating(self, record: NodeRecord, event: SessionReported, step: Step) -> None:
        """Have a node register for the token that a rotation gives it, unless it has received one here."""
        if record.issued_in is not None and record.issued_in <= event.session_epoch:
            record.issued_on = event.connection
        else:
            record.issued_on = None
            self._ask(record, event.connection, REGISTER_FOR_TOKEN, step=step)

    def _ask(self, record: NodeRecord, connection: int, command: NodeControl, *, step: Step) -> None:
        step.effects.append(Send(connection, command))
        step.log("node_control_sent", {"node_id": record.node_id, "command": command.command})

    def _is_proven(self, record: NodeRecord, credential: Credential | None) -> bool:
        """Say whether a credential has let this node in, and still proves it."""
        if self._policy.auth_off:
            return True
        if credential is None:
            return False
        if credential.kind is CredentialKind.JOIN:  # a revoked one lets nobody else in, and this node stays
            return record.tokens.joined_by == credential.token_id
        return credential.kind is CredentialKind.NODE and record.tokens.has(credential.token_id)

    def _refuse(self, event: SessionReported, refusal: NodeError, step: Step) -> None:
        step.effects.append(Send(event.connection, refusal))
        self._close(event, CloseCode.POLICY_VIOLATION, str(refusal.code), step=step)

    def _close(self, event: SessionReported, code: CloseCode, reason: str, *, step: Step) -> None:
        step.log(
            "session_not_resumed",
            {
                "node_id": event.node_id,
                "session_epoch": event.session_epoch,
                "address": event.address,
                "reason": reason,
            },
            Level.WARNING,
        )
        self._dismiss(event.connection, code, reason, step=step)

    def _dismiss(self, connection: int, code: CloseCode, reason: str, *, step: Step) -> None:
        self._nodes.dismiss(connection)
        step.effects.append(CloseConnection(connection, code, reason))


def _is_last(record: NodeRecord, event: SessionReported) -> bool:
    """Say whether a reported session is the last one that was stored of its node.

    The epoch that was stored is higher where the node registered again on the same connection, and received
    no acknowledgement: its gateway repeats the registration.
    """
    if record.registered_on == event.connection:
        return record.epoch >= event.session_epoch
    return record.registered_on is None and record.epoch == event.session_epoch


def _unauthorized(event: SessionReported) -> NodeError:
    return NodeError(
        node_id=event.node_id,
        code=ErrorCode.UNAUTHORIZED,
        message="what this connection presented proves nothing any more: connect again with a join token",
    )
