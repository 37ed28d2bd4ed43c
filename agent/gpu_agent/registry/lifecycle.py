"""The life of one node: which status may follow which, for what reason, and what would change it (§4).

A node that registers has only declared what it could do. It is `registering` until it has proven, heartbeat
by heartbeat, that it can. Then it is `ready`, the only status that takes jobs. A node that fails is
`degraded` rather than gone: it still sends heartbeats, and comes back when they are healthy. A node that is
to leave is `draining`: it finishes what it has and takes nothing new. A node that has fallen silent, left or
finished draining is `offline`.

Two ways lead back to the start. A registration does, from everywhere but an operator's drain: a machine that
restarted must prove itself again. And `resume` does, from `draining` and from `offline` with an open session:
there the node has not restarted, so it need not register, but nothing vouched for it while it was away. A
drain that the node itself requested ends when it registers again (§3.6); that is the same transition, taken
by the node.

There is no transition from `draining` to `ready`, none from `offline` to anything but `registering`, and none
from `offline` to itself: a node that is offline already changes nothing. A node that registers while it
drains for an operator keeps its status.

This module holds the table, the one function that follows it, how long a status lasts, and the sentence that
says what would change it. Other modules decide when a transition is due, and what is stored, sent and closed
because of it. What a status means for a heartbeat, a drain or a registration follows from its rows: a node
of which no row leads to `registering` by `registered` keeps its status when it registers, and one with a row
to `ready` by `recovered` becomes ready by healthy heartbeats. Only `ready` takes jobs.

To add a status:

1. `wire.codes` (and §4): a member of `NodeStatus`, its colour and rank, and its `ReasonCode`s;
2. here: its rows in `TRANSITIONS`, one of them to `offline` by `_LEFT` as silence may end every status, and
   its `case` in `time_limit` and `clears_when`;
3. the module that makes its new transitions: `heartbeat`, `timers` (once its time limit has passed) or
   `operations` (where an operator requests it: its steps are there, and a status alone does not outlive the
   next registration, a field of `node.DesiredState` does);
4. the tables of `docs/reference/statuses.md`, the two that tests write down once more (`test_status_changes`,
   and `invariants/statuses` of the simulation), `make schema` and `make reference`.
"""

from collections.abc import Mapping
from math import inf, nextafter
from typing import assert_never

from gpu_agent.registry import health
from gpu_agent.registry.node import NodeRecord, Transition
from gpu_agent.registry.quoting import clip_sentence
from gpu_agent.registry.settings import Thresholds
from gpu_agent.wire.codes import NodeStatus, ReasonCode

HISTORY_LENGTH = 12
"""How many transitions a node remembers."""

MISSED_INTERVALS = 1.5
MISSED_SLACK_SECONDS = 1.0
"""A node that is silent for longer than so many intervals and this counts as disconnected (§4)."""

_LEFT = frozenset({ReasonCode.HEARTBEAT_TIMEOUT, ReasonCode.UNREGISTERED, ReasonCode.REMOVED})
_REGISTERED = frozenset({ReasonCode.REGISTERED})
_PROVEN = (ReasonCode.HEALTH_CHECKS_PASSED, ReasonCode.RECOVERED)
"""By healthy heartbeats; their other end is `ready`."""

