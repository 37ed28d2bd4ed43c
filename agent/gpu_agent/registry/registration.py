"""How a node registers, which node id it gets, and how its session and its record end (§2, §3.1, §3.3, §4 Connections).

The newest proven session wins, in order of arrival. Closing a connection changes no status. A use of a join token is
consumed at the node's first heartbeat; until then the registration reserves it, and a node that is disconnected yields
its reservation to the next node.
"""

from math import inf
from typing import assert_never

from gpu_agent.registry import declaration as admission
from gpu_agent.registry import declaration as declared
from gpu_agent.registry import status as telling
from gpu_agent.registry.actions import CloseConnection, Level, Send
from gpu_agent.registry.credentials import Credential, CredentialKind
from gpu_agent.registry.deadlines import Deadlines, purge_at
from gpu_agent.registry.events import FaultReported, RegistrationReceived, UnregistrationReceived
from gpu_agent.registry.node import LONGEST_DRAIN_SECONDS, Drain, NodeRecord, NodeTable
from gpu_agent.registry.quoting import quoted
from gpu_agent.registry.settings import Thresholds
from gpu_agent.registry.status import House
from gpu_agent.registry.step import Step
from gpu_agent.registry.token_issuing import issue_node_token
from gpu_agent.registry.tokens import Token, TokenState, TokenTable
from gpu_agent.wire.codes import CloseCode, ErrorCode, NodeStatus, ReasonCode
from gpu_agent.wire.messages import NodeError, NodeRegister, NodeRegisterAck

# How a node comes and goes: registration, supersession, goodbye, a lost connection (§3.1, §4 Connections).
#
# The newest proven session wins, by the order of arrival. Closing a socket changes no status.


