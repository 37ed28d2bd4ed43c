"""Which GPUs of one node a job can get (§5.1): usable, held by no other claim, with enough memory.

A claim that shares a GPU reserves memory that its job will use. What the node's own figures show already is
not subtracted again. Memory reserved on a GPU that the node no longer declares may be used on any of its
GPUs, so it is subtracted from each of them until the claim ends.
"""

from collections import Counter
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from gpu_agent.registry.dispatch.candidate import Candidate, Reservations, known_percent
from gpu_agent.registry.gpus import STEP_MB, Gpus, GpuState
from gpu_agent.registry.job import GpuDemand, GpuKind, GpuSet, HeldGrant, Sharing, meets
from gpu_agent.registry.node import NodeRecord

_ALL = 100
_UNKNOWN_USE_PERCENT = 50.0


class GpuAvailability(NamedTuple):
    """The GPUs of a node that can take a job, in the order in which they were declared."""

    usable: list[GpuState]
    unheld: list[GpuState]
    """Those that no exclusive claim holds, and no cordon or other node: jobs may share them."""
    free: list[GpuState]
    """Those that can be given out exclusively."""


def availability(candidate: Candidate) -> GpuAvailability:
    """Sort a node's usable GPUs by who may have them."""
    usable = candidate.record.gpus.usable_states()
    unheld = [gpu for gpu in usable if _why_held(candidate, gpu) is None]
    if is_list_outdated(candidate):
        return GpuAvailability(usable, unheld, [])
    free = [gpu for gpu in unheld if _why_in_use(candidate, gpu) is None]
    if candidate.slot_only or has_foreign_jobs(candidate.record):
        worker = _gpu_of_worker(candidate, unheld, free)
        free = [gpu for gpu in free if gpu is not worker]
    return GpuAvailability(usable, unheld, free)


def gpu_set(gpus: Iterable[GpuState]) -> GpuSet:
    """Count GPUs by kind."""
    return _counted([gpu.kind for gpu in gpus])


def declared_set(gpus: Gpus) -> GpuSet:
    """Count by kind the GPUs that could take a job if they were sound."""
    declared = zip(gpus.values(), gpus.kinds, strict=True)
    return _counted([kind for gpu, kind in declared if not gpu.is_parent])


def why_not_free(candidate: Candidate, gpu: GpuState) -> str | None:
    """Say why a usable GPU cannot be given out exclusively; None where it can."""
    why = _why_held(candidate, gpu)
    if why is None and is_list_outdated(candidate):
        why = "claims of an earlier list of GPUs have not ended"
    if why is None:
        why = _why_in_use(candidate, gpu)
    if why is None and gpu not in availability(candidate).free:
        why = "left to jobs without GPUs of their own"
    return why


def has_free_gpus(candidate: Candidate, demand: GpuDemand) -> bool:
    """Whether a node has enough GPUs for a job that nothing else holds; unknown memory is not enough."""
    if demand.sharing is Sharing.MEMORY:
        if has_a_step_more(candidate, demand):
            return meets(candidate.unheld, demand)
        return _suffices(demand, (gpu for gpu, _ in _with_free_memory(candidate, demand)))
    return meets(candidate.free if demand.sharing is Sharing.EXCLUSIVE else candidate.unheld, demand)


def has_a_step_more(candidate: Candidate, demand: GpuDemand) -> bool:
    """Whether as many GPUs of one kind as a job needs surely have the memory, by what the index holds."""
    free, number = candidate.free_memory, demand.number
    return (
        number <= len(free) and free[number - 1] > demand.memory_mb // STEP_MB and len(candidate.unheld) == 1
    )


def choose_gpus(candidate: Candidate, demand: GpuDemand) -> list[GpuState]:
    """Choose GPUs of an eligible node for a job: all whole, or all MIG devices.

    Exclusively those that work alone, then the smallest, so that better ones stay free. Shared: those that
    are shared already, so that whole ones stay free, then most free memory, then least busy.
    """
    if demand.sharing is None:
        return []
    if demand.sharing is Sharing.EXCLUSIVE:
        gpus = candidate.record.gpus.in_order
        if len(candidate.free) == 1:  # all of one kind: the node is eligible, so each of them fits
            return [gpus[place] for place in candidate.free_places[: demand.number]]
        ranked = [gpu for place in candidate.free_places if demand.fits((gpu := gpus[place]).kind)]
    else:
        alike = _alike_by_memory(candidate, demand)
        if alike is not None:
            return alike
        sharable = sorted(_with_free_memory(candidate, demand), key=lambda one: _shared_rank(candidate, *one))
        ranked = [gpu for gpu, _ in sharable]
    for is_mig in (False, True):
        alike = [gpu for gpu in ranked if gpu.kind.is_mig is is_mig]
        if len(alike) >= demand.number:
            return alike[: demand.number]
    return []


