"""The answer to `explain`: which jobs this node is excluded for now, as far as the node itself knows.

Each reason has the shape of the registry's own answer (§5). The document lists what only the registry knows.
"""

from collections.abc import Iterator

from gpu_agent.node.control.status import Instant, is_ready
from gpu_agent.node.jobs import Jobs
from gpu_agent.node.public_jobs import PublicJobsState
from gpu_agent.node.snapshot import CONNECTED, Snapshot
from gpu_agent.probe.health.reasons import gpu_steps
from gpu_agent.records import dataclass
from gpu_agent.session.types import STATE_PHRASES, State
from gpu_agent.wire.api import NodeExclusionView
from gpu_agent.wire.codes import DEFAULT_LIMIT_PERCENT, ExclusionReason
from gpu_agent.wire.explain_document import ExplainDocument
from gpu_agent.wire.gpu_reasons import NO_NEW_JOBS, ONE_GPU_ONLY
from gpu_agent.wire.inventory import Gpu, Model, ModelStatus

ONLY_THE_REGISTRY_KNOWS = (
    "whether an operator has cordoned it",
    "which slots are claimed for jobs that have not begun",
    f"above which load it excludes a node ({DEFAULT_LIMIT_PERCENT:g} % of CPU or memory by default)",
    "how many slots a node has that states none",
    "which models it asks of every node",
)
_MAX_MODELS = 50


@dataclass(frozen=True, slots=True, kw_only=True)
class _Exclusion:
    reason: ExclusionReason
    jobs: str | None = None
    """Which jobs, in words; None is every job."""
    need: str
    have: str
    clears_when: str = ""

    def view(self) -> NodeExclusionView:
        return NodeExclusionView(
            reason=self.reason.value,
            refuses=self.jobs or "every job",
            need=self.need,
            have=self.have,
            clears_when=self.clears_when,
        )


def explain(snapshot: Snapshot, jobs: Jobs, *, instant: Instant) -> ExplainDocument:
    """Make the document."""
    reasons = (
        *_of_session(snapshot, instant),
        *_of_owner(snapshot, None if jobs.ids is None else len(jobs.ids)),
        *_of_machine(snapshot),
    )
    return ExplainDocument(
        schema_id="gpu-agent.explain/1",
        node_id=snapshot.session.node_id,
        connected=snapshot.session.state in CONNECTED,
        refuses_every_job=any(one.jobs is None for one in reasons),
        exclusions=tuple(one.view() for one in reasons),
        only_the_registry_knows=ONLY_THE_REGISTRY_KNOWS,
        ask=f"gpu-agent registry explain node {snapshot.session.node_id or 'ID'}",
    )


def _of_session(snapshot: Snapshot, instant: Instant) -> Iterator[_Exclusion]:
    session, status = snapshot.session, snapshot.session.registry_status
    if session.state not in CONNECTED:
        left = instant.until(session.next_attempt_at)
        again = "it is connected" + ("" if left is None else f"; it tries again in {left:.0f} s")
        if session.state in (State.DRAINED, State.YIELDED):
            again = "`gpu-agent resume`, after which it registers again"
        cause = f": {session.last_refusal}" if session.last_refusal else ""
        words = f"{STATE_PHRASES.get(session.state, session.state.value)}{cause}"
        yield _Exclusion(
            reason=ExclusionReason.DISCONNECTED, need="a connection", have=words, clears_when=again
        )
    elif not is_ready(snapshot):
        details = None if status is None else status.details
        have = "no status yet" if status is None else f"{status.status} ({status.reason_code or '?'})"
        cause = f": {status.reason}" if status is not None and status.reason else ""
        yield _Exclusion(
            reason=ExclusionReason.STATUS_NOT_READY,
            need="a ready node",
            have=f"{have}{cause}",
            clears_when=(details.clears_when or "") if details is not None else "",
        )
    if session.drain_reason is not None and session.state is not State.DRAINED:
        yield _Exclusion(
            reason=ExclusionReason.STATUS_NOT_READY,
            need="a node that is not drained",
            have=f"a drain by its owner: {session.drain_reason}",
            clears_when="`gpu-agent resume`",
        )


def _of_owner(snapshot: Snapshot, jobs_in_flight: int | None) -> Iterator[_Exclusion]:
    public = snapshot.public_jobs
    if not public.accepted:
        yield _Exclusion(
            reason=ExclusionReason.NOT_IN_PUBLIC_POOL,
            jobs="public jobs",
            need="accept_public_jobs = true",
            have=_pauses(public) or "accept_public_jobs is false",
            clears_when="the owner's limits allow them" if public.wanted else "its owner allows them",
        )
    most = snapshot.owner.max_concurrent_jobs
    if most is not None and (most == 0 or (jobs_in_flight is not None and jobs_in_flight >= most)):
        yield _Exclusion(
            reason=ExclusionReason.CAPACITY_EXCEEDED,
            need="a free slot",
            have=f"{jobs_in_flight or 0} jobs in flight, of {most} slots",
            clears_when="a job ends" if most else "its owner states more than 0 max_concurrent_jobs",
        )


def _pauses(public: PublicJobsState) -> str:
    return f"a pause: {'; '.join(pause.detail for pause in public.pauses)}" if public.pauses else ""


def _of_machine(snapshot: Snapshot) -> Iterator[_Exclusion]:
    inventory = snapshot.inventory
    if inventory is None:
        yield _Exclusion(reason=ExclusionReason.GPU_UNAVAILABLE, need="a usable GPU", have="not probed yet")
        return
    if not inventory.gpu.usable:
        yield _Exclusion(
            reason=ExclusionReason.GPU_UNAVAILABLE,
            need="a usable GPU",
            have=inventory.gpu.detail or "no usable GPU",
        )
    parents = {gpu.parent_uuid for gpu in inventory.gpu.gpus}
    for gpu in inventory.gpu.gpus:
        if gpu.uuid in parents:
            continue
        codes = {reason.code for reason in gpu.reasons}
        if not gpu.health.usable:
            yield _of_gpu(gpu, jobs="jobs", need="a usable GPU")
        elif codes & NO_NEW_JOBS:
            yield _of_gpu(gpu, jobs="new jobs", need="a GPU that waits for no reset or reboot")
        elif codes & ONE_GPU_ONLY:
            yield _of_gpu(gpu, jobs="jobs of several GPUs", need="a GPU that works together with others")
    broken = [
        model for model in inventory.models if not (model.enabled and model.status is ModelStatus.READY)
    ]
    for model in broken[:_MAX_MODELS]:
        yield _of_model(model)


def _of_gpu(gpu: Gpu, *, jobs: str, need: str) -> _Exclusion:
    reasons = "; ".join(f"{reason.detail} ({reason.code})" for reason in gpu.reasons) or "no reason is known"
    steps = "; ".join(gpu_steps((gpu,)))
    index = "?" if gpu.index is None else str(gpu.index)
    return _Exclusion(
        reason=ExclusionReason.GPU_UNAVAILABLE,
        jobs=f"{jobs} on GPU {index}",
        need=need,
        have=f"{gpu.health.value}: {reasons}",
        clears_when=f"it is repaired: {steps}" if steps else "",
    )


def _of_model(model: Model) -> _Exclusion:
    state = model.status.value if model.enabled else "disabled"
    return _Exclusion(
        reason=ExclusionReason.MODEL_NOT_AVAILABLE,
        jobs=f"jobs that ask for {model.model_id}",
        need=f"{model.model_id} {model.version} ready",
        have=f"{state}: {model.detail}" if model.detail else state,
    )
