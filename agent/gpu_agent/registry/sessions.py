"""How a node comes and goes: registration, supersession, goodbye, a lost connection (§3.1, §4 Connections).

The newest proven session wins, by the order of arrival. Closing a socket changes no status.
"""

from gpu_agent.registry import admission, declared, faults, telling
from gpu_agent.registry.actions import CloseConnection, Kept, Level, Send
from gpu_agent.registry.events import FaultReported, GoodbyeArrived, RegistrationArrived
from gpu_agent.registry.house import House
from gpu_agent.registry.identity import Identities
from gpu_agent.registry.joining import make_room
from gpu_agent.registry.proving import issue
from gpu_agent.registry.quoting import quoted
from gpu_agent.registry.record import LONGEST_DRAIN_SECONDS, Drain, NodeRecord
from gpu_agent.registry.step import Step
from gpu_agent.registry.thresholds import Thresholds
from gpu_agent.wire.codes import CloseCode, ErrorCode, NodeStatus, ReasonCode
from gpu_agent.wire.messages import NodeError, NodeRegister, NodeRegisterAck

BUSY_RETRY_SECONDS = 5.0


class Sessions:
    """The sessions of all nodes."""

    def __init__(self, house: House) -> None:
        self._house = house
        self._policy = house.policy
        self._identities = Identities(house.roster, house.tokens, auth_off=house.policy.auth_off)

    def register(self, event: RegistrationArrived, step: Step) -> None:
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
        make_room(event, granted, house=self._house, step=step)
        record = roster.records.get(granted)
        if record is None:
            step.before[(Kept.NODE, granted)] = None
            record = _new_record(granted, event, step.now)
            roster.add(record)
        step.remember(record)
        token = issue(record, event, tokens=self._house.tokens, step=step)
        self._attach(record, event, step)
        self._begin(record, event, token=token, step=step)

    def goodbye(self, event: GoodbyeArrived, step: Step) -> None:
        """A node plans its shutdown: offline at once, or after its jobs (§3.6).

        A drain asked while registering is remembered (§4): it begins, and ends, once the node may work.
        """
        message = event.message
        record = self._house.roster.bound.get(event.connection)
        if record is None or record.node_id != message.node_id:
            step.tell(Send(event.connection, unknown_node(message.node_id)))
            return
        verdicts = self._house.verdicts
        step.touched[record.node_id] = None
        if record.status is NodeStatus.OFFLINE:
            step.tell(
                telling.status_of(record, self._house.thresholds, connection=event.connection, now=step.now)
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
            faults.report(record, event.message, step)

    def lost(self, connection: int, step: Step) -> None:
        """Exclude a node whose connection is gone from dispatch; its status stays."""
        record = self._house.roster.ended(connection)
        if record is not None:
            self._house.dispatch.refresh(record)
            step.note("node_disconnected", {"node_id": record.node_id, "status": record.status.value})
            step.touched[record.node_id] = None

    def _refuse(self, event: RegistrationArrived, refusal: NodeError, step: Step) -> None:
        step.note("node_register_refused", _refused(event, refusal.code), Level.WARNING)
        step.tell(Send(event.connection, refusal))
        if refusal.code in (ErrorCode.UNAUTHORIZED, ErrorCode.FORBIDDEN):
            self._house.roster.dismiss(event.connection)
            step.tell(CloseConnection(event.connection, CloseCode.POLICY_VIOLATION, refusal.code))

    def _came_late(self, event: RegistrationArrived, record: NodeRecord, step: Step) -> None:
        """Send a session away that was opened before the one that stands: slow lines, or a process of before.

        The newest wins (§4), and that is the one that called last, not the one whose words took longest.
        """
        step.note("node_register_refused", _refused(event, ErrorCode.SESSION_SUPERSEDED), Level.WARNING)
        self._house.roster.dismiss(event.connection)
        step.tell(Send(event.connection, _superseded(record.node_id, record.address)))
        code = ErrorCode.SESSION_SUPERSEDED.value
        step.tell(CloseConnection(event.connection, CloseCode.POLICY_VIOLATION, code))

    def _attach(self, record: NodeRecord, event: RegistrationArrived, step: Step) -> None:
        """Let this connection stand for the node, and the one before it no longer."""
        roster, before = self._house.roster, record.connection
        if before == event.connection:
            return
        if before is not None:
            _note_supersession(record, event, step)
            roster.dismiss(before)
            step.tell(Send(before, _superseded(record.node_id, event.address)))
            step.tell(CloseConnection(before, CloseCode.POLICY_VIOLATION, ErrorCode.SESSION_SUPERSEDED.value))
        roster.bind(record, event.connection)

    def _begin(
        self, record: NodeRecord, event: RegistrationArrived, *, token: str | None, step: Step
    ) -> None:
        """Begin a session of the node from what it declares: nothing of it is proven yet (A-2)."""
        house, message = self._house, event.message
        declared.declare(record, message, house.thresholds)
        record.registered_at = step.now
        record.address, record.round_trip_seconds = event.address, event.round_trip_seconds
        record.epoch += 1
        house.pacer.begin(record, step.now)
        _set_jobs(record, message)
        step.keep_node(record)
        step.refusals.append(Send(event.connection, _busy(record.node_id)))
        step.tell(Send(event.connection, self._ack(record, event, token)))
        record.heard_at = step.now
        record.last_beat = record.usage = record.probe_age_seconds = None
        record.suspected = False
        start_over(record, house.thresholds, step.now)
        self._give_first_status(record, event.connection, step)
        house.claiming.find_again(record, step)
        house.dispatch.refresh(record)
        step.note(
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
            step.tell(telling.status_of(record, self._house.thresholds, connection=connection, now=step.now))

    def _ack(self, record: NodeRecord, event: RegistrationArrived, token: str | None) -> NodeRegisterAck:
        return NodeRegisterAck(
            node_id=record.node_id,
            node_token=token,
            capability_schema_version=admission.schema_of(event.message),
            heartbeat_interval_seconds=record.interval_seconds,
            warmup_heartbeat_interval_seconds=record.warmup_interval_seconds,
            heartbeat_timeout_seconds=record.timeout_seconds,
            session_epoch=record.epoch,
        )

    def _drain_by_itself(self, record: NodeRecord, event: GoodbyeArrived, step: Step) -> None:
        """Begin the drain that the node asks for; an operator's, which a node never lifts, goes before."""
        if record.drain is None or not record.drain.by_operator:
            seconds = event.message.deadline_seconds
            if seconds is None:
                seconds = self._house.thresholds.drain_deadline_seconds
            reason = quoted(event.message.reason)
            deadline = step.now + min(seconds, LONGEST_DRAIN_SECONDS)
            record.drain = Drain(by_operator=False, deadline=deadline, reason=reason)
            step.keep_node(record)
        if record.status in (NodeStatus.READY, NodeStatus.DEGRADED):
            self._house.verdicts.drain(record, step)
        elif record.status is NodeStatus.DRAINING:
            self._house.verdicts.drain_anew(record, step)
        else:
            step.tell(
                telling.status_of(record, self._house.thresholds, connection=event.connection, now=step.now)
            )


def start_over(record: NodeRecord, thresholds: Thresholds, now: float) -> None:
    """Reset the counts of beats and the warm-up clock (§4)."""
    record.healthy_beats = record.unhealthy_beats = 0
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


def _new_record(node_id: str, event: RegistrationArrived, now: float) -> NodeRecord:
    message = event.message
    return NodeRecord(node_id=node_id, registration=message, hardware=message.hardware, registered_at=now)


def _busy(node_id: str) -> NodeError:
    return NodeError(
        node_id=node_id,
        code=ErrorCode.REGISTRY_BUSY,
        message="the registry could not save this registration just now: register again in a moment",
        retry_after_seconds=BUSY_RETRY_SECONDS,
    )


def _refused(event: RegistrationArrived, code: str) -> dict[str, object]:
    return {"node_id": event.message.node_id, "code": code, "address": event.address}


def _superseded(node_id: str, address: str | None) -> NodeError:
    """Tell a session that it is over, and where the newer one is: that may be a copy of this machine."""
    return NodeError(
        node_id=node_id,
        code=ErrorCode.SESSION_SUPERSEDED,
        message=f"a newer session, from {address or 'an unknown address'}, proved the same identity: "
        "if this machine should hold it, stop the other agent and restart this one",
    )


def _note_supersession(record: NodeRecord, event: RegistrationArrived, step: Step) -> None:
    fields = {"session_epoch": record.epoch, "address": record.address, "newer_address": event.address}
    step.note("session_superseded", {"node_id": record.node_id, **fields}, Level.WARNING)


def _note_arrival(event: RegistrationArrived, step: Step) -> None:
    fields: dict[str, object] = {
        "schema_version": quoted(admission.schema_of(event.message)),
        "gpu_count": len(event.message.hardware.gpus),
        "address": event.address,
    }
    if event.message.node_id is not None:
        fields["node_id"] = event.message.node_id
    step.note("node_register_received", fields)
