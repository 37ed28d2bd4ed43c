"""Filters by a node's GPUs: which are usable, which are free, and what a waiting job keeps of them."""

from collections import Counter
from collections.abc import Iterable, Iterator

from gpu_agent.registry.dispatch.candidate import Candidate, QueueReservation
from gpu_agent.registry.dispatch.filter_row import Filter, GpuKey, NodeExclusion, NodeQuestion, Shortfall
from gpu_agent.registry.dispatch.gpu_allocation import (
    availability,
    free_memory,
    has_free_gpus,
    why_not_free,
)
from gpu_agent.registry.dispatch.reservation import is_kept_from
from gpu_agent.registry.gpus import GpuState
from gpu_agent.registry.job import Demand, GpuDemand, Sharing, meets
from gpu_agent.registry.node import NodeRecord
from gpu_agent.registry.quoting import clip_quote, listed
from gpu_agent.wire.codes import ExclusionReason

_ANY_GPU = GpuDemand(Sharing.MEMORY, 1, "", 0, (0, 0))


def _too_few_gpus(candidate: Candidate, demand: Demand) -> Shortfall | None:
    if meets(candidate.usable, demand.gpus):
        return None
    fitting = sum(number for kind, number in candidate.usable if demand.gpus.fits(kind))
    several = demand.gpus.number > 1 or demand.gpus.on_several_nodes
    number = demand.gpus.number
    which = "usable GPU" if number == 1 else "usable GPUs"
    if several and any(kind.is_single for kind, _ in candidate.usable):
        which = "usable GPUs that work together"
    return Shortfall(f"{number} {which}{_of_demand(demand)}", f"{fitting} ({_gpus(candidate.record)})")


def _jobs_with_more_gpus(asked: NodeQuestion) -> Iterator[NodeExclusion]:
    record = asked.candidate.record
    usable = record.gpus.usable_states()
    all_usable = all(gpu.usable or gpu.is_parent for gpu in record.gpus.values())
    yield NodeExclusion.of(
        ExclusionReason.GPU_UNAVAILABLE,
        Shortfall(_count(len(usable) + 1, "usable GPU"), f"{len(usable)} ({_gpus(record)})"),
        jobs=_more_gpus(sorted(Counter(gpu.name for gpu in usable).items())),
        clears_when="other GPUs are put in" if all_usable else "the GPUs that are not usable recover",
        is_limit=all_usable,
    )
    together = [gpu for gpu in usable if not gpu.kind.is_single]
    if len(together) < len(usable):
        yield NodeExclusion.of(
            ExclusionReason.GPU_UNAVAILABLE,
            Shortfall(
                f"{max(len(together), 1) + 1} GPUs that work together", f"{len(together)} ({_gpus(record)})"
            ),
            jobs=_jobs_together(together),
            clears_when="the fabric between its GPUs recovers",
        )


def _jobs_together(together: list[GpuState]) -> str:
    """Say which jobs need more GPUs than work together."""
    if not together:
        return "jobs that need several GPUs, on this node or on several"
    return f"{_more_gpus(sorted(Counter(gpu.name for gpu in together).items()))}, where they need several"


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def _more_gpus(usable: list[tuple[str, int]], what: str = "GPUs") -> str:
    total = sum(count for _, count in usable)
    if not usable:
        return f"jobs that need {what}"
    if len(usable) > 1:
        each = ", ".join(f"{count} {clip_quote(name)}" for name, count in usable)
        return f"jobs that need more than {total} {what} ({each}), or GPUs of another name"
    other = f", or GPUs other than {clip_quote(usable[0][0])}"
    return f"jobs that need more than {total} {what.removesuffix('s') if total == 1 else what}{other}"


def _number(gpu: GpuState) -> str:
    """Name a GPU as its driver numbers it; a MIG device shares its GPU's number, and is named by its UUID."""
    return clip_quote(gpu.uuid) if gpu.parent_uuid else f"GPU {gpu.index}"


