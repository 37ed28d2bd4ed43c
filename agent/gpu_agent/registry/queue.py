"""The queue: jobs that wait for capacity, by priority, then arrival (§5.4).

A job keeps its place while a request for it is open, and for a while after the last one closed. Nothing is
granted while no request is open. Against starvation at most one job has a reservation: the first in the
order that has waited long enough and asks for whole GPUs.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from math import inf
from operator import attrgetter

from gpu_agent.registry.dispatch.dispatch import Dispatch
from gpu_agent.registry.dispatch.index import Freed
from gpu_agent.registry.dispatch.reservation import claimant_of
from gpu_agent.registry.events import ClaimRequested
from gpu_agent.registry.job import Demand, GpuDemand, Job, Sharing, demands_of, size_of
from gpu_agent.registry.settings import Thresholds

STAYS_SECONDS = 30.0
"""A job keeps its place for so long after its last request closed."""

MOST_OF_ONE_OWNER = 256

MOST_BYTES = 32 * 1024 * 1024
"""What the names in all waiting jobs take, roughly."""

RESERVED_SECONDS = 300.0
"""A node that is reserved for so long in vain is not chosen again for that job."""


@dataclass(slots=True, eq=False)
class Waiting:
    """One job in the queue."""

    newest: ClaimRequested
    """The newest request; its claim id names the claim that the job gets."""
    number: int
    """Of its arrival."""
    since: float
    demand: Demand = field(init=False)
    claimant: object = field(init=False)
    """By what a reservation of another job keeps capacity from it."""
    order: tuple[int, int] = field(init=False)
    """Its place: by priority, then arrival."""
    requests: dict[int, float] = field(default_factory=dict)
    """By the ref of each open request: until when it waits."""
    left_at: float = inf
    """When its last request closed."""
    reserved: dict[str, float] = field(default_factory=dict)
    """The nodes that are reserved for it, and since when."""
    given_up: set[str] = field(default_factory=set)
    """Nodes that were reserved for it in vain."""

    @property
    def job(self) -> Job:
        """What it waits for."""
        return self.newest.job

    @property
    def owner(self) -> str | None:
        """Who asked for it first; None with auth off."""
        return self.newest.requester.name

    def __post_init__(self) -> None:
        """Read the first request."""
        self.update(self.newest)

    def update(self, newest: ClaimRequested) -> None:
        """Take in the newest request."""
        self.newest, self.demand = newest, Demand.of(newest.job)
        self.claimant = claimant_of(self.demand)
        self.order = (-newest.job.priority, self.number)


_ORDER = attrgetter("order")


class ClaimQueue:
    """All jobs that wait. Times are monotonic seconds."""

    def __init__(self, thresholds: Thresholds, dispatch: Dispatch) -> None:
        self._thresholds = thresholds
        self._dispatch = dispatch
        self._by_job: dict[str, Waiting] = {}
        self._by_ref: dict[int, Waiting] = {}
        self._arrivals = 0
        self._bytes = 0
        self._by_gpus = _JobsByGpus()
        self.memory_jobs = 0
        """How many of the jobs wait for GPU memory that they share."""
        self._reserving: Waiting | None = None
        self._is_first_known = False
        """True while it is the first that may have the reservation, until a deadline passes."""
        self._reserved_at = -inf
        """When it was last decided who has the reservation."""
        self._reserved_at_change = -1
        """`Dispatch.changes` then."""
        self._earliest: float | None = None
        """The earliest of `_deadlines`, which the fleet reads after each event; None where it may differ."""

    def __len__(self) -> int:
        return len(self._by_job)

    @property
    def deadline(self) -> float:
        """When something is due; the past where capacity became free, never where nothing waits."""
        if not self._by_job:
            return inf
        dispatch = self._dispatch
        if (self._by_ref and dispatch.has_freed()) or dispatch.changes != self._reserved_at_change:
            return -inf
        return self._next_deadline()

    def of(self, job_id: str) -> Waiting | None:
        """Return a job's entry."""
        return self._by_job.get(job_id)

    def place_of(self, job_id: str) -> int | None:
        """Return a job's place in the order, from 1; None where it does not wait."""
        waiting = self._by_job.get(job_id)
        return None if waiting is None else sum(one.order <= waiting.order for one in self._by_job.values())

    @property
    def earliest_since(self) -> float | None:
        """Since when the job waits that has waited longest; None where none waits."""
        return min((one.since for one in self._by_job.values()), default=None)

    def in_order(self) -> list[Waiting]:
        """Return all entries in the order in which they get capacity."""
        return sorted(self._by_job.values(), key=_ORDER)

    def full_for(self, owner: str | None) -> str | None:
        """Say why an owner's job cannot wait; None where it can."""
        if len(self._by_job) >= self._thresholds.queue_limit:
            return (
                f"the queue is full (queue_limit is {self._thresholds.queue_limit}): ask again later, or "
                "without waiting"
            )
        if self._bytes > MOST_BYTES:
            return "the jobs that wait take too much memory: ask again later, or without waiting"
        if (
            owner is not None
            and sum(one.owner == owner for one in self._by_job.values()) >= MOST_OF_ONE_OWNER
        ):
            return f"{MOST_OF_ONE_OWNER} jobs of {owner!r} wait already: wait for one of them first"
        return None

    def wait(self, event: ClaimRequested, now: float) -> Waiting:
        """Let a request wait, with others for the same job."""
        waiting = self._by_job.get(event.job.job_id)
        if waiting is None:
            self._arrivals += 1
            waiting = self._by_job[event.job.job_id] = Waiting(event, self._arrivals, now)
            self._by_gpus.add(waiting)
            self.memory_jobs += waiting.demand.sharing is Sharing.MEMORY
            self._is_first_known = self._is_first_known and not self._may_reserve(waiting, now)
        else:
            self._is_first_known = False  # its place may be another now
            self._bytes -= size_of(waiting.job)
            self._drop_deadlines(waiting)
            waiting.update(event)
        self._bytes += size_of(event.job)
        waiting.requests[event.ref] = now + event.job.wait_seconds
        waiting.left_at = inf
        self._add_deadlines(waiting)
        self._by_ref[event.ref] = waiting
        return waiting

    def close(self, ref: int, now: float) -> None:
        """Wait no more for one request; its job keeps its place for a while."""
        waiting = self._by_ref.pop(ref, None)
        if waiting is not None:
            self._drop_deadlines(waiting)
            del waiting.requests[ref]
            if not waiting.requests:
                waiting.left_at = now
            self._add_deadlines(waiting)

    def remove(self, waiting: Waiting) -> list[int]:
        """Remove a job; returns the requests that wait for its answer."""
        self._drop_deadlines(waiting)
        refs = list(waiting.requests)
        for ref in refs:
            del self._by_ref[ref]
        if self._by_job.pop(waiting.job.job_id, None) is not None:
            self._bytes -= size_of(waiting.job)
            self._by_gpus.remove(waiting)
            self.memory_jobs -= waiting.demand.sharing is Sharing.MEMORY
        if waiting is self._reserving:
            self._end_reservation()
        return refs

    def remove_job(self, job_id: str) -> list[int]:
        """Remove a job that holds a claim again; returns the requests that wait for its answer."""
        waiting = self._by_job.get(job_id)
        return [] if waiting is None else self.remove(waiting)

    def clear(self) -> list[int]:
        """Remove every job; returns the requests that waited."""
        return [ref for waiting in list(self._by_job.values()) for ref in self.remove(waiting)]

    def to_try(self) -> Iterator[Waiting]:
        """Yield the jobs that may find a node now, in order.

        A job that found no node finds none until some node changes that could serve it. If a grant itself
        frees something, the jobs are gone through again from the first.
        """
        freed = None
        while self._by_ref and self._dispatch.has_freed():
            freed = self._dispatch.take_freed(freed)
            for waiting in self._served_by(freed):
                if self._dispatch.may_take(waiting.demand, freed):
                    yield waiting
                    if self._dispatch.has_freed():
                        break
                    freed.update()

    def _served_by(self, freed: Freed) -> list[Waiting]:
        """Return the jobs with open requests whose GPUs these nodes may have free, in order."""
        jobs = self._besides_reserved(self._by_gpus.served_by(freed), freed)
        jobs.update(self._by_job[job_id] for job_id in self._by_job.keys() & self._dispatch.jobs_with_held())
        return sorted((one for one in jobs if one.requests), key=_ORDER)

    def _besides_reserved(self, jobs: set[Waiting], freed: Freed) -> set[Waiting]:
        """Leave out the jobs from which a reservation keeps all that was freed."""
        if self._reserving is None:
            return jobs
        gets: dict[object, bool] = {}
        found = {one for one in jobs if one is self._reserving}
        for one in jobs:
            if one.claimant not in gets:
                gets[one.claimant] = self._dispatch.is_left(freed, one.demand)
            if gets[one.claimant]:
                found.add(one)
        return found

    def overdue(self, now: float) -> list[Waiting]:
        """Return the jobs with a request whose time is over; remove those for which nobody asks any more."""
        if self._next_deadline() > now:
            return []
        for waiting in list(self._by_job.values()):
            if waiting.left_at + STAYS_SECONDS <= now:
                self.remove(waiting)
        return [one for one in self._by_job.values() if any(until <= now for until in one.requests.values())]

    def close_overdue(self, waiting: Waiting, now: float) -> list[int]:
        """End a job's requests whose time is over; returns them."""
        refs = [ref for ref, until in waiting.requests.items() if until <= now]
        for ref in refs:
            self.close(ref, now)
        return refs

    def close_all(self, now: float) -> list[int]:
        """End every request, because the store fails; returns them. Their jobs stay for a while."""
        refs = list(self._by_ref)
        for ref in refs:
            self.close(ref, now)
        return refs

    def update_reservation(self, now: float) -> None:
        """Reserve capacity for the first job that has waited long enough for whole GPUs (§5.4).

        The reservation lasts while the job keeps its place, also between two of its requests: else a small
        job could take what became free in that moment, each time.
        """
        if self._next_deadline() <= now:
            self._earliest, self._is_first_known = None, False
        self._reserved_at, self._reserved_at_change = now, self._dispatch.changes
        first = self._reserving if self._is_first_known else self._first_to_reserve(now)
        if first is not self._reserving:
            self._end_reservation()
            self._reserving = first
        self._is_first_known = True
        if first is None:
            return
        for node_id, since in list(first.reserved.items()):
            if now - since >= RESERVED_SECONDS:
                first.given_up.add(node_id)
            elif self._dispatch.lacks_only_capacity(first.job, node_id):
                continue
            self._end_reservation_of(first, node_id)
        if len(first.reserved) < first.job.nodes:
            self._reserve_nodes(first, now)

    def _first_to_reserve(self, now: float) -> Waiting | None:
        may = (one for one in self._by_job.values() if self._may_reserve(one, now))
        return min(may, key=_ORDER, default=None)

    def _reserve_nodes(self, waiting: Waiting, now: float) -> None:
        chosen = self._dispatch.nodes_to_reserve(waiting.job, frozenset(waiting.given_up))
        for node_id in set(waiting.reserved).difference(chosen):
            self._end_reservation_of(waiting, node_id)
        for node_id in chosen:
            if node_id not in waiting.reserved:
                self._dispatch.reserve(node_id, waiting.job, now)
                waiting.reserved[node_id] = now
        self._add_deadlines(waiting)

    def _may_reserve(self, waiting: Waiting, now: float) -> bool:
        return now >= self._reserves_at(waiting) and waiting.demand.sharing is Sharing.EXCLUSIVE

    def _reserves_at(self, waiting: Waiting) -> float:
        """Return when a job has waited long enough: one sum, since two may differ in the last digit."""
        return waiting.since + self._thresholds.queue_reserve_after_seconds

    def _end_reservation(self) -> None:
        if self._reserving is not None:
            for node_id in list(self._reserving.reserved):
                self._end_reservation_of(self._reserving, node_id)
        self._reserving, self._is_first_known = None, False

    def _end_reservation_of(self, waiting: Waiting, node_id: str) -> None:
        self._drop_deadlines(waiting)
        self._dispatch.reserve(node_id, None)
        del waiting.reserved[node_id]

    def _next_deadline(self) -> float:
        if self._earliest is None:
            self._earliest = min(self._deadlines(), default=None)
        return inf if self._earliest is None else self._earliest

    def _drop_deadlines(self, waiting: Waiting) -> None:
        """Forget the earliest deadline if it may be that of a job that changes."""
        if self._earliest is not None and min(self._deadlines_of(waiting)) <= self._earliest:
            self._earliest = None

    def _add_deadlines(self, waiting: Waiting) -> None:
        if self._earliest is not None:
            self._earliest = min(self._earliest, *self._deadlines_of(waiting))

    def _deadlines(self) -> Iterator[float]:
        for waiting in self._by_job.values():
            yield from self._deadlines_of(waiting)

    def _deadlines_of(self, waiting: Waiting) -> Iterator[float]:
        yield from waiting.requests.values()
        yield waiting.left_at + STAYS_SECONDS
        if self._reserves_at(waiting) > self._reserved_at:
            yield self._reserves_at(waiting)
        yield from (since + RESERVED_SECONDS for since in waiting.reserved.values())


