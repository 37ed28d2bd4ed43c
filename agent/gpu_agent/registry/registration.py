"""How a node registers, which node id it gets, and how its session ends (§2, §3.1, §3.6, §4 Connections).

The newest proven session wins, in order of arrival. Closing a connection changes no status. A use of a join
token is consumed at the node's first heartbeat; until then the registration reserves it, and a node that is
disconnected, perhaps without having stored its token, yields its reservation to the next node.
"""

from collections.abc import Iterator
from typing import assert_never

from gpu_agent.registry import declaration
from gpu_agent.registry.actions import CloseConnection, Level, Send, Step
from gpu_agent.registry.dispatch.dispatch import Dispatch
from gpu_agent.registry.events import ConnectionLost, RegistrationReceived, UnregistrationReceived
from gpu_agent.registry.heartbeat import unknown_node
from gpu_agent.registry.lifecycle import missed_at
from gpu_agent.registry.node import Declared, NodeRecord, NodeTable, ReportedJobs
from gpu_agent.registry.pacing import Pacer
from gpu_agent.registry.quoting import clip_quote
from gpu_agent.registry.removal import NodeRemoval
from gpu_agent.registry.settings import Policy, Thresholds
from gpu_agent.registry.status import StatusTransitions
from gpu_agent.registry.timers import extend_timeout
from gpu_agent.registry.token_issuing import issue_node_token
from gpu_agent.registry.tokens import Credential, CredentialKind, Token, TokenState, TokenTable
from gpu_agent.wire.codes import CloseCode, ErrorCode, NodeStatus, ReasonCode
from gpu_agent.wire.messages import NodeError, NodeRegisterAck

_MINUTE = 60
_HOUR = 3600


class Registrations:
    """Handles registrations."""

    def __init__(
        self,
        thresholds: Thresholds,
        nodes: NodeTable,
        tokens: TokenTable,
        *,
        admission: "Admission",
        pacer: Pacer,
        transitions: StatusTransitions,
    ) -> None:
        self._thresholds = thresholds
        self._nodes = nodes
        self._tokens = tokens
        self._admission = admission
        self._pacer = pacer
        self._transitions = transitions

    def register(self, event: RegistrationReceived, step: Step) -> None:
        """Admit a node, or refuse it with the reason.

        The connection stays open after a refusal, so that the node can register again. It is closed where
        its credential is the cause, or where a newer connection holds the node.
        """
        _log_received(event, step)
        granted = self._admission.decide(event, step.now)
        if isinstance(granted, NodeError):
            self._refuse(event, granted, step)
            return
        record = self._nodes.records.get(granted)
        if record is not None and event.connection < _newest_connection(record, event):
            self._refuse_older(event, record, step)
            return
        self._admission.take_reservation(event, granted, step)
        if record is None:
            record = NodeRecord(
                node_id=granted,
                registered_at=step.now,
                declared=Declared(registration=event.message),
                acknowledged=False,
            )
            self._nodes.add(record)
        token = issue_node_token(record, event, tokens=self._tokens, step=step)
        self._supersede(record, event, step)
        self._begin_session(record, event, token=token, step=step)

    def _refuse(self, event: RegistrationReceived, refusal: NodeError, step: Step) -> None:
        step.log("node_register_refused", _refused(event, refusal.code), Level.WARNING)
        step.effects.append(Send(event.connection, refusal))
        if refusal.code in (ErrorCode.UNAUTHORIZED, ErrorCode.FORBIDDEN):
            self._close(event.connection, refusal.code, step)

    def _refuse_older(self, event: RegistrationReceived, record: NodeRecord, step: Step) -> None:
        """Refuse a connection that is older than the node's current one: a slow line, or an earlier process.

        The newest session wins (§4). It is the session on the newest connection, even where the registration
        on an older connection arrives later.
        """
        step.log("node_register_refused", _refused(event, ErrorCode.SESSION_SUPERSEDED), Level.WARNING)
        step.effects.append(Send(event.connection, superseded(record.node_id, record.address)))
        self._close(event.connection, ErrorCode.SESSION_SUPERSEDED, step)

    def _supersede(self, record: NodeRecord, event: RegistrationReceived, step: Step) -> None:
        """Bind the node to this connection, and close the connection that it had before."""
        before = record.connection
        if before == event.connection:
            return
        if before is not None:
            fields = {
                "node_id": record.node_id,
                "session_epoch": record.epoch,
                "address": record.address,
                "newer_address": event.address,
            }
            step.log("session_superseded", fields, Level.WARNING)
            step.effects.append(Send(before, superseded(record.node_id, event.address)))
            self._close(before, ErrorCode.SESSION_SUPERSEDED, step)
        self._nodes.bind(record, event.connection)

    def _close(self, connection: int, code: str, step: Step) -> None:
        self._nodes.dismiss(connection)
        step.effects.append(CloseConnection(connection, CloseCode.POLICY_VIOLATION, str(code)))

    def _begin_session(
        self, record: NodeRecord, event: RegistrationReceived, *, token: str | None, step: Step
    ) -> None:
        """Begin a session of the node from what it declares: nothing of it is proven yet (A-2)."""
        message, thresholds = event.message, self._thresholds
        declaration.write_declaration(record, message, thresholds)
        record.registered_at, record.address = step.now, event.address
        record.epoch += 1
        record.registered_on = event.connection
        record.jobs = ReportedJobs.of(message.running_jobs, None)
        record.liveness.begin_session(step.now, event.round_trip_seconds)
        record.checks = None
        record.liveness.restart_warmup(step.now + thresholds.warmup_timeout_seconds)
        self._pacer.begin(record, step.now)
        step.change_node(record)
        step.registered.append(record)
        step.effects.append(Send(event.connection, _ack(record, event, token)))
        self._transitions.begin_session(record, step)
        step.log(
            "node_registered",
            {
                "node_id": record.node_id,
                "session_epoch": record.epoch,
                "address": event.address,
                "gpu_count": len(record.gpus),
                "models": len(message.installed_models),
                "simulated": message.simulated,
            },
        )


