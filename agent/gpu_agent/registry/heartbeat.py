"""One heartbeat: applied to its node's record, judged, counted (§3.4, §4).

The hottest path of the registry: a healthy heartbeat of a ready node builds nothing, schedules nothing and returns
nothing. A heartbeat that is not valid counts for nothing.
"""

from collections.abc import Callable

from gpu_agent.registry import declaration as admission
from gpu_agent.registry import declaration as declared
from gpu_agent.registry import health
from gpu_agent.registry import health as flapping
from gpu_agent.registry.actions import Level, Send
from gpu_agent.registry.dispatch.scoring import load_of, nearness
from gpu_agent.registry.events import HeartbeatReceived
from gpu_agent.registry.node import NodeRecord
from gpu_agent.registry.registration import unknown_node
from gpu_agent.registry.settings import Thresholds
from gpu_agent.registry.status import House
from gpu_agent.registry.step import Step
from gpu_agent.registry.token_issuing import consume_join_use
from gpu_agent.wire.codes import NodeStatus, ReasonCode
from gpu_agent.wire.messages import NodeError, NodeHeartbeat, ResourceUsage


class Heartbeats:
    """Applies beats and draws their consequences."""

    def __init__(self, house: House, *, debug: Callable[[], bool]) -> None:
        self._house = house
        self._thresholds = house.thresholds
        self._bound = house.roster.bound
        self._dispatch = house.dispatch
        self._debug = debug
        self._all_well = (True,) * house.thresholds.failure_window

    def arrived(self, event: HeartbeatReceived, now: float) -> Step | None:
        """Take a beat in; None when nothing follows from it."""
        message, record = event.message, self._bound.get(event.connection)
        said = message.__dict__  # an entry costs a tenth of what asking a model for its field does
        if record is None or record.node_id != said["node_id"]:
            return self._from_a_stranger(event, now)
        thresholds, was_suspected = self._thresholds, record.suspected_until is not None
        usage: ResourceUsage = said["resource_usage"]
        replaced = not declared.REPLACEABLE.isdisjoint(message.__pydantic_fields_set__)
        if replaced:
            ambiguous = _replace(record, message, thresholds)
            if ambiguous is not None:
                return _answer(event, ambiguous, now)
        gpus_differ = record.gpus.write(said["gpus"], exactly=bool(record.claims))
        record.usage, record.probe_age_seconds = usage, said["probe_age_seconds"]
        jobs_changed = (
            said["running_jobs"] != record.running_jobs
            or usage.running_jobs != record.reported_jobs
            or record.last_heartbeat_at is None
        )
        record.heard_at = record.last_heartbeat_at = now
        load = load_of(usage, thresholds)
        load_differs = load != record.load
        if event.round_trip_seconds is not None:
            load_differs |= _write_round_trip(record, event.round_trip_seconds)
        record.load = load
        if replaced or jobs_changed or was_suspected:
            _write_jobs(record, message)
            record.suspected_until = None
            self._dispatch.refresh(record)
        elif gpus_differ or load_differs:
            self._dispatch.refresh_figures(record, gpus=gpus_differ, load=load_differs)
        healthy = health.is_healthy(record, thresholds)
        well = healthy and record.status is NodeStatus.READY and record.recent is self._all_well
        if well and not jobs_changed and not was_suspected and not self._debug():
            record.healthy_beats += 1
            return None
        return self._count(record, now, healthy=healthy, was_suspected=was_suspected)

    def _from_a_stranger(self, event: HeartbeatReceived, now: float) -> Step | None:
        if self._house.roster.dismissed(event.connection):
            return None
        return _answer(event, unknown_node(event.message.node_id), now)

    def _count(self, record: NodeRecord, now: float, *, healthy: bool, was_suspected: bool) -> Step:
        step = Step(now)
        if was_suspected:
            # The look that is planned for a suspected node comes a whole timeout too late for this beat.
            step.touched[record.node_id] = None
        if not record.keys.spent:
            consume_join_use(record, self._house.tokens, step)
        if healthy:
            record.unhealthy_heartbeats = 0
            record.healthy_beats += 1
        else:
            record.unhealthy_heartbeats += 1
            record.healthy_beats = 0
        recent = (*record.recent, healthy)[-self._thresholds.failure_window :]
        record.recent = self._all_well if recent == self._all_well else recent
        if self._debug() or not healthy:
            self._note_checks(record, step, healthy=healthy)
        self._house.claiming.attach_lost(record, step)
        self._judge(record, step, healthy=healthy)
        self._house.verdicts.settle(record, step)
        return step

    def _judge(self, record: NodeRecord, step: Step, *, healthy: bool) -> None:
        """Draw the arrow that beats can draw from the node's status (§4)."""
        if record.status not in (NodeStatus.REGISTERING, NodeStatus.READY, NodeStatus.DEGRADED):
            return
        if healthy:
            self._promote(record, step)
        elif record.status is not NodeStatus.DEGRADED:
            self._demote(record, step)

    def _promote(self, record: NodeRecord, step: Step) -> None:
        needed = self._thresholds.healthy_heartbeats_needed
        if record.status is NodeStatus.READY or record.healthy_beats < needed:
            return
        if flapping.is_damped(record, self._thresholds, step.now):
            return
        first = record.status is NodeStatus.REGISTERING
        code = ReasonCode.HEALTH_CHECKS_PASSED if first else ReasonCode.RECOVERED
        reason = f"{record.healthy_beats} healthy beats in a row"
        self._house.verdicts.give(record, NodeStatus.READY, code, reason=reason, step=step)

    def _demote(self, record: NodeRecord, step: Step) -> None:
        code = health.definite_failure(record, self._thresholds)
        if code is None and record.status is NodeStatus.READY:
            code = self._worn_out(record)
        if code is None:
            return
        failing = "; ".join(
            f"{check.name}: {check.detail}"
            for check in health.checks(record, self._thresholds)
            if not check.ok
        )
        code, reason = flapping.damp_transition(
            record, code, failing, thresholds=self._thresholds, now=step.now
        )
        self._house.verdicts.give(record, NodeStatus.DEGRADED, code, reason=reason, step=step)

    def _worn_out(self, record: NodeRecord) -> ReasonCode | None:
        """Name what many failures amount to; a single one is forgiven."""
        if record.unhealthy_heartbeats >= self._thresholds.consecutive_failures:
            return ReasonCode.HEALTH_CHECKS_FAILED
        if record.recent.count(False) >= self._thresholds.failures_in_window:
            return ReasonCode.FLAPPING
        return None

    def _note_checks(self, record: NodeRecord, step: Step, *, healthy: bool) -> None:
        checks = [
            {"name": check.name, "ok": check.ok, "detail": check.detail}
            for check in health.checks(record, self._thresholds)
        ]
        fields = {"node_id": record.node_id, "ok": healthy, "checks": checks}
        step.log("health_check", fields, Level.DEBUG)


def _replace(record: NodeRecord, beat: NodeHeartbeat, thresholds: Thresholds) -> NodeError | None:
    """Take the parts of the declaration that a beat brings anew; or say why they cannot be."""
    ambiguous = None if beat.hardware is None else admission.ambiguity_of(beat.hardware, node_id=beat.node_id)
    return ambiguous or declared.replace_parts(record, beat, thresholds)


def _answer(event: HeartbeatReceived, refusal: NodeError, now: float) -> Step:
    step = Step(now)
    step.add(Send(event.connection, refusal))
    return step


def _write_round_trip(record: NodeRecord, seconds: float) -> bool:
    """Write what was measured; says whether those who choose a node could tell the difference."""
    before, record.round_trip_seconds = record.round_trip_seconds, seconds
    return nearness(before) != nearness(seconds)


def _write_jobs(record: NodeRecord, beat: NodeHeartbeat) -> None:
    record.running_jobs = beat.running_jobs
    record.reported_job_ids = None if beat.running_jobs is None else frozenset(beat.running_jobs)
    record.reported_jobs = beat.resource_usage.running_jobs