TRANSITIONS: Mapping[tuple[NodeStatus | None, NodeStatus], frozenset[ReasonCode]] = {
    (None, NodeStatus.REGISTERING): _REGISTERED,
    (NodeStatus.REGISTERING, NodeStatus.REGISTERING): _REGISTERED,
    (NodeStatus.READY, NodeStatus.REGISTERING): _REGISTERED,
    (NodeStatus.DEGRADED, NodeStatus.REGISTERING): _REGISTERED,
    (NodeStatus.DRAINING, NodeStatus.REGISTERING): frozenset({ReasonCode.RESUMED}),
    (NodeStatus.OFFLINE, NodeStatus.REGISTERING): _REGISTERED | {ReasonCode.RESUMED},
    (NodeStatus.REGISTERING, NodeStatus.READY): frozenset({ReasonCode.HEALTH_CHECKS_PASSED}),
    (NodeStatus.REGISTERING, NodeStatus.DEGRADED): frozenset(
        {
            ReasonCode.MODEL_MISSING,
            ReasonCode.GPU_UNAVAILABLE,
            ReasonCode.CHECK_FAILED,
            ReasonCode.WARMUP_TIMEOUT,
        }
    ),
    (NodeStatus.READY, NodeStatus.DEGRADED): frozenset(
        {
            ReasonCode.GPU_UNAVAILABLE,
            ReasonCode.MODEL_MISSING,
            ReasonCode.CHECK_FAILED,
            ReasonCode.HEALTH_CHECKS_FAILED,
            ReasonCode.FLAPPING,
        }
    ),
    (NodeStatus.DEGRADED, NodeStatus.READY): frozenset({ReasonCode.RECOVERED}),
    (NodeStatus.READY, NodeStatus.DRAINING): frozenset({ReasonCode.DRAIN_REQUESTED}),
    (NodeStatus.DEGRADED, NodeStatus.DRAINING): frozenset({ReasonCode.DRAIN_REQUESTED}),
    (NodeStatus.REGISTERING, NodeStatus.OFFLINE): _LEFT,
    (NodeStatus.READY, NodeStatus.OFFLINE): _LEFT,
    (NodeStatus.DEGRADED, NodeStatus.OFFLINE): _LEFT,
    (NodeStatus.DRAINING, NodeStatus.OFFLINE): _LEFT | {ReasonCode.DRAIN_COMPLETE, ReasonCode.DRAIN_DEADLINE},
}
"""From, to, and the reasons that may be given; no other transition exists."""


class IllegalTransitionError(Exception):
    """A transition that the table does not hold: our own mistake; nothing was changed."""

    def __init__(self, record: NodeRecord, target: NodeStatus, reason_code: ReasonCode) -> None:
        self.node_id = record.node_id
        super().__init__(
            f"node {record.node_id}: no transition {_name(status_of(record))} → {target} for {reason_code}; "
            f"its history: {describe_history(record.history)}"
        )


def status_of(record: NodeRecord) -> NodeStatus | None:
    """Return a node's status; None for a record that has had no transition."""
    return record.status if record.history else None


def allows(record: NodeRecord, target: NodeStatus, reason_code: ReasonCode) -> bool:
    """Say whether the table has a transition from a node's status, for this reason."""
    return reason_code in TRANSITIONS.get((status_of(record), target), frozenset())


def proven_by_heartbeats(record: NodeRecord) -> ReasonCode | None:
    """Return the reason for which healthy heartbeats make a node ready; None where they do not decide."""
    allowed = TRANSITIONS.get((record.status, NodeStatus.READY), frozenset())
    return next((code for code in _PROVEN if code in allowed), None)


def change_status(
    record: NodeRecord, target: NodeStatus, *, reason_code: ReasonCode, reason: str, now: float
) -> Transition:
    """Make one transition; raises `IllegalTransitionError`, changing nothing, where the table has none."""
    if not allows(record, target, reason_code):
        raise IllegalTransitionError(record, target, reason_code)
    source = status_of(record)
    transition = Transition(at=now, source=source, target=target, reason_code=reason_code)
    record.history = (*record.history, transition)[-HISTORY_LENGTH:]
    record.previous_status, record.status = source, target
    record.reason_code, record.reason, record.since = reason_code, reason, now
    return transition


def describe_history(history: tuple[Transition, ...]) -> str:
    """Write a history as one line, oldest first; times are seconds before its end."""
    if not history:
        return "none yet"
    end = history[-1].at
    first = _name(history[0].source)
    steps = (f"→ {one.target} ({one.reason_code}, {one.at - end:.3f} s)" for one in history)
    return f"{first} {' '.join(steps)}"


def heartbeats_needed(record: NodeRecord, thresholds: Thresholds) -> int:
    """Return how many more healthy heartbeats in a row make the node ready; 0 where they do not decide."""
    if proven_by_heartbeats(record) is None:
        return 0
    return max(0, thresholds.healthy_heartbeats_needed - record.liveness.healthy_heartbeats)


