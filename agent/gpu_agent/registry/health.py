"""Whether a heartbeat is healthy, what is wrong with one that is not, and flap damping (§4).

`is_healthy` runs once per heartbeat on the hottest path and builds nothing; `checks` composes the whole report, for a
person, only on request. Both judge a record to which its newest heartbeat was applied.

Flap damping: an *exit* is counted when a ready node becomes degraded or times out. A drain, an unregistration and a
removal are no exits. A registration neither counts as one nor clears the count, so restarting an agent after each
failure gains nothing.
"""

from collections import Counter

from gpu_agent.registry.gpus import GpuState
from gpu_agent.registry.node import NodeRecord, Transition
from gpu_agent.registry.quoting import quoted, sentence
from gpu_agent.registry.settings import Thresholds
from gpu_agent.wire.codes import NodeStatus, ReasonCode
from gpu_agent.wire.messages import Check

# What makes a beat healthy (§4), and what is wrong with one that is not.
#
# `is_healthy` runs once per beat on the hottest path and builds nothing; `checks` composes
# the whole account, for a person, only when somebody asks. Both judge a record to which its
# newest beat was applied. Which status follows is not decided here.


MAX_PERCENT = 100
_NAMED_MODELS = 5
_NAMED_TROUBLES = 5


def is_healthy(record: NodeRecord, thresholds: Thresholds) -> bool:
    """Say whether the node's newest beat is healthy; a node without a beat is not."""
    usage = record.usage
    if usage is None or record.gpus.usable == 0 or not record.models_sufficient:
        return False
    percent = usage.gpu_percent
    if percent is not None and not 0 <= percent <= MAX_PERCENT:
        return False
    age = record.probe_age_seconds
    return age is None or age <= thresholds.probe_age_limit_seconds


def definite_failure(record: NodeRecord, thresholds: Thresholds) -> ReasonCode | None:
    """Name what cannot pass by itself before the next beat: no usable GPU, a required model not ready."""
    if record.gpus.usable == 0:
        return ReasonCode.GPU_UNAVAILABLE
    if not record.ready_models.issuperset(thresholds.required_models):
        return ReasonCode.MODEL_MISSING
    return None


def models_suffice(record: NodeRecord, thresholds: Thresholds) -> bool:
    """Say whether the required models are ready, and enough of all; asked when models change."""
    if not record.ready_models.issuperset(thresholds.required_models):
        return False
    return not _enabled(record) or len(record.ready_models) >= thresholds.min_ready_models


def checks(record: NodeRecord, thresholds: Thresholds) -> tuple[Check, ...]:
    """Compose every check with its finding; empty before the first beat of a registration."""
    if record.usage is None:
        return ()
    return (
        _gpus(record),
        _gpu_percent(record.usage.gpu_percent),
        _probe_age(record.probe_age_seconds, thresholds.probe_age_limit_seconds),
        _required_models(record, thresholds),
        _ready_models(record, thresholds),
    )


def _gpus(record: NodeRecord) -> Check:
    placeable = [gpu for gpu in record.gpus.values() if not gpu.is_parent]
    detail = f"{record.gpus.usable} of {len(placeable)} GPUs usable"
    troubled = Counter(_trouble(gpu) for gpu in placeable if gpu.health != "ok")
    named = [f"{count} {trouble}" for trouble, count in sorted(troubled.items())[:_NAMED_TROUBLES]]
    if len(troubled) > len(named):
        named.append(f"and {len(troubled) - len(named)} other troubles")
    return Check(name="gpus", ok=record.gpus.usable > 0, detail=sentence("; ".join((detail, *named))))


def _trouble(gpu: GpuState) -> str:
    reasons = quoted(", ".join(gpu.reasons)) or "no reason given"
    return f"{quoted(gpu.health)}: {reasons}"


def _gpu_percent(percent: float | None) -> Check:
    if percent is None:
        return Check(name="gpu_percent", ok=True, detail="not reported")
    return Check(name="gpu_percent", ok=0 <= percent <= MAX_PERCENT, detail=f"{percent:g} %, may be 0 to 100")


def _probe_age(age: float | None, limit: float) -> Check:
    if age is None:
        return Check(name="probe_age", ok=True, detail="not reported")
    return Check(
        name="probe_age", ok=age <= limit, detail=f"last good GPU reading {age:g} s ago, limit {limit:g} s"
    )


def _required_models(record: NodeRecord, thresholds: Thresholds) -> Check:
    missing = [model for model in thresholds.required_models if model not in record.ready_models]
    detail = f"not ready: {', '.join(missing[:_NAMED_MODELS])}" if missing else "all ready"
    return Check(
        name="required_models", ok=not missing, detail=detail if thresholds.required_models else "none"
    )


def _ready_models(record: NodeRecord, thresholds: Thresholds) -> Check:
    enabled, ready = len(_enabled(record)), len(record.ready_models)
    needed = thresholds.min_ready_models if enabled else 0
    return Check(
        name="ready_models",
        ok=ready >= needed,
        detail=f"{ready} of {enabled} enabled models ready, needs {needed}",
    )


def _enabled(record: NodeRecord) -> set[str]:
    return {model.model_id for model in record.models if model.enabled}


# Flap damping: a node that leaves `ready` too often in a while takes no jobs until it has calmed down
# (§4).
#
# An *exit* is counted when a ready node degrades or falls silent. Leaving as planned (a drain, a goodbye,
# a
# removal) is none, and neither is registering, which forgets none either: an agent that is restarted
# after each failure gains nothing by it, and one that comes back from its third silence is held as well.
# Gives no verdicts.


def count_exit(record: NodeRecord, move: Transition, thresholds: Thresholds) -> None:
    """Count a change of status, if it is an exit; only as many are remembered as matter."""
    failed = move.target is NodeStatus.DEGRADED or move.reason_code is ReasonCode.HEARTBEAT_TIMEOUT
    if move.source is NodeStatus.READY and failed:
        record.exits = (*record.exits, move.at)[-thresholds.flap_limit :]


def damp_transition(
    record: NodeRecord, code: ReasonCode, reason: str, *, thresholds: Thresholds, now: float
) -> tuple[ReasonCode, str]:
    """Return why a ready node degrades: as it is, or as `flapping` where that is one exit too many."""
    limit, window = thresholds.flap_limit, thresholds.flap_window_seconds
    exits = 1 + sum(now - at < window for at in record.exits)
    if record.status is not NodeStatus.READY or exits < limit:
        return code, reason
    return ReasonCode.FLAPPING, f"left ready {limit} times within {window:g} s, last for {code}: {reason}"


def flapping_reason(record: NodeRecord, thresholds: Thresholds, now: float) -> str | None:
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