def free_memory(candidate: Candidate, demand: GpuDemand) -> list[int | None]:
    """Return the free memory of each GPU that a job could share; None where it is unknown."""
    return [
        available_mb(candidate, gpu)
        for gpu in sharable_gpus(candidate, availability(candidate).unheld)
        if demand._replace(memory_mb=0).fits(gpu.kind)
    ]


def used_mb(record: NodeRecord, gpu: GpuState) -> int:
    """Return the memory in use on a GPU; the node's mean where it reports none for this one.

    Never less than 0 or more than the GPU has, whatever the node reports.
    """
    used, memory = gpu.memory_used_mb, gpu.memory_mb
    if used is not None:
        return max(used, 0) if memory is None else min(max(used, 0), memory)
    usage = record.liveness.usage
    share = None if usage is None else known_percent(usage.gpu_mem_percent)
    return 0 if share is None or memory is None else int(memory * share / 100)


def free_mb(record: NodeRecord, gpu: GpuState, reserved: Reservations) -> int | None:
    """Return the memory that a new job can use; None where the GPU's memory is unknown."""
    if gpu.memory_mb is None:
        return None
    used = used_mb(record, gpu)
    if not reserved:
        return gpu.memory_mb - used
    here = reserved.get(gpu.uuid)
    unshown = 0 if here is None else here.unshown_mb(used)
    return gpu.memory_mb - used - unshown - _undeclared_mb(record, reserved)


def available_mb(candidate: Candidate, gpu: GpuState) -> int | None:
    """Return the memory that the job that is placed now can use: what is held for it, it may have again."""
    free, reclaiming = free_mb(candidate.record, gpu, candidate.reserved), candidate.reclaiming
    if free is None or not reclaiming:
        return free
    declared = candidate.record.gpus.keys()
    undeclared = sum(one for uuid, one in reclaiming.items() if uuid not in declared)
    return free + reclaiming.get(gpu.uuid, 0) + undeclared


def reclaimable(candidate: Candidate, held: HeldGrant) -> dict[str, int]:
    """Return what is held for a job by GPU, in MiB: its new claim on this node ends the hold (§5.3).

    What the GPU shows in use may be the job's own, unless the node reports jobs and not this one.
    """
    record, need_mb = candidate.record, held.claim.job.min_gpu_memory_mb or 0
    gone = record.jobs.ids is not None and held.claim.job_id not in record.jobs.ids
    own = dict.fromkeys(held.gpu_uuids, 0)
    for uuid in own:
        reserved, gpu = candidate.reserved.get(uuid), record.gpus.get(uuid)
        if reserved is not None and gpu is None:
            own[uuid] = need_mb  # which is reserved on each GPU in its place
        elif reserved is not None and gpu is not None:
            own[uuid] = min(need_mb, reserved.unshown_mb(used_mb(record, gpu))) if gone else need_mb
    return own


def reading_at(record: NodeRecord) -> float:
    """Return when the node's last GPU reading was made, in monotonic seconds."""
    liveness = record.liveness
    if liveness.last_heartbeat_at is None:
        return float("-inf")
    return liveness.last_heartbeat_at - (liveness.probe_age_seconds or 0.0)


def has_foreign_jobs(record: NodeRecord) -> bool:
    """Whether a node reports a job that holds no claim here, and for which no GPU is held here."""
    ids = record.jobs.ids
    if not ids or ids <= record.claims.keys():
        return False
    return bool(
        ids - record.claims.keys() - {one.claim.job_id for one in record.held.values() if one.gpu_uuids}
    )


def is_list_outdated(candidate: Candidate) -> bool:
    """Whether claims name GPUs by their positions in a list that the node no longer declares."""
    record, list_id = candidate.record, candidate.record.gpus.list_id
    if not list_id and not any(uuid.startswith("#") for uuid in (*candidate.exclusive, *candidate.reserved)):
        return False
    held = [one.claim for one in record.held.values() if one.claim.claim_id != candidate.reclaimed]
    claims = (*record.claims.values(), *held)
    grants = (claim.on(record.node_id) for claim in claims)
    return any(grant is not None and grant.gpu_uuids and grant.gpu_list != list_id for grant in grants)


def sharable_gpus(candidate: Candidate, unheld: list[GpuState]) -> list[GpuState]:
    """Return those of the unheld GPUs that claims may share: none that may be an exclusive claim's."""
    return [] if candidate.exclusive and is_list_outdated(candidate) else unheld


def is_used_without_claim(candidate: Candidate, gpu: GpuState) -> bool:
    """Whether processes on a GPU belong to no claim (§5.1); unknown is no."""
    if not gpu.processes or candidate.slot_only:
        return False
    if gpu.uuid in candidate.exclusive or gpu.uuid in candidate.reserved:
        return False
    return reading_at(candidate.record) > candidate.ended_at.get(gpu.uuid, float("-inf"))


def used_without_claim(candidate: Candidate, gpus: Iterable[GpuState]) -> frozenset[str]:
    """Return those of these GPUs that processes of no claim use, but for cordoned ones (§5.5)."""
    cordons = candidate.record.desired.gpu_cordons
    used = [gpu for gpu in gpus if gpu.processes and is_used_without_claim(candidate, gpu)]
    return frozenset([gpu.uuid for gpu in used if gpu.uuid not in cordons])