class Registrations:
    """The sessions of all nodes."""

    def __init__(self, house: House) -> None:
        self._house = house
        self._policy = house.policy
        self._identities = Identities(house.roster, house.tokens, auth_off=house.policy.auth_off)

    def register(self, event: RegistrationReceived, step: Step) -> None:
        """Admit a node, or say why not; that closes a connection only if its credential is to blame."""
        message = event.message
        _note_arrival(event, step)
        roster = self._house.roster
        granted = admission.refusal_of(
            message, allow_simulated=self._policy.allow_simulated
        ) or self._identities.decide(event, step.now)
        if isinstance(granted, NodeError):
            self._refuse(event, granted, step)
            return
        record = roster.records.get(granted)
        if record is not None and event.connection < (record.connection or 0):
            self._came_late(event, record, step)
            return
        free_reservation(event, granted, house=self._house, step=step)
        record = roster.records.get(granted)
        if record is None:
            record = _new_record(granted, event, step.now)
            roster.add(record)
        token = issue_node_token(record, event, tokens=self._house.tokens, step=step)
        self._attach(record, event, step)
        self._begin(record, event, token=token, step=step)

    def goodbye(self, event: UnregistrationReceived, step: Step) -> None:
        """A node plans its shutdown: offline at once, or after its jobs (§3.6).

        A drain asked while registering is remembered (§4): it begins, and ends, once the node may work.
        """
        message = event.message
        record = self._house.roster.bound.get(event.connection)
        if record is None or record.node_id != message.node_id:
            step.add(Send(event.connection, unknown_node(message.node_id)))
            return
        verdicts = self._house.verdicts
        step.touched[record.node_id] = None
        if record.status is NodeStatus.OFFLINE:
            step.add(
                telling.current_status(
                    record, self._house.thresholds, connection=event.connection, now=step.now
                )
            )
            verdicts.close(record, "the node said goodbye", step)
        elif not message.drain:
            reason = "the node said goodbye" + (f": {quoted(message.reason)}" if message.reason else "")
            verdicts.give(record, NodeStatus.OFFLINE, ReasonCode.UNREGISTERED, reason=reason, step=step)
        else:
            self._drain_by_itself(record, event, step)

    def fault(self, event: FaultReported, step: Step) -> None:
        """Record an internal fault in the node's history; a stranger's is ignored."""
        record = self._house.roster.bound.get(event.connection)
        if record is not None:
            report_fault(record, event.message, step)

    def lost(self, connection: int, step: Step) -> None:
        """Exclude a node whose connection is gone from dispatch; its status stays."""
        record = self._house.roster.ended(connection)
        if record is None:
            return
        self._house.dispatch.refresh(record)
        step.log("node_disconnected", {"node_id": record.node_id, "status": record.status.value})
        step.touched[record.node_id] = None
        if not record.acknowledged:
            purge_node(record, self._house, why="its registration was not acknowledged", step=step)

    def _refuse(self, event: RegistrationReceived, refusal: NodeError, step: Step) -> None:
        step.log("node_register_refused", _refused(event, refusal.code), Level.WARNING)
        step.add(Send(event.connection, refusal))
        if refusal.code in (ErrorCode.UNAUTHORIZED, ErrorCode.FORBIDDEN):
            self._house.roster.dismiss(event.connection)
            step.add(CloseConnection(event.connection, CloseCode.POLICY_VIOLATION, refusal.code))

    def _came_late(self, event: RegistrationReceived, record: NodeRecord, step: Step) -> None:
        """Send a session away that was opened before the one that stands: slow lines, or a process of before.

        The newest wins (§4), and that is the one that called last, not the one whose words took longest.
        """
        step.log("node_register_refused", _refused(event, ErrorCode.SESSION_SUPERSEDED), Level.WARNING)
        self._house.roster.dismiss(event.connection)
        step.add(Send(event.connection, _superseded(record.node_id, record.address)))
        code = ErrorCode.SESSION_SUPERSEDED.value
        step.add(CloseConnection(event.connection, CloseCode.POLICY_VIOLATION, code))

    def _attach(self, record: NodeRecord, event: RegistrationReceived, step: Step) -> None:
        """Let this connection stand for the node, and the one before it no longer."""
        roster, before = self._house.roster, record.connection
        if before == event.connection:
            return
        if before is not None:
            _note_supersession(record, event, step)
            roster.dismiss(before)
            step.add(Send(before, _superseded(record.node_id, event.address)))
            step.add(CloseConnection(before, CloseCode.POLICY_VIOLATION, ErrorCode.SESSION_SUPERSEDED.value))
        roster.bind(record, event.connection)

    def _begin(
        self, record: NodeRecord, event: RegistrationReceived, *, token: str | None, step: Step
    ) -> None:
        """Begin a session of the node from what it declares: nothing of it is proven yet (A-2)."""
        house, message = self._house, event.message
        declared.write_declaration(record, message, house.thresholds)
        record.registered_at = step.now
        record.address, record.round_trip_seconds = event.address, event.round_trip_seconds
        record.epoch += 1
        house.pacer.begin(record, step.now)
        _set_jobs(record, message)
        step.change_node(record)
        step.registered.append(record)
        step.add(Send(event.connection, self._ack(record, event, token)))
        record.heard_at = step.now
        record.last_heartbeat_at = record.usage = record.probe_age_seconds = None
        record.suspected_until = None
        restart_warmup(record, house.thresholds, step.now)
        self._give_first_status(record, event.connection, step)
        house.claiming.attach_lost(record, step)
        house.dispatch.refresh(record)
        step.log(
            "node_registered",
            {
                "node_id": record.node_id,
                "session_epoch": record.epoch,
                "address": event.address,
                "gpu_count": len(record.gpus),
                "models": len(record.models),
                "simulated": record.simulated,
            },
        )

    def _give_first_status(self, record: NodeRecord, connection: int, step: Step) -> None:
        verdicts, reason = self._house.verdicts, "registered; its health is not proven yet"
        if record.drain is not None and not record.drain.by_operator:
            record.drain = None
        if record.status is not NodeStatus.DRAINING:
            verdicts.give(record, NodeStatus.REGISTERING, ReasonCode.REGISTERED, reason=reason, step=step)
        elif record.drain is None:
            reason = "registered again, which ends the drain it asked for"
            verdicts.give(record, NodeStatus.REGISTERING, ReasonCode.RESUMED, reason=reason, step=step)
        else:
            step.add(
                telling.current_status(record, self._house.thresholds, connection=connection, now=step.now)
            )

    def _ack(self, record: NodeRecord, event: RegistrationReceived, token: str | None) -> NodeRegisterAck:
        return NodeRegisterAck(
            node_id=record.node_id,
            node_token=token,
            capability_schema_version=admission.schema_of(event.message),
            heartbeat_interval_seconds=record.interval_seconds,
            warmup_heartbeat_interval_seconds=record.warmup_interval_seconds,
            heartbeat_timeout_seconds=record.timeout_seconds,
            session_epoch=record.epoch,
        )

    def _drain_by_itself(self, record: NodeRecord, event: UnregistrationReceived, step: Step) -> None:
        """Begin the drain that the node asks for; an operator's, which a node never lifts, goes before."""
        if record.drain is None or not record.drain.by_operator:
            seconds = event.message.deadline_seconds
            if seconds is None:
                seconds = self._house.thresholds.drain_deadline_seconds
            reason = quoted(event.message.reason)
            deadline = step.now + min(seconds, LONGEST_DRAIN_SECONDS)
            record.drain = Drain(by_operator=False, deadline=deadline, reason=reason)
            step.change_node(record)
        if record.status in (NodeStatus.READY, NodeStatus.DEGRADED):
            self._house.verdicts.drain(record, step)
        elif record.status is NodeStatus.DRAINING:
            self._house.verdicts.update_drain(record, step)
        else:
            step.add(
                telling.current_status(
                    record, self._house.thresholds, connection=event.connection, now=step.now
                )
            )


