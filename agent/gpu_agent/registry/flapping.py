"""Flap damping: a node that leaves `ready` too often in a while takes no jobs until it has calmed down (§4).

An *exit* is counted when a ready node degrades or falls silent. Leaving as planned (a drain, a goodbye, a
removal) is none, and neither is registering, which forgets none either: an agent that is restarted
after each failure gains nothing by it, and one that comes back from its third silence is held as well.
Gives no verdicts.
"""

from gpu_agent.registry.record import NodeRecord, Transition
from gpu_agent.registry.thresholds import Thresholds
from gpu_agent.wire.codes import NodeStatus, ReasonCode


def count(record: NodeRecord, move: Transition, thresholds: Thresholds) -> None:
    """Count a change of status, if it is an exit; only as many are remembered as matter."""
    failed = move.target is NodeStatus.DEGRADED or move.reason_code is ReasonCode.HEARTBEAT_TIMEOUT
    if move.source is NodeStatus.READY and failed:
        record.exits = (*record.exits, move.at)[-thresholds.flap_limit :]


def damp(
    record: NodeRecord, code: ReasonCode, reason: str, *, thresholds: Thresholds, now: float
) -> tuple[ReasonCode, str]:
    """Return why a ready node degrades: as it is, or as `flapping` where that is one exit too many."""
    limit, window = thresholds.flap_limit, thresholds.flap_window_seconds
    exits = 1 + sum(now - at < window for at in record.exits)
    if record.status is not NodeStatus.READY or exits < limit:
        return code, reason
    return ReasonCode.FLAPPING, f"left ready {limit} times within {window:g} s, last for {code}: {reason}"


def holds(record: NodeRecord, thresholds: Thresholds, now: float) -> str | None:
    """Say why a node that has just become ready is to be `flapping` at once; None where nothing holds it."""
    limit, window = thresholds.flap_limit, thresholds.flap_window_seconds
    if sum(now - at < window for at in record.exits) < limit:
        return None
    return f"left ready {limit} times within {window:g} s"


def damped_until(record: NodeRecord, thresholds: Thresholds) -> float | None:
    """Return until when a flapping node stays degraded however well it beats; None where nothing holds it.

    From then on fewer than `flap_limit` exits lie within the window.
    """
    flaps = record.status is NodeStatus.DEGRADED and record.reason_code is ReasonCode.FLAPPING
    if not flaps or len(record.exits) < thresholds.flap_limit:
        return None
    return record.exits[-thresholds.flap_limit] + thresholds.flap_window_seconds


def is_damped(record: NodeRecord, thresholds: Thresholds, now: float) -> bool:
    """Say whether healthy beats alone do not make a node ready at this moment."""
    until = damped_until(record, thresholds)
    return until is not None and now < until