def _counted(kinds: list[GpuKind]) -> GpuSet:
    if kinds and kinds.count(kinds[0]) == len(kinds):  # as almost always
        return ((kinds[0], len(kinds)),)
    return tuple(sorted(Counter(kinds).items()))


def _suffices(demand: GpuDemand, gpus: Iterable[GpuState]) -> bool:
    whole = mig = 0
    for gpu in gpus:
        if gpu.kind.is_mig:
            mig += 1
        else:
            whole += 1
    return whole >= demand.number or mig >= demand.number


def _why_held(candidate: Candidate, gpu: GpuState) -> str | None:
    """Say why no other job may use a GPU at all."""
    record, exclusive = candidate.record, candidate.exclusive
    cordons = record.desired.gpu_cordons
    if exclusive or candidate.reserved:
        relatives = _relatives(record, gpu)
        for uuid in relatives:
            if uuid in exclusive and uuid not in candidate.reclaiming:
                return str(exclusive[uuid])
        for uuid in relatives[1:]:
            if _is_shared(candidate, uuid):
                return f"shared by claims, as {uuid}"
    if cordons:
        for uuid in (gpu.uuid, gpu.parent_uuid or ""):
            if uuid in cordons:
                return str(cordons[uuid])
    return candidate.why_elsewhere(candidate, gpu)


def _why_in_use(candidate: Candidate, gpu: GpuState) -> str | None:
    """Say why a GPU that is not held cannot be given out exclusively."""
    if candidate.reserved and _is_shared(candidate, gpu.uuid):
        return "shared by other claims"
    if gpu.processes and is_used_without_claim(candidate, gpu):
        return f"in use without a claim: {gpu.processes} processes"
    return None if gpu.kind.memory_mb else "its memory is unknown"


def _is_shared(candidate: Candidate, uuid: str) -> bool:
    """Whether others than the job that is placed now share a GPU."""
    reserved = candidate.reserved.get(uuid)
    return reserved is not None and reserved.claims > (uuid in candidate.reclaiming)


def _relatives(record: NodeRecord, gpu: GpuState) -> tuple[str, ...]:
    """List a GPU, its MIG parent and its MIG devices: while one is claimed, the others are not free."""
    if not record.gpus.devices:  # as almost always
        return (gpu.uuid,)
    devices = record.gpus.devices.get(gpu.uuid, ())
    if gpu.parent_uuid is None:
        return (gpu.uuid, *devices)
    return (gpu.uuid, gpu.parent_uuid, *devices)


def _gpu_of_worker(candidate: Candidate, unheld: list[GpuState], free: list[GpuState]) -> GpuState | None:
    """Return the GPU on which jobs without GPUs of their own run: the first with a process of no claim."""
    busy = (gpu for gpu in unheld if gpu.processes and gpu.uuid not in candidate.reserved)
    return next(busy, free[0] if free else None)


def _with_free_memory(candidate: Candidate, demand: GpuDemand) -> Iterator[tuple[GpuState, int]]:
    gpus = list(candidate.record.gpus.values())
    for place in candidate.shared:
        gpu = gpus[place]
        if demand.fits(gpu.kind):
            free = available_mb(candidate, gpu)
            if free is not None and free >= demand.memory_mb:
                yield gpu, free


def _shared_rank(candidate: Candidate, gpu: GpuState, free: int) -> tuple[bool, int, float]:
    return gpu.uuid not in candidate.reserved, -free, _use(gpu.utilization_percent)


def _use(utilization_percent: float | None) -> float:
    known = known_percent(utilization_percent)
    return _UNKNOWN_USE_PERCENT if known is None else known


def _alike_by_memory(candidate: Candidate, demand: GpuDemand) -> list[GpuState] | None:
    """Choose for sharing by the columns of a heartbeat, as `_shared_rank` does, without a look at each GPU.

    Of equal GPUs the one with the least memory in use has the most free. None where they are of several kinds
    or shared already, or where a figure is unknown.
    """
    gpus = candidate.record.gpus
    if len(candidate.unheld) != 1 or candidate.reserved or candidate.reclaiming:
        return None
    figures = gpus.memory_and_use
    if figures is None:
        return None
    states = gpus.in_order
    use = [one if 0 <= one <= _ALL else _UNKNOWN_USE_PERCENT for one in figures[len(states) :]]
    ranked = sorted([(figures[place], use[place], place) for place in candidate.shared])
    return [states[place] for _, _, place in ranked[: demand.number]]


def _undeclared_mb(record: NodeRecord, reserved: Reservations) -> int:
    """Return what is reserved on GPUs that the node no longer declares, as after a change of schema."""
    declared = record.gpus.keys()
    if reserved.keys() <= declared:
        return 0
    return sum(one.needs_mb for uuid, one in reserved.items() if uuid not in declared)