def restart_warmup(record: NodeRecord, thresholds: Thresholds, now: float) -> None:
    """Reset the counts of beats and the warm-up clock (§4)."""
    record.healthy_beats = record.unhealthy_heartbeats = 0
    record.recent = ()
    record.warmup_until = now + thresholds.warmup_timeout_seconds


def unknown_node(node_id: str | None) -> NodeError:
    """Refuse what comes for a node that its connection did not register."""
    return NodeError(
        node_id=node_id,
        code=ErrorCode.UNKNOWN_NODE,
        message="this connection has not registered that node id: send node_register first",
    )


def _set_jobs(record: NodeRecord, message: NodeRegister) -> None:
    """Take the jobs that a registration names; what an earlier session told runs no more for all we know."""
    told = message.running_jobs
    record.running_jobs, record.reported_jobs = told, None
    record.reported_job_ids = None if told is None else frozenset(told)


def _new_record(node_id: str, event: RegistrationReceived, now: float) -> NodeRecord:
    message = event.message
    return NodeRecord(
        node_id=node_id,
        registration=message,
        hardware=message.hardware,
        registered_at=now,
        acknowledged=False,
    )


def _refused(event: RegistrationReceived, code: str) -> dict[str, object]:
    return {"node_id": event.message.node_id, "code": code, "address": event.address}


def _superseded(node_id: str, address: str | None) -> NodeError:
    """Tell a session that it is over, and where the newer one is: that may be a copy of this machine."""
    return NodeError(
        node_id=node_id,
        code=ErrorCode.SESSION_SUPERSEDED,
        message=f"a newer session, from {address or 'an unknown address'}, proved the same identity: "
        "if this machine should hold it, stop the other agent and restart this one",
    )


def _note_supersession(record: NodeRecord, event: RegistrationReceived, step: Step) -> None:
    fields = {"session_epoch": record.epoch, "address": record.address, "newer_address": event.address}
    step.log("session_superseded", {"node_id": record.node_id, **fields}, Level.WARNING)


def _note_arrival(event: RegistrationReceived, step: Step) -> None:
    fields: dict[str, object] = {
        "schema_version": quoted(admission.schema_of(event.message)),
        "gpu_count": len(event.message.hardware.gpus),
        "address": event.address,
    }
    if event.message.node_id is not None:
        fields["node_id"] = event.message.node_id
    step.log("node_register_received", fields)


# Which id a registration gets, and why it may not have the one it suggests (R-06, §2, §4 Connections).
#
# Decides from what its connection presented and what is known of the id; binds nothing. What was
# presented is looked at again: since the handshake it may have been revoked, used up or replaced.


_MINUTE = 60
_HOUR = 3600


