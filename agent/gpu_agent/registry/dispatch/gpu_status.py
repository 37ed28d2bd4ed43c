"""What each GPU of a node is for jobs now: not usable, claimed, idle, used without a claim, closed, or free.

Each GPU has one status: the first that applies, in the order of `GpuStatus`. *Free* is dispatch's own answer:
a job that asks for one GPU would get it. So the status reads what the index holds of the node, and asks no
filter again but that of reservations.
"""

from collections.abc import Callable, Iterator

from gpu_agent.registry.dispatch.candidate import Candidate
from gpu_agent.registry.dispatch.reservation import is_kept_from
from gpu_agent.registry.gpus import GpuState
from gpu_agent.registry.job import Demand, Job
from gpu_agent.wire.codes import GpuStatus
from gpu_agent.wire.inventory import Health

_ONE_GPU = Demand.of(Job(job_id="", gpu_count=1))


def gpu_statuses(candidate: Candidate, is_idle: Callable[[str], bool]) -> tuple[GpuStatus, ...]:
    """Return the status of each GPU in the order of the declaration, without the parents of MIG devices.

    `is_idle` says of a job whether its claim leaves its GPUs idle.
    """
    gpus = candidate.record.gpus
    is_open = candidate.unschedulable is None and not is_kept_from(candidate, _ONE_GPU)
    if gpus.all_ok and len(candidate.free_places) == sum(name is not None for name in gpus.names):
        status = GpuStatus.FREE if is_open else GpuStatus.NOT_SCHEDULABLE
        return (status,) * len(candidate.free_places)
    return tuple(_each(candidate, is_idle, is_open=is_open))


def is_degraded(gpu: GpuState) -> bool:
    """Whether a GPU that answers has a fault: it is degraded, or failed a required check."""
    return gpu.health == Health.DEGRADED or (gpu.health == Health.OK and bool(gpu.failed_checks))


def _each(candidate: Candidate, is_idle: Callable[[str], bool], *, is_open: bool) -> Iterator[GpuStatus]:
    record, free = candidate.record, frozenset(candidate.free_places) if is_open else frozenset[int]()
    worker = _place_of_worker(candidate)
    sharing = _sharing_jobs(candidate)
    for place, gpu in enumerate(record.gpus.values()):
        if gpu.is_parent:
            continue
        holder = candidate.exclusive.get(gpu.uuid)
        jobs = [holder.job_id] if holder is not None and not holder.ended else sharing.get(gpu.uuid, [])
        if gpu.health == Health.LOST:
            yield GpuStatus.LOST
        elif gpu.health not in {Health.OK, Health.DEGRADED}:
            yield GpuStatus.UNKNOWN
        elif holder is not None or gpu.uuid in candidate.reserved:
            idle = bool(jobs) and all(is_idle(job_id) for job_id in jobs)
            yield GpuStatus.IDLE if idle else GpuStatus.CLAIMED
        elif gpu.uuid in record.unclaimed_use:
            yield GpuStatus.USED_WITHOUT_CLAIM
        elif place == worker:
            yield GpuStatus.CLAIMED if candidate.slot_only else GpuStatus.USED_WITHOUT_CLAIM
        else:
            yield GpuStatus.FREE if place in free else GpuStatus.NOT_SCHEDULABLE


def _sharing_jobs(candidate: Candidate) -> dict[str, list[str]]:
    """Return the jobs whose claims share each GPU, by UUID."""
    jobs: dict[str, list[str]] = {}
    if candidate.reserved:
        for claim in candidate.record.claims.values():
            grant = claim.on(candidate.record.node_id)
            for uuid in () if grant is None else grant.gpu_uuids:
                jobs.setdefault(uuid, []).append(claim.job_id)
    return jobs


def _place_of_worker(candidate: Candidate) -> int | None:
    """Return the place of the GPU that is left to jobs without GPUs of their own; None for none."""
    record = candidate.record
    if not (candidate.slot_only or candidate.has_foreign_jobs):
        return None
    gpus = list(record.gpus.values())
    free = frozenset(candidate.free_places)
    left = [
        place
        for place in candidate.shared
        if place not in free
        and gpus[place].kind.memory_mb
        and gpus[place].uuid not in candidate.reserved
        and gpus[place].uuid not in record.unclaimed_use
    ]
    return min(left, key=lambda place: (not gpus[place].processes, place), default=None)