class Sessions:
    """Handles what ends a session."""

    def __init__(
        self, nodes: NodeTable, transitions: StatusTransitions, *, dispatch: Dispatch, removal: NodeRemoval
    ) -> None:
        self._nodes = nodes
        self._transitions = transitions
        self._dispatch = dispatch
        self._removal = removal

    def unregister(self, event: UnregistrationReceived, step: Step) -> None:
        """End a session as planned: offline at once, or after the node's jobs (§3.6).

        A drain requested while the node registers is remembered (§4): it starts once the node is ready or
        degraded.
        """
        message = event.message
        record = self._nodes.by_connection.get(event.connection)
        if record is None or record.node_id != message.node_id:
            step.effects.append(Send(event.connection, unknown_node(message.node_id)))
            return
        step.touched[record.node_id] = None
        if record.status is NodeStatus.OFFLINE:
            self._transitions.send(record, step)
            self._transitions.close(record, "the node unregistered", step)
        elif not message.drain:
            reason = "the node unregistered" + (f": {clip_quote(message.reason)}" if message.reason else "")
            self._transitions.change(
                record, NodeStatus.OFFLINE, ReasonCode.UNREGISTERED, reason=reason, step=step
            )
        else:
            self._drain(record, event, step)

    def connection_lost(self, event: ConnectionLost, step: Step) -> None:
        """Exclude a node whose connection is gone from dispatch; its status stays."""
        record = self._nodes.connection_ended(event.connection)
        if record is None:
            return
        if event.link_ended:
            extend_timeout(record)
            self._nodes.await_report(record)
        self._dispatch.update(record)
        step.log("node_disconnected", {"node_id": record.node_id, "status": record.status.value})
        step.touched[record.node_id] = None
        if not record.acknowledged:
            if record.claims:  # it sent heartbeats without waiting for its acknowledgement
                reason = "its connection ended before its registration was acknowledged"
                self._transitions.change(
                    record, NodeStatus.OFFLINE, ReasonCode.REMOVED, reason=reason, step=step
                )
            self._removal.purge(record, reason="its registration was not acknowledged", step=step)

    def _drain(self, record: NodeRecord, event: UnregistrationReceived, step: Step) -> None:
        """Start the drain that the node requests; an operator's, which a node never lifts, goes before."""
        drain = record.desired.drain
        if drain is None or not drain.by_operator:
            seconds, reason = event.message.deadline_seconds, clip_quote(event.message.reason)
            self._transitions.set_drain(
                record, by_operator=False, seconds=seconds, reason=reason, now=step.now
            )
            step.change_node(record)
        if not self._transitions.apply_drain(record, step):
            self._transitions.send(record, step)


