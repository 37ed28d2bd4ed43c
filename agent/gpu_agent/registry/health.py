"""Whether a heartbeat is healthy, what is wrong with one that is not, and flap damping (§4).

`is_healthy` runs once per heartbeat on the hottest path and builds nothing; `checks` composes the whole
report, for a person, only on request. Both judge a record to which its newest heartbeat was applied. Which
status follows is decided elsewhere.

Flap damping: a node that leaves `ready` too often within a window takes no jobs until it has calmed down. An
*exit* is counted when a ready node becomes degraded or times out. A drain, an unregistration and a removal
are no exits. A registration is none either, and it clears no count: restarting an agent after each failure
gains nothing.
"""

from collections import Counter

from gpu_agent.registry import node_checks
from gpu_agent.registry.gpus import GpuState
from gpu_agent.registry.node import Declared, NodeRecord, Transition
from gpu_agent.registry.quoting import clip_quote, clip_sentence
from gpu_agent.registry.settings import Thresholds
from gpu_agent.wire.codes import NodeStatus, ReasonCode
from gpu_agent.wire.inventory import usable_in_words
from gpu_agent.wire.messages import Check, InstalledModel

MAX_PERCENT = 100
_NAMED_MODELS = 5
_NAMED_PROBLEMS = 5


def is_healthy(record: NodeRecord, thresholds: Thresholds) -> bool:
    """Say whether the node's newest heartbeat is healthy; a node without one is not."""
    liveness = record.liveness
    usage = liveness.usage
    if usage is None or record.gpus.usable == 0 or not record.declared.models_sufficient:
        return False
    if record.checks is not None and record.checks.failed:
        return False
    percent = usage.gpu_percent
    if percent is not None and not 0 <= percent <= MAX_PERCENT:
        return False
    age = liveness.probe_age_seconds
    return age is None or age <= thresholds.probe_age_limit_seconds


def definite_failure(record: NodeRecord, thresholds: Thresholds) -> ReasonCode | None:
    """Name a failure that is definite at once: no usable GPU, a failed check, a required model not ready."""
    if record.gpus.usable == 0:
        return ReasonCode.GPU_UNAVAILABLE
    if record.checks is not None and record.checks.failed:
        return ReasonCode.CHECK_FAILED
    if not record.declared.ready_models.issuperset(thresholds.required_models):
        return ReasonCode.MODEL_MISSING
    return None


def repeated_failure(record: NodeRecord, thresholds: Thresholds) -> ReasonCode | None:
    """Name what several unhealthy heartbeats amount to; a single one is tolerated."""
    if record.liveness.unhealthy_heartbeats >= thresholds.consecutive_failures:
        return ReasonCode.HEALTH_CHECKS_FAILED
    if record.liveness.recent.count(False) >= thresholds.failures_in_window:
        return ReasonCode.FLAPPING
    return None


def models_suffice(models: tuple[InstalledModel, ...], ready: frozenset[str], thresholds: Thresholds) -> bool:
    """Say whether the required models are ready, and enough of all; evaluated when models change."""
    if not ready.issuperset(thresholds.required_models):
        return False
    return not _enabled(models) or len(ready) >= thresholds.min_ready_models


def checks(record: NodeRecord, thresholds: Thresholds) -> tuple[Check, ...]:
    """Compose each check with its result; empty before the first heartbeat of a registration."""
    usage = record.liveness.usage
    if usage is None:
        return ()
    return (
        _gpus(record),
        _gpu_percent(usage.gpu_percent),
        _probe_age(record.liveness.probe_age_seconds, thresholds.probe_age_limit_seconds),
        _required_models(record.declared, thresholds),
        _ready_models(record.declared, thresholds),
        *node_checks.judge(record, thresholds),
    )


def failing_checks(record: NodeRecord, thresholds: Thresholds) -> str:
    """List the checks that fail, with their results; empty where all pass."""
    failing = (check for check in checks(record, thresholds) if not check.ok)
    return "; ".join(f"{check.name}: {check.detail}" for check in failing)