def _gpus(record: NodeRecord) -> str:
    """Count a node's GPUs by name and health, without the parents of MIG devices."""
    states: dict[str, Counter[str]] = {}
    for gpu in record.gpus.values():
        if not gpu.is_parent:
            states.setdefault(gpu.name, Counter())[gpu.condition_for_jobs] += 1
    parts = (f"{clip_quote(name)}: {_counted(counted)}" for name, counted in states.items())
    return listed(parts, in_order=True, empty="no GPU")


def _counted(states: Counter[str]) -> str:
    return " and ".join(f"{number} {clip_quote(state)}" for state, number in states.items())


def _too_few_free_gpus(candidate: Candidate, demand: Demand) -> Shortfall | None:
    if has_free_gpus(candidate, demand.gpus):
        return None
    count = demand.gpus.number
    if demand.sharing is Sharing.MEMORY:
        each = "1 GPU" if count == 1 else f"each of {count} GPUs"
        have = _most_free(free_memory(candidate, demand.gpus), count)
        return Shortfall(f"{demand.gpus.memory_mb} MiB free on {each}{_of_demand(demand)}", have)
    which = "a GPU that no exclusive claim holds" if demand.sharing is None else _count(count, "free GPU")
    return Shortfall(f"{which}{_of_demand(demand)}", _holders(candidate, demand))


def _holders(candidate: Candidate, demand: Demand) -> str:
    """Say of each GPU that fits a job why it is not free."""
    fitting = [gpu for gpu in candidate.record.gpus.usable_states() if demand.gpus.fits(gpu.kind)]
    free = [gpu for gpu in availability(candidate).free if demand.gpus.fits(gpu.kind)]
    why = Counter(why_not_free(candidate, gpu) or "free" for gpu in fitting if gpu not in free)
    held = listed((f"{count} {one}" if count > 1 else one for one, count in why.items()), in_order=True)
    return f"{len(free)} free of {len(fitting)}; {held}" if why else f"{len(free)} free of {len(fitting)}"


def _jobs_with_more_free_gpus(asked: NodeQuestion) -> Iterator[NodeExclusion]:
    candidate = asked.candidate
    usable, unheld, free = availability(candidate)
    if usable and len(free) < len(usable):
        held: dict[str, list[str]] = {}
        for gpu in usable:
            if (why := why_not_free(candidate, gpu)) is not None:
                held.setdefault(why, []).append(_number(gpu))
        holders = (f"{listed(which, in_order=True)} {why}" for why, which in held.items())
        yield NodeExclusion.of(
            ExclusionReason.CAPACITY_EXCEEDED,
            Shortfall(
                _count(len(free) + 1, "free GPU"), f"{len(free)} free; {listed(holders, in_order=True)}"
            ),
            jobs=_more_gpus(sorted(Counter(gpu.name for gpu in free).items()), "whole GPUs"),
            clears_when=_until_free(candidate, "the claims on its GPUs end, and their jobs with them"),
        )
    if usable and not unheld:
        yield NodeExclusion.of(
            ExclusionReason.CAPACITY_EXCEEDED,
            Shortfall("a GPU that no exclusive claim holds", "none"),
            jobs="jobs without GPUs of their own",
            clears_when=_until_free(candidate, "an exclusive claim on one of its GPUs ends"),
        )
    memory = free_memory(candidate, _ANY_GPU)
    freest = sorted((max(one, 0) for one in memory if one is not None), reverse=True)
    most = freest[0] if freest else 0
    sizes = [gpu.memory_mb or 0 for gpu in usable]
    yield NodeExclusion.of(
        ExclusionReason.CAPACITY_EXCEEDED,
        Shortfall(f"more than {most} MiB free", _most_free(memory, 1)),
        jobs=_more_memory(freest),
        clears_when="jobs end and free it" if most < max(sizes, default=0) else "larger GPUs are put in",
        is_limit=True,
    )