class Identities:
    """Who may be which node."""

    def __init__(self, roster: NodeTable, tokens: TokenTable, *, auth_off: bool) -> None:
        self._roster = roster
        self._tokens = tokens
        self._auth_off = auth_off

    def decide(self, event: RegistrationReceived, now: float) -> str | NodeError:
        """Return the id that the registration gets, or the refusal."""
        current = self._roster.bound.get(event.connection)
        if current is not None:
            return _only(current.node_id, event, because="this connection registered")
        if self._auth_off:
            return self._free_or_fresh(event, now)
        credential = event.credential
        if credential is None:
            return _unauthorized(event, "this registry asks for a token: connect with a join token")
        match credential.kind:
            case CredentialKind.NODE:
                return self._proven(event, credential)
            case CredentialKind.JOIN:
                return self._joining(event, credential, now)
            case CredentialKind.OPERATOR:
                return _forbidden(event, "an operator's token registers no node: connect with a join token")
            case _ as unreachable:
                assert_never(unreachable)

    def _proven(self, event: RegistrationReceived, credential: Credential) -> str | NodeError:
        record = self._roster.records.get(credential.node_id or "")
        if record is None or not record.keys.has(credential.token_id):
            return _unauthorized(
                event, "this node token proves nothing any more: connect again with a join token"
            )
        return _only(record.node_id, event, because="this node token is that of")

    def _joining(self, event: RegistrationReceived, credential: Credential, now: float) -> str | NodeError:
        token = self._tokens.by_id.get(credential.token_id)
        if token is None or token.state(now) in (TokenState.EXPIRED, TokenState.REVOKED):
            state = "is no longer known" if token is None else f"is {token.state(now)}"
            return _unauthorized(event, f"join token {credential.token_id} {state}: ask for a new one")
        holder = self._roster.records.get(token.node_id or event.message.node_id or "")
        if not holds_reservation(holder, token) and not has_use_left(token, self._tokens, self._roster):
            return _forbidden(event, _used_up(token, holder))  # first of all: it need not forget its id
        if token.node_id is not None:
            return _only(token.node_id, event, because="this join token is for")
        return self._free_or_fresh(event, now, token)

    def _free_or_fresh(
        self, event: RegistrationReceived, now: float, token: Token | None = None
    ) -> str | NodeError:
        wanted = event.message.node_id
        if wanted is None:
            return event.fresh_id if event.fresh_id not in self._roster.records else _drawn_twice(event)
        holder = self._roster.records.get(wanted)
        if holder is None:
            return wanted
        may = _is_free(holder) if token is None else holds_reservation(holder, token)
        return wanted if may else _conflict(wanted, _held(holder, auth_off=self._auth_off, now=now))


def _only(node_id: str, event: RegistrationReceived, *, because: str) -> str | NodeError:
    """Return the one id that a connection can carry."""
    wanted = event.message.node_id
    if wanted in (None, node_id):
        return node_id
    return _conflict(
        wanted,
        f"{because} {node_id!r} and cannot carry {wanted!r} besides: "
        f"register with node_id null or {node_id!r}, or on another connection without that credential",
    )


def _is_free(holder: NodeRecord) -> bool:
    """With auth off an id that is offline or disconnected may be taken over.

    A node that the registry only suspects (§4, mass silence) still has its connection, and keeps its id.
    """
    return holder.status is NodeStatus.OFFLINE or holder.connection is None


def _held(holder: NodeRecord, *, auth_off: bool, now: float) -> str:
    node_id = holder.node_id
    state = "not connected" if holder.connection is None else "connected"
    ways = (
        f"wait until it is disconnected or offline, have an operator run gpu-agent registry forget {node_id}"
        if auth_off
        else "present its node token; if this machine is that node and lost its token, have an operator run "
        f"gpu-agent registry reclaim {node_id}; if that node is gone for good, "
        f"gpu-agent registry forget {node_id}"
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
            f"gpu-agent registry reclaim {token.node_id} for another"
        )
    times = "its one use is" if token.uses == 1 else f"its {token.uses} uses are"
    way = "gpu-agent registry token create for another"
    if holder is not None:
        way += f"; if this machine is {holder.node_id!r}, gpu-agent registry reclaim {holder.node_id} instead"
    return f"join token {token.token_id} lets no more nodes in, {times} taken: have an operator run {way}"


def _conflict(wanted: str | None, message: str) -> NodeError:
    return NodeError(node_id=wanted, code=ErrorCode.NODE_ID_CONFLICT, message=message)


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


# Whether a join token has room for one more node, and who makes room (§2).
#
# A use is spent at a node's first beat. Until then the node's registration reserves it: a node that is
# connected keeps its place; one that is gone, having lost its token perhaps before it was stored, yields
# it to the next. Knows tokens and their nodes; admits nobody itself.


def holds_reservation(record: NodeRecord | None, token: Token) -> bool:
    """Say whether a node came by this token and has not beaten yet: it may come by it again."""
    return record is not None and record.keys.joined_by == token.token_id and not record.keys.spent


def has_use_left(token: Token, tokens: TokenTable, roster: NodeTable) -> bool:
    """Say whether one more node may come by a token, if need be in the place of one that is gone."""
    return _has_free_use(token, tokens) or bool(_yielding(token, tokens, roster))


