"""One heartbeat: applied to its node's record, judged, counted (§3.4, §4).

The hottest path of the registry: a healthy heartbeat of a ready node builds nothing, schedules nothing and
returns nothing. A heartbeat that is not valid counts for nothing.
"""

from collections.abc import Callable

from gpu_agent.registry import declaration, health, lifecycle, node_checks
from gpu_agent.registry.actions import Level, Send, Step
from gpu_agent.registry.claims import ClaimRequests
from gpu_agent.registry.dispatch.candidate import LIMITS, load_of, nearness
from gpu_agent.registry.dispatch.dispatch import Dispatch
from gpu_agent.registry.events import Amounts, HeartbeatReceived, HeartbeatRepeated
from gpu_agent.registry.gpus import Difference
from gpu_agent.registry.node import Liveness, NodeRecord, ReportedChecks, ReportedJobs
from gpu_agent.registry.settings import Thresholds
from gpu_agent.registry.status import StatusTransitions
from gpu_agent.registry.token_issuing import consume_join_use
from gpu_agent.registry.tokens import TokenTable
from gpu_agent.wire.codes import ErrorCode, NodeStatus
from gpu_agent.wire.heartbeat import Heartbeat, Parts, Usage
from gpu_agent.wire.messages import NodeError

_SAME_HEARTBEAT = 0.5
"""A heartbeat that a gateway hands on once more came less than so much of the shortest interval after the one
that was counted last: it is that one, and was longer on its way."""