def next_deadline(record: NodeRecord, thresholds: Thresholds) -> float:
    """Return when time alone may next change something about a node; infinity for never."""
    times = [purge_at(record, thresholds), time_limit(record)]
    if record.connection is not None:
        times.append(record.schedule.next_status_at)
        if record.liveness.suspected_until is None:
            times.append(nextafter(missed_at(record), inf))
    if record.connection is not None or record.status is not NodeStatus.OFFLINE:
        times.append(silent_until(record))
    if record.faults.left_out:
        times.append(record.faults.until)
    return min(times)


def time_limit(record: NodeRecord) -> float:
    """Return when time alone ends a status; infinity for never."""
    match record.status:
        case NodeStatus.REGISTERING:
            return record.liveness.warmup_until
        case NodeStatus.DRAINING:
            return inf if record.desired.drain is None else record.desired.drain.deadline
        case NodeStatus.READY | NodeStatus.DEGRADED | NodeStatus.OFFLINE:
            return inf
        case _ as unreachable:
            assert_never(unreachable)


def missed_at(record: NodeRecord) -> float:
    """Return when a connected node that sends nothing counts as disconnected (§4, Connections)."""
    return (
        record.liveness.last_seen_at
        + MISSED_INTERVALS * record.schedule.interval_seconds
        + MISSED_SLACK_SECONDS
    )


def silent_until(record: NodeRecord) -> float:
    """Return when a silent node times out (§4)."""
    suspected_until = record.liveness.suspected_until
    if suspected_until is not None:
        return suspected_until
    return record.liveness.last_seen_at + record.schedule.timeout_seconds


def purge_at(record: NodeRecord, thresholds: Thresholds) -> float:
    """Return when an offline record is removed; never while an operator needs it, or it is connected."""
    if record.status is not NodeStatus.OFFLINE or record.connection is not None or record.desired.by_operator:
        return inf
    if not record.acknowledged:
        return record.since
    return record.since + thresholds.offline_retention_seconds


def clears_when(record: NodeRecord, thresholds: Thresholds, now: float) -> str | None:
    """Say what would change the status; None for a ready node."""
    match record.status:
        case NodeStatus.READY:
            return None
        case NodeStatus.REGISTERING | NodeStatus.DEGRADED:
            return _after_healthy_heartbeats(record, thresholds, now)
        case NodeStatus.DRAINING:
            return _when_drained(record)
        case NodeStatus.OFFLINE:
            return _when_it_may_return(record)
        case _ as unreachable:
            assert_never(unreachable)


def _after_healthy_heartbeats(record: NodeRecord, thresholds: Thresholds, now: float) -> str:
    needed = heartbeats_needed(record, thresholds)
    wanted = f"{needed} more healthy heartbeats in a row" if needed > 1 else "one more healthy heartbeat"
    until = health.damped_until(record, thresholds)
    if until is not None and now < until:
        exits = f"fewer than {thresholds.flap_limit} exits within {thresholds.flap_window_seconds:g} s"
        first = wanted if needed else "its heartbeats stay healthy"
        wanted = f"{first}, and in {until - now:.0f} s, when {exits} are left"
    if record.desired.drain is not None:
        wanted += ", and then it drains, as requested"
    failing = [check for check in health.checks(record, thresholds) if not check.ok]
    if failing:
        wanted += "; failing now: " + "; ".join(f"{check.name} ({check.detail})" for check in failing)
    return clip_sentence(wanted)


def _when_it_may_return(record: NodeRecord) -> str:
    drain = record.desired.drain
    if drain is None or not drain.by_operator:
        return "the node registers again"
    back = "" if record.connection is not None else ", and it registers again"
    return "an operator resumes the node" + back


def _when_drained(record: NodeRecord) -> str:
    jobs = record.in_flight_jobs
    if jobs == 0 and not record.jobs_known:
        return "a heartbeat shows that no job runs, or the deadline passes: then it goes offline"
    if jobs == 0:
        return "nothing runs any more: it goes offline at once"
    running = "its last job ends" if jobs == 1 else f"its {jobs} jobs end"
    return f"{running} or the deadline passes: then it goes offline"


def _name(status: NodeStatus | None) -> str:
    return "none" if status is None else status.value