def free_reservation(event: RegistrationReceived, node_id: str, *, house: House, step: Step) -> None:
    """Let go of the node that yields its place to this one, if one must."""
    credential, roster, tokens = event.credential, house.roster, house.tokens
    if credential is None or credential.kind is not CredentialKind.JOIN or event.connection in roster.bound:
        return
    token = tokens.by_id.get(credential.token_id)
    if token is None or holds_reservation(roster.records.get(node_id), token) or _has_free_use(token, tokens):
        return
    first = min(_yielding(token, tokens, roster), key=lambda record: (record.registered_at, record.node_id))
    purge_node(first, house, why="its place at its join token went to another node", step=step)


def _has_free_use(token: Token, tokens: TokenTable) -> bool:
    return token.uses is None or token.spent + len(tokens.reserved(token.token_id)) < token.uses


def _yielding(token: Token, tokens: TokenTable, roster: NodeTable) -> list[NodeRecord]:
    """Find those that are gone; who carries an operator's wish keeps its place, and the wish is kept."""
    reserved = [roster.records[node_id] for node_id in tokens.reserved(token.token_id)]
    return [record for record in reserved if record.connection is None and not record.has_desired_state]


# How a node's record is let go, with all that hangs on it: its claims of old, its tokens, its history.
#
# And which goes first where too many pile up. With auth off anybody may come under a fresh id, again and
# again: of records that are offline, carry nobody's wish and have no token only so many stay.


def remove_node(record: NodeRecord, house: House, step: Step) -> None:
    """Know a node no longer, and save that: what proved it proves nothing any more."""
    house.roster.drop(record)
    house.dispatch.forget(record.node_id)
    house.claiming.forget(record.node_id)
    step.change_node(record)


def purge_node(record: NodeRecord, house: House, *, why: str, step: Step) -> None:
    """Let go of a record that nobody asked to be rid of, and note why."""
    remove_node(record, house, step)
    offline = max(0.0, step.now - record.since)
    fields = {"node_id": record.node_id, "offline_seconds": round(offline), "reason": why}
    step.log("node_purged", fields)


class OfflineEviction:
    """The records that may be let go when there are too many, the one longest offline first."""

    def __init__(self, house: House) -> None:
        self._house = house
        self._offline = Deadlines()

    def evict(self, step: Step) -> None:
        """Count in and out whom a step touched, and let the oldest go until no more are left than may be."""
        for node_id in step.touched:
            self._offline.forget(node_id)
            record = self._house.roster.records.get(node_id)
            if record is not None and self._may_go(record):
                self._offline.at(node_id, record.since)
        limit = self._house.thresholds.max_offline_records
        while self._offline.planned > limit:
            node_id = next(self._offline.reached(inf))
            purge_node(
                self._house.roster.records[node_id], self._house, why="too many are offline", step=step
            )

    def _may_go(self, record: NodeRecord) -> bool:
        """A node with a token was let in by somebody, and auth may be on again tomorrow."""
        purgeable = purge_at(record, self._house.thresholds) < inf
        return purgeable and not record.claims and not record.keys.all


# Internal faults that nodes report (§3.3): noted into the node's history, at most so many a minute.
#
# A node that reports one fault over and over would push everything else out of its history. What
# is left out is counted, and told when the minute is over. Judges no fault; changes no status.


MINUTE_SECONDS = 60.0
NOTED_PER_MINUTE = 10


def report_fault(record: NodeRecord, fault: NodeError, step: Step) -> None:
    """Note a fault, or count it where the minute has had enough of them."""
    log_left_out_faults(record, step)
    heard = record.faults
    if step.now >= heard.until:
        heard.until, heard.noted = step.now + MINUTE_SECONDS, 0
    if heard.noted >= NOTED_PER_MINUTE:
        heard.left_out += 1
        step.touched[record.node_id] = None
        return
    heard.noted += 1
    step.log(
        "node_fault_reported",
        {"node_id": record.node_id, "code": quoted(fault.code), "message": quoted(fault.message)},
        Level.WARNING,
    )


def log_left_out_faults(record: NodeRecord, step: Step) -> None:
    """Say how many faults were left out, once their minute is over."""
    heard = record.faults
    if heard.left_out and step.now >= heard.until:
        step.log("node_faults_left_out", {"node_id": record.node_id, "count": heard.left_out}, Level.WARNING)
        heard.left_out = 0