class Heartbeats:
    """Applies heartbeats, and changes the status that follows from them."""

    def __init__(
        self,
        thresholds: Thresholds,
        tokens: TokenTable,
        *,
        dispatch: Dispatch,
        claims: ClaimRequests,
        transitions: StatusTransitions,
        debug: Callable[[], bool],
    ) -> None:
        self._thresholds = thresholds
        self._tokens = tokens
        self._dispatch = dispatch
        self._claims = claims
        self._transitions = transitions
        self._debug = debug
        self._all_healthy = (True,) * thresholds.failure_window

    def handle(self, event: HeartbeatReceived, record: NodeRecord | None, now: float) -> Step | None:
        """Apply a heartbeat to the node that its connection registered; returns None when nothing follows."""
        _, message, round_trip_seconds, age_seconds = event
        node_id, usage, gpus, probe_age_seconds, running_jobs, parts = message
        if record is None or record.node_id != node_id:
            if record is not None:
                record.liveness.last_refused = True
            return _send(event, unknown_node(node_id), now)
        liveness, thresholds = record.liveness, self._thresholds
        was_suspected = liveness.suspected_until is not None
        before, at = liveness.last_heartbeat_at, now - age_seconds
        checks_before, declared_before = record.checks, record.declared
        if parts is not None:
            refusal = _replace_parts(record, parts, thresholds)
            if refusal is not None:
                liveness.last_refused = True
                return _send(event, refusal, now)
        gpus_differ = record.gpus.write(gpus, exactly=self.wants_exact_figures(record), at=at)
        if gpus is None and not gpus_differ and _mean_memory_differs(usage, liveness.usage):
            gpus_differ = Difference.AMOUNT
        if at >= record.gpu_history.due_at:
            record.gpu_history.add(record.gpus, gpus, at)
        jobs = record.jobs
        jobs_differ = running_jobs != jobs.in_order or usage.running_jobs != jobs.count or before is None
        passed = 0.0 if before is None else max(0.0, at - before)
        is_counted = age_seconds > 0.0 and before is not None
        is_counted = is_counted and passed < record.schedule.warmup_interval_seconds * _SAME_HEARTBEAT
        liveness.usage, liveness.probe_age_seconds = usage, probe_age_seconds
        liveness.last_heartbeat_at = liveness.figures_at = at
        # The first one under another leader gives a full timeout, and the same one again takes none of it.
        liveness.last_seen_at = now if before is None else max(liveness.last_seen_at, at)
        liveness.last_refused = False
        load_differs = _write_load(liveness, usage, round_trip_seconds, thresholds=thresholds)
        replaced = record.declared is not declared_before or (parts is not None and parts.checks is not None)
        if replaced or jobs_differ or was_suspected:
            guess = gpus is not None and any(count is not None for count in gpus.processes)
            record.jobs = ReportedJobs.of(running_jobs, usage.running_jobs, is_guess=guess)
            liveness.suspected_until = None
            self._dispatch.update(record)
        elif gpus_differ or load_differs or record.recheck_gpus:
            if record.recheck_gpus:
                gpus_differ = Difference.MORE
            self._dispatch.update_figures(record, gpus=gpus_differ, load=load_differs)
        return self._conclude(
            record,
            now,
            passed_seconds=None if is_counted else passed,
            jobs_differ=jobs_differ,
            was_suspected=was_suspected,
            checks_before=checks_before,
        )

    def repeat(self, event: HeartbeatRepeated, record: NodeRecord, now: float) -> Step | None:
        """Apply a heartbeat that says what the node's last one said; returns None when nothing follows."""
        liveness = record.liveness
        before = liveness.last_heartbeat_at
        if before is None or liveness.last_refused:  # of a registration that was replaced, or refused as well
            return None
        was_suspected = liveness.suspected_until is not None
        at = max(before, now - event.age_seconds)
        liveness.last_seen_at = liveness.last_heartbeat_at = at
        liveness.probe_age_seconds = event.probe_age_seconds
        gpus_differ = load_differs = Difference.NONE
        if event.amounts is not None:
            gpus_differ, load_differs = self._take_amounts(record, event.amounts)
        if was_suspected:
            liveness.suspected_until = None
            self._dispatch.update(record)
        elif gpus_differ or load_differs or record.recheck_gpus:
            if record.recheck_gpus:
                gpus_differ = Difference.MORE
            self._dispatch.update_figures(record, gpus=gpus_differ, load=load_differs)
        return self._conclude(
            record,
            now,
            passed_seconds=at - before,
            jobs_differ=False,
            was_suspected=was_suspected,
            checks_before=record.checks,
        )

    def refresh(self, message: Heartbeat, record: NodeRecord, now: float) -> None:
        """Take in the figures of a heartbeat that was counted before."""
        liveness, usage = record.liveness, message.usage
        if record.node_id != message.node_id or liveness.last_heartbeat_at is None or liveness.last_refused:
            return
        gpus_differ = record.gpus.write(message.gpus, exactly=self.wants_exact_figures(record), at=now)
        if now >= record.gpu_history.due_at:
            record.gpu_history.add(record.gpus, message.gpus, now)
        load_differs = _write_load(liveness, usage, None, thresholds=self._thresholds)
        liveness.usage, liveness.probe_age_seconds = usage, message.probe_age_seconds
        liveness.figures_at = now
        self._dispatch.update_figures(record, gpus=gpus_differ, load=load_differs)

    def wants_exact_figures(self, record: NodeRecord) -> bool:
        """Whether every change of a node's memory matters: it has claims, or a job waits for memory."""
        return bool(record.claims or self._claims.queue.memory_jobs)

    def wants_whole_heartbeats(self, record: NodeRecord) -> bool:
        """Whether a gateway must forward each change as a whole: exact figures, or not all GPUs are ok."""
        known = record.liveness.last_heartbeat_at is not None
        return self.wants_exact_figures(record) or (known and not record.gpus.takes_amounts)

    def _take_amounts(self, record: NodeRecord, amounts: Amounts) -> tuple[Difference, Difference]:
        """Take in the amounts of a heartbeat; returns how its GPUs and its load differ."""
        liveness, used = record.liveness, amounts.memory_used_mb
        usage = Usage(*amounts[:-1], liveness.usage and liveness.usage.running_jobs)
        if used is not None:
            gpus_differ = record.gpus.write_memory(used)
        elif _mean_memory_differs(usage, liveness.usage):
            gpus_differ = Difference.AMOUNT
        else:
            gpus_differ = Difference.NONE
        liveness.usage = usage
        return gpus_differ, _write_load(liveness, usage, None, thresholds=self._thresholds)

    def _conclude(
        self,
        record: NodeRecord,
        now: float,
        *,
        passed_seconds: float | None,
        jobs_differ: bool,
        was_suspected: bool,
        checks_before: ReportedChecks | None,
    ) -> Step | None:
        """Judge a heartbeat that is applied; `passed_seconds` is None for one that was counted before."""
        liveness, thresholds = record.liveness, self._thresholds
        idle = self._claims.telemetry.observe(record, now) if record.claims else None
        healthy = health.is_healthy(record, thresholds)
        if (
            healthy
            and record.status is NodeStatus.READY
            and liveness.recent is self._all_healthy
            and not (jobs_differ or was_suspected or _concerns_claims(record))
            and idle is None
            and record.checks is checks_before
            and not self._debug()
        ):
            if passed_seconds is not None:
                liveness.healthy_heartbeats += 1
            return None
        step = Step(now)
        if was_suspected:
            # The check scheduled for a suspected node comes a whole timeout too late for this heartbeat.
            step.touched[record.node_id] = None
        if passed_seconds is not None:
            self._count(record, step, healthy=healthy)
        self._claims.review(record, step, passed_seconds=passed_seconds or 0.0)
        self._claims.telemetry.log(record, step, idle=idle or ())
        _follow_checks(record, checks_before, step)
        self._change_status(record, step, healthy=healthy)
        self._transitions.finish_drain(record, step)
        return step

    def _count(self, record: NodeRecord, step: Step, *, healthy: bool) -> None:
        liveness = record.liveness
        if not record.tokens.spent:
            consume_join_use(record, self._tokens, step)
        if healthy:
            liveness.unhealthy_heartbeats = 0
            liveness.healthy_heartbeats += 1
        else:
            liveness.unhealthy_heartbeats += 1
            liveness.healthy_heartbeats = 0
        recent = (*liveness.recent, healthy)[-self._thresholds.failure_window :]
        liveness.recent = self._all_healthy if recent == self._all_healthy else recent
        if self._debug() or not healthy:
            self._log_checks(record, step, healthy=healthy)

    def _change_status(self, record: NodeRecord, step: Step, *, healthy: bool) -> None:
        """Make the transition that heartbeats can make from the node's status (§4)."""
        if healthy:
            self._promote(record, step)
        else:
            self._degrade(record, step)

    def _promote(self, record: NodeRecord, step: Step) -> None:
        code = lifecycle.proven_by_heartbeats(record)
        healthy, needed = record.liveness.healthy_heartbeats, self._thresholds.healthy_heartbeats_needed
        if code is None or healthy < needed:
            return
        if health.is_damped(record, self._thresholds, step.now) or node_checks.missing(record):
            return
        reason = f"{healthy} healthy heartbeats in a row"
        self._transitions.change(record, NodeStatus.READY, code, reason=reason, step=step)

    def _degrade(self, record: NodeRecord, step: Step) -> None:
        code = health.definite_failure(record, self._thresholds)
        if code is None:
            code = health.repeated_failure(record, self._thresholds)
        if code is None or not lifecycle.allows(record, NodeStatus.DEGRADED, code):
            return
        failing = health.failing_checks(record, self._thresholds)
        code, reason = health.damp_transition(
            record, code, failing, thresholds=self._thresholds, now=step.now
        )
        self._transitions.change(record, NodeStatus.DEGRADED, code, reason=reason, step=step)

    def _log_checks(self, record: NodeRecord, step: Step, *, healthy: bool) -> None:
        checks = [
            {"name": check.name, "ok": check.ok, "detail": check.detail}
            for check in health.checks(record, self._thresholds)
        ]
        fields = {"node_id": record.node_id, "ok": healthy, "checks": checks}
        step.log("health_check", fields, Level.DEBUG)