class _JobsByGpus:
    """Waiting jobs by the GPUs that they ask for: where these are not free, nothing else about them matters.

    Demands that differ in memory alone stand together, the smallest first: if it cannot be met, none can.
    """

    def __init__(self) -> None:
        self._groups: dict[GpuDemand, dict[GpuDemand, set[Waiting]]] = {}
        """By the demand without its memory."""

    def add(self, waiting: Waiting) -> None:
        """Add a job."""
        gpus = waiting.demand.gpus
        group = self._groups.setdefault(gpus._replace(memory_mb=0), {})
        if gpus not in group:
            larger = [one for one in group if one.memory_mb > gpus.memory_mb]
            group[gpus] = set()
            for one in larger:
                group[one] = group.pop(one)
        group[gpus].add(waiting)

    def remove(self, waiting: Waiting) -> None:
        """Remove a job."""
        gpus = waiting.demand.gpus
        shape = gpus._replace(memory_mb=0)
        group = self._groups[shape]
        group[gpus].remove(waiting)
        if not group[gpus]:
            del group[gpus]
        if not group:
            del self._groups[shape]

    def served_by(self, freed: Freed) -> set[Waiting]:
        """Return the jobs whose GPUs one of these nodes may have free."""
        jobs = set[Waiting]()
        for group in self._groups.values():
            for gpus, alike in group.items():
                if not freed.may_serve(gpus):
                    break
                jobs |= alike
        return jobs


def demand_key(job: Job) -> object:
    """Two jobs with the same key find a node, or find none, alike."""
    return job.priority, frozenset(demands_of(job).items())
