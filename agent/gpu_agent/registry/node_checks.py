"""Admission checks: what a node reports of them, and what the required ones mean for it (§4).

`[admission]` names the checks that nodes must pass; without names no check counts. A failed check of the
whole node is a failure of the node, and one of a GPU makes that GPU unusable, with its MIG devices. A
required check without a result keeps a node from becoming ready, and degrades no node that is. A check of
GPUs counts as missing only while no GPU has a result and some GPU could be checked: agents check no GPU that
is in use. A node that reports no list at all is older and passes; an agent that can run checks reports an
empty list first, and is asked once in a session to run the required ones that it lacks.
"""

from collections.abc import Iterator, Mapping, Sequence

from gpu_agent.registry.node import NodeRecord, ReportedChecks
from gpu_agent.registry.quoting import clip_quote, clip_sentence, listed
from gpu_agent.registry.settings import Thresholds
from gpu_agent.wire.codes import GPU_CHECKS, NODE_SCOPE
from gpu_agent.wire.messages import Check, NodeCheck, NodeControl

CHECK = "check"
"""The command by which a node is asked to run its checks (§3.6)."""

NO_RESULT = "no result yet"
NEXT_STEP = "`gpu-agent status` on the node says what it waits for"
_OF_A_SETTING = ("gpu_count", "hook", "gpu_model")
"""These checks run only where `[checks]` of the node's agent has a setting of that name."""


def write(record: NodeRecord, checks: tuple[NodeCheck, ...], thresholds: Thresholds) -> None:
    """Replace what a node reports of its checks, unless it is what it reported before."""
    before = record.checks
    if before is not None and before.listed == checks:
        return
    required = thresholds.admission.required_checks
    failed = [one for one in checks if one.name in required and not one.ok]
    failed_gpus: dict[str, tuple[str, ...]] = {}
    for one in failed:
        if one.scope != NODE_SCOPE:
            failed_gpus[one.scope] = (*failed_gpus.get(one.scope, ()), one.name)
    reported = {one.name for one in checks}
    record.checks = ReportedChecks(
        listed=checks,
        failed=tuple(one for one in failed if one.scope == NODE_SCOPE),
        failed_gpus=failed_gpus,
        unreported=tuple(name for name in required if name not in reported),
        requested=before is not None and before.requested,
    )


def missing(record: NodeRecord) -> tuple[str, ...]:
    """Return the required checks that a node must report before it becomes ready, and has not reported."""
    checks = record.checks
    if checks is None or not checks.unreported:
        return ()
    checkable = record.in_flight_jobs == 0 and any(
        not gpu.is_parent and gpu.is_sound and not gpu.processes for gpu in record.gpus.values()
    )
    return tuple(name for name in checks.unreported if checkable or name not in GPU_CHECKS)


def judge(record: NodeRecord, thresholds: Thresholds) -> Iterator[Check]:
    """Say of each required check what it means for the node; of an older node nothing."""
    checks = record.checks
    if checks is None:
        return
    failed = {one.name: one for one in checks.failed}
    lacking = missing(record)
    for name in thresholds.admission.required_checks:
        if name in failed:
            yield Check(name=name, ok=False, detail=clip_quote(failed[name].detail) or "failed")
        elif name in lacking:
            unset = f", and without `{name}` in [checks] there it never runs" if name in _OF_A_SETTING else ""
            yield Check(name=name, ok=False, detail=f"{NO_RESULT}: {NEXT_STEP}{unset}")
        else:
            yield Check(name=name, ok=True, detail=_passed(record, checks.listed, name))


def _passed(record: NodeRecord, listed_checks: Sequence[NodeCheck], name: str) -> str:
    """Say how a check stands that keeps no node from being ready: a failed one of some GPUs does not."""
    results = [one for one in listed_checks if one.name == name]
    whole = sum(gpu.parent_uuid is None for gpu in record.gpus.values())
    of_all = "of 1 GPU" if whole == 1 else f"of {whole} GPUs"
    failed = [one for one in results if not one.ok]
    if failed:
        named = listed((f"{one.scope}: {one.detail}" for one in failed), in_order=True)
        return clip_sentence(f"failed on {len(failed)} {of_all}: {named}")
    if not results:
        is_sound = any(not gpu.is_parent and gpu.is_sound for gpu in record.gpus.values())
        return f"{NO_RESULT}: {'its GPUs are in use' if is_sound else 'none of its GPUs is usable'}"
    if results[0].scope == NODE_SCOPE:
        return clip_quote(results[0].detail) or "passed"
    return f"passed on {len(results)} {of_all}"


def changes(record: NodeRecord, before: ReportedChecks | None) -> dict[str, object] | None:
    """Say which checks of a node fail now; None where the same ones failed before."""
    failing = _failing(record.checks)
    if failing.keys() == _failing(before).keys():
        return None
    return {
        "node_id": record.node_id,
        "failed": listed((_words(one) for one in failing.values()), in_order=True),
        "count": len(failing),
    }


def request(record: NodeRecord) -> NodeControl | None:
    """Ask a node, once in a session, to run the required checks of which it has no result."""
    checks = record.checks
    if checks is None or checks.requested or not missing(record):
        return None
    checks.requested = True
    reason = f"the registry requires checks without a result: {', '.join(checks.unreported)}"
    return NodeControl(command=CHECK, reason=reason)


def _failing(checks: ReportedChecks | None) -> Mapping[tuple[str, str], NodeCheck]:
    listed_checks = () if checks is None else checks.listed
    return {(one.name, one.scope): one for one in listed_checks if not one.ok}


def _words(check: NodeCheck) -> str:
    scope = "" if check.scope == NODE_SCOPE else f" of {check.scope}"
    return f"{check.name}{scope}: {check.detail}"