def _follow_checks(record: NodeRecord, before: ReportedChecks | None, step: Step) -> None:
    """Log which admission checks fail where others do than before, and ask for those that are missing."""
    if record.checks is before:
        return
    fields = node_checks.changes(record, before)
    if fields is not None:
        step.log("node_checks_changed", fields, Level.WARNING if fields["count"] else Level.INFO)
    command = node_checks.request(record)
    if command is not None and record.connection is not None:
        step.effects.append(Send(record.connection, command))
        step.log("node_control_sent", {"node_id": record.node_id, "command": command.command})


def _concerns_claims(record: NodeRecord) -> bool:
    """Whether a heartbeat may change what claims hold, or show something about them that is logged."""
    return bool(
        record.held
        or record.unclaimed_use
        or (record.claims and not record.gpus.all_ok)
        or record.unclaimed_use is not record.unclaimed_before
        or record.duplicate_gpus is not record.duplicates_logged
    )


def unknown_node(node_id: str | None) -> NodeError:
    """Refuse a message for a node that its connection did not register."""
    return NodeError(
        node_id=node_id,
        code=ErrorCode.UNKNOWN_NODE,
        message="this connection has not registered that node id: send node_register first",
    )


def _send(event: HeartbeatReceived, refusal: NodeError, now: float) -> Step:
    step = Step(now)
    step.effects.append(Send(event.connection, refusal))
    return step


def _replace_parts(record: NodeRecord, parts: Parts, thresholds: Thresholds) -> NodeError | None:
    """Replace the parts that a heartbeat brings, each in full; or return why not, and replace none."""
    refusal = declaration.replace_parts(record, parts, thresholds)
    if refusal is None:
        if parts.checks is not None:
            node_checks.write(record, parts.checks, thresholds)
        if record.checks is not None:
            record.gpus.set_failed_checks(record.checks.failed_gpus)
    return refusal


def _mean_memory_differs(usage: Usage, before: Usage | None) -> bool:
    """Whether a node without figures uses another share of its GPUs' memory: then that stands for each."""
    return before is None or usage.gpu_mem_percent != before.gpu_mem_percent


def _write_load(
    liveness: Liveness, usage: Usage, round_trip: float | None, *, thresholds: Thresholds
) -> Difference:
    """Write a node's load, and its round trip where one was measured; returns what dispatch must take in."""
    load, before = load_of(usage, thresholds), liveness.load
    if round_trip is None and load == before:
        return Difference.NONE
    liveness.load = load
    near_before = liveness.round_trip_seconds
    if round_trip is not None:
        liveness.round_trip_seconds = round_trip
    if load[:LIMITS] != before[:LIMITS]:
        return Difference.MORE
    if load != before or nearness(near_before) != nearness(liveness.round_trip_seconds):
        return Difference.AMOUNT
    return Difference.NONE