def count_exit(record: NodeRecord, change: Transition, thresholds: Thresholds) -> None:
    """Count a transition if it is an exit; only as many are remembered as matter."""
    failed = change.target is NodeStatus.DEGRADED or change.reason_code is ReasonCode.HEARTBEAT_TIMEOUT
    if change.source is NodeStatus.READY and failed:
        record.exits = (*record.exits, change.at)[-thresholds.flap_limit :]


def damp_transition(
    record: NodeRecord, code: ReasonCode, reason: str, *, thresholds: Thresholds, now: float
) -> tuple[ReasonCode, str]:
    """Return why a ready node becomes degraded: as given, or `flapping` where that is one exit too many."""
    limit, window = thresholds.flap_limit, thresholds.flap_window_seconds
    exits = 1 + sum(now - at < window for at in record.exits)
    if record.status is not NodeStatus.READY or exits < limit:
        return code, reason
    return ReasonCode.FLAPPING, f"left ready {limit} times within {window:g} s, last for {code}: {reason}"


def flapping_reason(record: NodeRecord, thresholds: Thresholds, now: float) -> str | None:
    """Say why a node that has just become ready is `flapping` at once; None where it is not."""
    limit, window = thresholds.flap_limit, thresholds.flap_window_seconds
    if sum(now - at < window for at in record.exits) < limit:
        return None
    return f"left ready {limit} times within {window:g} s"


def damped_until(record: NodeRecord, thresholds: Thresholds) -> float | None:
    """Return until when a flapping node stays degraded, however healthy it is; None if it need not.

    From then on fewer than `flap_limit` exits lie within the window.
    """
    flaps = record.status is NodeStatus.DEGRADED and record.reason_code is ReasonCode.FLAPPING
    if not flaps or len(record.exits) < thresholds.flap_limit:
        return None
    return record.exits[-thresholds.flap_limit] + thresholds.flap_window_seconds


def is_damped(record: NodeRecord, thresholds: Thresholds, now: float) -> bool:
    """Say whether healthy heartbeats alone do not make a node ready at this moment."""
    until = damped_until(record, thresholds)
    return until is not None and now < until


def _gpus(record: NodeRecord) -> Check:
    usable, count = record.gpus.usable, record.gpus.placeable
    # Each status of each node asks: where all are ok the figures need not reach each GPU.
    faulty = () if record.gpus.all_ok else (gpu for gpu in record.gpus.values() if not gpu.is_parent)
    problems = Counter(_problem(gpu) for gpu in faulty if gpu.condition != "ok")
    listed = sorted(problems.items())[:_NAMED_PROBLEMS]
    named = [problem if count == 1 else f"{number} {problem}" for problem, number in listed]
    if len(problems) > len(named):
        named.append(f"and {len(problems) - len(named)} other problems")
    why = f" ({'; '.join(named)})" if named else ""
    words = usable_in_words(usable, count) if count else "no GPU"
    return Check(name="gpus", ok=usable > 0, detail=clip_sentence(f"{words}{why}"))


def _problem(gpu: GpuState) -> str:
    reasons = clip_quote(", ".join((*gpu.reasons, *gpu.failed_checks))) or "no reason given"
    return f"{clip_quote(gpu.condition)}: {reasons}"


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


def _required_models(declared: Declared, thresholds: Thresholds) -> Check:
    missing = [model for model in thresholds.required_models if model not in declared.ready_models]
    detail = f"not ready: {', '.join(missing[:_NAMED_MODELS])}" if missing else "all ready"
    return Check(
        name="required_models", ok=not missing, detail=detail if thresholds.required_models else "none"
    )


def _ready_models(declared: Declared, thresholds: Thresholds) -> Check:
    enabled, ready = len(declared.enabled_models), len(declared.ready_models)
    needed = thresholds.min_ready_models if enabled else 0
    return Check(
        name="ready_models",
        ok=ready >= needed,
        detail=f"{ready} of {enabled} enabled models ready, needs {needed}",
    )


def _enabled(models: tuple[InstalledModel, ...]) -> set[str]:
    return {model.model_id for model in models if model.enabled}
