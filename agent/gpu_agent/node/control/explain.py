"""The answer to `why`: which jobs this node is excluded from now, as far as the node itself knows.

Each reason has the shape of the registry's own answer (§5). What only the registry knows is listed as that.
"""

from collections.abc import Iterator
from typing import Any

from gpu_agent.node.control.status import Instant, is_ready
from gpu_agent.node.public_jobs import PublicJobsState
from gpu_agent.node.snapshot import CONNECTED, Snapshot
from gpu_agent.session.types import STATE_PHRASES, State
from gpu_agent.wire.inventory import Gpu, Model, ModelStatus

SCHEMA = "gpu-agent.why/1"
USUAL_LIMIT_PERCENT = 90.0
"""What a registry takes for too busy, unless it is told otherwise (§5)."""
ONLY_THE_REGISTRY_KNOWS = (
    "whether an operator has cordoned it",
    "which places are claimed for jobs that have not begun",
    "from which load on it takes no job, and how many places a node has that states none",
    "which models it asks of every node",
)
_EVERY_JOB = "every job"
_MOST_MODELS = 50


def explain_document(snapshot: Snapshot, jobs_in_flight: int | None, *, moment: Instant) -> dict[str, Any]:
    """Make the document; `jobs_in_flight` is None where no program announces any."""
    objections = [
        *_of_the_session(snapshot, moment),
        *_of_the_owner(snapshot, jobs_in_flight),
        *_of_the_machine(snapshot),
    ]
    return {
        "schema": SCHEMA,
        "node_id": snapshot.session.node_id,
        "connected": snapshot.session.state in CONNECTED,
        "refuses_every_job": any(one["refuses"] == _EVERY_JOB for one in objections),
        "objections": objections,
        "only_the_registry_knows": list(ONLY_THE_REGISTRY_KNOWS),
        "ask": f"gpu-agent registry why {snapshot.session.node_id or 'ID'}",
    }


def _of_the_session(snapshot: Snapshot, moment: Instant) -> Iterator[dict[str, str]]:
    session, verdict = snapshot.session, snapshot.session.registry_status
    if session.state not in CONNECTED:
        left = moment.until(session.next_attempt_at)
        again = "the registry hears it" + ("" if left is None else f"; it tries again in {left:.0f} s")
        if session.state in (State.DRAINED, State.YIELDED):
            again = "`gpu-agent resume` has it register again"
        cause = f": {session.last_refusal}" if session.last_refusal else ""
        words = f"{STATE_PHRASES.get(session.state, session.state.value)}{cause}"
        yield _reason("disconnected", need="a connected node", have=words, clears_when=again)
    elif not is_ready(snapshot):
        details = None if verdict is None else verdict.details
        have = "no status yet" if verdict is None else f"{verdict.status} ({verdict.reason_code or '?'})"
        cause = f": {verdict.reason}" if verdict is not None and verdict.reason else ""
        yield _reason(
            "status_not_ready",
            need="a ready node",
            have=f"{have}{cause}",
            clears_when=(details.clears_when or "") if details is not None else "",
        )
    if session.drain_reason is not None and session.state is not State.DRAINED:
        yield _reason(
            "status_not_ready",
            need="a node that is not drained",
            have=f"a drain that its owner asked for: {session.drain_reason}",
            clears_when="`gpu-agent resume`",
        )


def _of_the_owner(snapshot: Snapshot, jobs_in_flight: int | None) -> Iterator[dict[str, str]]:
    public = snapshot.public_jobs
    if not public.accepted:
        yield _reason(
            "not_in_public_pool",
            refuses="public jobs",
            need="accept_public_jobs = true",
            have=_paused(public) or "false, as its owner states",
            clears_when="the owner's limits allow them" if public.wanted else "its owner allows them",
        )
    most = snapshot.owner.max_concurrent_jobs
    if most is not None and (most == 0 or (jobs_in_flight is not None and jobs_in_flight >= most)):
        yield _reason(
            "capacity_exceeded",
            need="a free place",
            have=f"{jobs_in_flight or 0} jobs in flight, of {most} places",
            clears_when="a job ends" if most else "its owner states more than 0 max_concurrent_jobs",
        )


def _paused(public: PublicJobsState) -> str:
    return f"a pause: {'; '.join(pause.detail for pause in public.pauses)}" if public.pauses else ""


def _of_the_machine(snapshot: Snapshot) -> Iterator[dict[str, str]]:
    inventory = snapshot.inventory
    if inventory is None:
        yield _reason("gpu_unavailable", need="a usable GPU", have="not probed yet")
        return
    if not inventory.gpu.usable:
        yield _reason("gpu_unavailable", need="a usable GPU", have=inventory.gpu.detail or "no usable GPU")
    parents = {gpu.parent_uuid for gpu in inventory.gpu.gpus}
    for gpu in inventory.gpu.gpus:
        if not gpu.health.usable and gpu.uuid not in parents:
            yield _of_gpu(gpu)
    broken = [
        model for model in inventory.models if not (model.enabled and model.status is ModelStatus.READY)
    ]
    for model in broken[:_MOST_MODELS]:
        yield _of_model(model)
    host = inventory.host
    if host.cpu_percent is not None and host.cpu_percent > USUAL_LIMIT_PERCENT:
        yield _reason(
            "resource_threshold_exceeded",
            need=f"CPU in use at {USUAL_LIMIT_PERCENT:g} % at the most, unless the registry says otherwise",
            have=f"{host.cpu_percent:.0f} %",
            clears_when="it is less busy",
        )


def _of_gpu(gpu: Gpu) -> dict[str, str]:
    reasons = "; ".join(f"{reason.detail} ({reason.code})" for reason in gpu.reasons) or "no reason is known"
    steps = "; ".join(reason.action for reason in gpu.reasons if reason.action)
    mended = f"it is mended: {steps}" if steps else ""
    index = "?" if gpu.index is None else str(gpu.index)
    return _reason(
        "gpu_unavailable",
        refuses=f"jobs on GPU {index}",
        need="a usable GPU",
        have=f"{gpu.health.value}: {reasons}",
        clears_when=mended,
    )


def _of_model(model: Model) -> dict[str, str]:
    state = model.status.value if model.enabled else "disabled"
    return _reason(
        "model_not_available",
        refuses=f"jobs that ask for {model.model_id}",
        need=f"{model.model_id} {model.version} ready",
        have=f"{state}: {model.detail}" if model.detail else state,
    )


def _reason(
    reason: str, *, need: str, have: str, clears_when: str = "", refuses: str = _EVERY_JOB
) -> dict[str, str]:
    return {"reason": reason, "refuses": refuses, "need": need, "have": have, "clears_when": clears_when}