class Admission:
    """Whether a registration is accepted, and which node id it gets (R-06).

    What the connection presented is checked again: since the handshake it may have been revoked, used up or
    replaced.
    """

    def __init__(self, policy: Policy, nodes: NodeTable, tokens: TokenTable, *, removal: NodeRemoval) -> None:
        self._policy = policy
        self._nodes = nodes
        self._tokens = tokens
        self._removal = removal

    def decide(self, event: RegistrationReceived, now: float) -> str | NodeError:
        """Return the id that the registration gets, or the refusal."""
        refusal = declaration.refusal_of(
            event.message, allow_simulated=self._policy.allow_simulated, frame_bytes=event.frame_bytes
        )
        return refusal or self._identity(event, now)

    def take_reservation(self, event: RegistrationReceived, node_id: str, step: Step) -> None:
        """Remove the disconnected node whose reservation at the join token this one needs, if any."""
        credential = event.credential
        if credential is None or credential.kind is not CredentialKind.JOIN:
            return
        token = self._tokens.by_id.get(credential.token_id)
        if token is None or event.connection in self._nodes.by_connection:
            return
        if _holds_reservation(self._nodes.records.get(node_id), token) or self._has_free_use(token):
            return
        reason = "its reservation at its join token went to another node"
        self._removal.purge(next(self._yielding(token)), reason=reason, step=step)

    def _identity(self, event: RegistrationReceived, now: float) -> str | NodeError:
        current = self._nodes.by_connection.get(event.connection)
        if current is not None:
            return _only(current.node_id, event, because="this connection registered")
        if self._policy.auth_off:
            return self._free_or_fresh(event, now)
        credential = event.credential
        if credential is None:
            return _unauthorized(event, "this registry requires a token: connect with a join token")
        match credential.kind:
            case CredentialKind.NODE:
                return self._by_node_token(event, credential)
            case CredentialKind.JOIN:
                return self._by_join_token(event, credential, now)
            case CredentialKind.OPERATOR | CredentialKind.SESSION:
                return _forbidden(event, "an operator's token registers no node: connect with a join token")
            case _ as unreachable:
                assert_never(unreachable)

    def _by_node_token(self, event: RegistrationReceived, credential: Credential) -> str | NodeError:
        record = self._nodes.records.get(credential.node_id or "")
        if record is None or not record.tokens.has(credential.token_id):
            return _unauthorized(
                event, "this node token proves nothing any more: connect again with a join token"
            )
        return _only(record.node_id, event, because="this node token is that of")

    def _by_join_token(
        self, event: RegistrationReceived, credential: Credential, now: float
    ) -> str | NodeError:
        token = self._tokens.by_id.get(credential.token_id)
        if token is None or token.state(now) in (TokenState.EXPIRED, TokenState.REVOKED):
            state = "is no longer known" if token is None else f"is {token.state(now)}"
            return _unauthorized(event, f"join token {credential.token_id} {state}: request a new one")
        holder = self._nodes.records.get(token.node_id or event.message.node_id or "")
        if not _holds_reservation(holder, token) and not self._has_use_left(token):
            return _forbidden(event, _used_up(token, holder))  # first: the node need not give up its id
        if token.node_id is not None:
            return _only(token.node_id, event, because="this join token is for")
        return self._free_or_fresh(event, now, token)

    def _free_or_fresh(
        self, event: RegistrationReceived, now: float, token: Token | None = None
    ) -> str | NodeError:
        suggested = event.message.node_id
        if suggested is None:
            return event.fresh_id if event.fresh_id not in self._nodes.records else _drawn_twice(event)
        holder = self._nodes.records.get(suggested)
        if holder is None:
            return suggested
        if token is not None and not holder.tokens.all:
            return _token_ended(holder)
        may = _is_free(holder, now) if token is None else _holds_reservation(holder, token)
        return (
            suggested if may else _conflict(suggested, _held(holder, auth_off=self._policy.auth_off, now=now))
        )

    def _has_use_left(self, token: Token) -> bool:
        """Say whether one more node may join by a token, if need be in place of one that is disconnected."""
        return self._has_free_use(token) or next(self._yielding(token), None) is not None

    def _has_free_use(self, token: Token) -> bool:
        return token.uses is None or token.spent + len(self._tokens.reserved(token.token_id)) < token.uses

    def _yielding(self, token: Token) -> Iterator[NodeRecord]:
        """Find the disconnected nodes with a reservation, but none that an operator drains or cordons.

        The earliest reservation comes first. No more of them are looked at than the caller takes: where a
        large fleet joins by one token, each registration would look at every node.
        """
        records = self._nodes.records
        reserved = (records[node_id] for node_id in self._tokens.reserved(token.token_id))
        return (one for one in reserved if one.connection is None and not one.desired.by_operator)


def _log_received(event: RegistrationReceived, step: Step) -> None:
    fields: dict[str, object] = {
        "schema_version": clip_quote(event.message.schema_version),
        "gpu_count": len(event.message.hardware.gpus),
        "address": event.address,
    }
    if event.message.node_id is not None:
        fields["node_id"] = event.message.node_id
    step.log("node_register_received", fields)


def _ack(record: NodeRecord, event: RegistrationReceived, token: str | None) -> NodeRegisterAck:
    return NodeRegisterAck(
        node_id=record.node_id,
        node_token=token,
        capability_schema_version=event.message.schema_version,
        heartbeat_interval_seconds=record.schedule.interval_seconds,
        warmup_heartbeat_interval_seconds=record.schedule.warmup_interval_seconds,
        heartbeat_timeout_seconds=record.schedule.timeout_seconds,
        session_epoch=record.epoch,
    )