def _until_free(candidate: Candidate, claims_end: str) -> str:
    """Say what ends that usable GPUs are not free: the end of claims, or that of cordons."""
    record = candidate.record
    usable = record.gpus.usable_states()
    reasons = {why for gpu in usable if (why := why_not_free(candidate, gpu)) is not None}
    cordons = {str(cordon) for cordon in record.desired.gpu_cordons.values()}
    if not reasons & cordons:
        return claims_end
    uncordoned = "`registry node uncordon` with --gpu"
    return uncordoned if reasons <= cordons else f"{claims_end}, or {uncordoned}"


def _more_memory(freest: list[int]) -> str:
    if not freest:
        return "jobs that share GPU memory"
    several = [count for count, free in enumerate(freest, start=1) if count > 1 and free]
    fewest_and_most = dict.fromkeys((*several[:1], *several[-1:]))
    more = [f"{freest[count - 1]} on each of {count}" for count in fewest_and_most]
    besides = f" ({', '.join(more)})" if more else ""
    return f"jobs that share more than {freest[0]} MiB of GPU memory{besides}"


def _reserved_for_waiting_job(candidate: Candidate, demand: Demand) -> Shortfall | None:
    """Keep what the first waiting job needs, from jobs of the same or a lower priority (§5.4)."""
    return _reserved(candidate.reservation) if is_kept_from(candidate, demand) else None


def _reserved(reservation: QueueReservation | None) -> Shortfall | None:
    if reservation is None:
        return None
    job = f"job {clip_quote(reservation.job_id)}, which waits for {reservation.demand.number} GPUs"
    return Shortfall("capacity that no waiting job needs", f"reserved for {job}")


def _jobs_after_waiting_job(asked: NodeQuestion) -> Iterator[NodeExclusion]:
    reservation = asked.candidate.reservation
    shortfall = _reserved(reservation)
    if reservation is not None and shortfall is not None:
        jobs = f"jobs of priority {reservation.priority} or lower that would take what it waits for"
        clears_when = "that job gets its claim, or waits no more"
        yield NodeExclusion.of(
            ExclusionReason.CAPACITY_EXCEEDED, shortfall, jobs=jobs, clears_when=clears_when
        )


def _most_free(free: Iterable[int | None], count: int) -> str:
    """Say how much memory is free at most: on one GPU, or on each of several."""
    known = sorted((max(one, 0) for one in free if one is not None), reverse=True)
    if len(known) < count:
        return "no such GPU" if count == 1 else f"{len(known)} such GPUs"
    return f"{known[count - 1]} MiB at most" + ("" if count == 1 else f" on each of {count}")


def _of_demand(demand: Demand) -> str:
    """Say which GPUs a job needs."""
    job, words = demand.job, []
    if job.gpu_name:
        words.append(f"named {clip_quote(job.gpu_name)}")
    if job.min_gpu_memory_mb and demand.sharing is Sharing.EXCLUSIVE:
        words.append(f"with {job.min_gpu_memory_mb} MiB")
    if job.min_compute_capability:
        words.append(f"of compute capability {clip_quote(job.min_compute_capability)}")
    return f" {' '.join(words)}" if words else ""


GPU_FILTERS: tuple[Filter, ...] = (
    Filter(
        ExclusionReason.GPU_UNAVAILABLE,
        key=GpuKey.USABLE,
        shortfall=_too_few_gpus,
        exclusions=_jobs_with_more_gpus,
    ),
    Filter(
        ExclusionReason.CAPACITY_EXCEEDED,
        key=GpuKey.FREE,
        shortfall=_too_few_free_gpus,
        exclusions=_jobs_with_more_free_gpus,
    ),
    Filter(
        ExclusionReason.CAPACITY_EXCEEDED,
        key=GpuKey.RESERVED,
        shortfall=_reserved_for_waiting_job,
        exclusions=_jobs_after_waiting_job,
    ),
)
