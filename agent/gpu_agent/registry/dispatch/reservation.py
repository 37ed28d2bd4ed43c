"""What the reservation of a waiting job keeps from other jobs on a node (§5.4).

Others may have what is left over once the claims end that were there when the reservation was made. A GPU
that no end of a claim brings back counts for nothing: one that is cordoned, that another node gives out, or
that is in use without a claim.
"""

from gpu_agent.registry.dispatch.candidate import Candidate
from gpu_agent.registry.gpus import GpuState
from gpu_agent.registry.job import Demand, sharing_of


def is_kept_from(candidate: Candidate, demand: Demand) -> bool:
    """Whether a job would take what a waiting job has reserved on a node.

    It may take what is left over once the claims end that were there when the reservation was made.
    """
    reservation, record = candidate.reservation, candidate.record
    if reservation is None or demand.job.job_id == reservation.job_id:
        return False
    if demand.job.priority > reservation.priority:
        return False
    later = [claim for claim in record.claims.values() if claim.granted_at >= reservation.since]
    slots_left = record.slots - len(later) - 1
    gpus = reservation.demand.fitting(candidate.left)
    taken = sum(len(grant.gpu_uuids) for claim in later if (grant := claim.on(record.node_id)) is not None)
    more = 0 if demand.sharing is None else demand.gpus.number
    has_worker = demand.sharing is None or any(sharing_of(claim.job) is None for claim in later)
    if has_worker and not (candidate.has_foreign_jobs or record.unclaimed_use):
        more += 1  # else the worker uses one of the GPUs that `left` leaves out
    return slots_left < 1 or gpus - taken - more < reservation.demand.number


def claimant_of(demand: Demand) -> object:
    """Return all that `is_kept_from` reads of a job, but for its id: equal ones are kept from the same."""
    return demand.sharing, demand.job.priority, demand.gpus.number


def obtainable(candidate: Candidate, usable: list[GpuState]) -> list[GpuState]:
    """Return the usable GPUs that neither a cordon nor another node's declaration keeps from new claims."""
    cordons, elsewhere = candidate.record.desired.gpu_cordons, candidate.elsewhere
    if not (cordons or elsewhere):
        return usable
    return [
        gpu
        for gpu in usable
        if gpu.uuid not in elsewhere and not {gpu.uuid, gpu.parent_uuid} & cordons.keys()
    ]


def left_after_claims(candidate: Candidate, usable: list[GpuState]) -> list[GpuState]:
    """Return the usable GPUs that can be given out exclusively once the present claims have ended (§5.4)."""
    gpus, in_use = obtainable(candidate, usable), candidate.record.unclaimed_use
    left = [gpu for gpu in gpus if gpu.uuid not in in_use] if in_use else gpus
    worker_needs_another = candidate.has_foreign_jobs and len(left) == len(gpus)
    return left[1:] if worker_needs_another else left