def _refused(event: RegistrationReceived, code: str) -> dict[str, object]:
    return {"node_id": event.message.node_id, "code": code, "address": event.address}


def _newest_connection(record: NodeRecord, event: RegistrationReceived) -> int:
    """Return the connection that a registration must not be older than.

    A registration that an earlier leader did not answer may be older than the one that it stored last.
    """
    stored = record.registered_on if event.is_inherited else None
    return max(record.connection or 0, stored or 0)


def superseded(node_id: str, address: str | None) -> NodeError:
    """Say that a session is over, and where the newer one is: that may be a copy of this machine."""
    return NodeError(
        node_id=node_id,
        code=ErrorCode.SESSION_SUPERSEDED,
        message=f"a newer session, from {address or 'an unknown address'}, proved the same identity: "
        "if this machine should hold it, stop the other agent and restart this one",
    )


def _holds_reservation(record: NodeRecord | None, token: Token) -> bool:
    """Say whether a node joined by this token and has sent no heartbeat yet: it may join by it again."""
    return record is not None and record.tokens.joined_by == token.token_id and not record.tokens.spent


def _only(node_id: str, event: RegistrationReceived, *, because: str) -> str | NodeError:
    """Return the one id that a connection can carry."""
    suggested = event.message.node_id
    if suggested in (None, node_id):
        return node_id
    return _conflict(
        suggested,
        f"{because} {node_id!r} and cannot carry {suggested!r} besides: "
        f"register with node_id null or {node_id!r}, or on another connection without that credential",
    )


def _is_free(holder: NodeRecord, now: float) -> bool:
    """With auth off an id that is offline, disconnected or silent may be taken over (§4, Connections)."""
    offline = holder.status is NodeStatus.OFFLINE or holder.connection is None
    return offline or now > missed_at(holder)


def _held(holder: NodeRecord, *, auth_off: bool, now: float) -> str:
    node_id = holder.node_id
    state = "not connected" if holder.connection is None else "connected"
    ways = (
        "wait until it is disconnected or offline, have an operator run "
        f"gpu-agent registry node remove {node_id}"
        if auth_off
        else "present its node token; if this machine is that node and lost its token, have an operator run "
        f"gpu-agent registry node readmit {node_id}; if that node is gone for good, "
        f"gpu-agent registry node remove {node_id}"
    )
    return (
        f"node id {node_id!r} is held by a node at {holder.address or 'an unknown address'} "
        f"that registered {_ago(now - holder.registered_at)} ago ({holder.status}, {state}): "
        f"{ways}; or register with node_id null to be given a fresh id"
    )


def _used_up(token: Token, holder: NodeRecord | None) -> str:
    if token.node_id is not None:
        return (
            f"join token {token.token_id} was used: have an operator run "
            f"gpu-agent registry node readmit {token.node_id} for another"
        )
    times = "its one use is" if token.uses == 1 else f"its {token.uses} uses are"
    way = "gpu-agent registry token create for another"
    if holder is not None:
        readmit = f"gpu-agent registry node readmit {holder.node_id}"
        way += f"; if this machine is {holder.node_id!r}, {readmit} instead"
    return f"join token {token.token_id} lets no more nodes in, {times} taken: have an operator run {way}"


def _conflict(suggested: str | None, message: str) -> NodeError:
    return NodeError(node_id=suggested, code=ErrorCode.NODE_ID_CONFLICT, message=message)


def _token_ended(holder: NodeRecord) -> NodeError:
    """Refuse an id that nothing proves any more; `token_ended` tells its agent to wait under that id."""
    node_id = holder.node_id
    return NodeError(
        node_id=node_id,
        code=ErrorCode.NODE_ID_CONFLICT,
        message=f"an operator ended the token of node {node_id!r}: have one run gpu-agent registry node "
        f"readmit {node_id} and give its agent the token that this prints",
        details={"token_ended": True},
    )


def _unauthorized(event: RegistrationReceived, message: str) -> NodeError:
    return NodeError(node_id=event.message.node_id, code=ErrorCode.UNAUTHORIZED, message=message)


def _forbidden(event: RegistrationReceived, message: str) -> NodeError:
    return NodeError(node_id=event.message.node_id, code=ErrorCode.FORBIDDEN, message=message)


def _drawn_twice(event: RegistrationReceived) -> NodeError:
    return NodeError(
        code=ErrorCode.REGISTRY_BUSY,
        message=f"the id {event.fresh_id!r} drawn for this node is taken: register again for another",
        retry_after_seconds=0,
    )


def _ago(seconds: float) -> str:
    if seconds < _MINUTE:
        return f"{seconds:.0f} s"
    if seconds < _HOUR:
        return f"{seconds / _MINUTE:.0f} min"
    return f"{seconds / _HOUR:.1f} h"
