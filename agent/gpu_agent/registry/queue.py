"""The queue: jobs that wait for capacity, by priority, then arrival (§5.4).

A job keeps its place while a request for it is open, and for a while after the last one closed. Nothing is
granted while no request is open. Against starvation at most one job has a reservation: the first in the
order that has waited long enough and asks for whole GPUs.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from math import inf

from gpu_agent.registry.dispatch.dispatch import Dispatch
from gpu_agent.registry.dispatch.exclusions import NoAvailableNode
from gpu_agent.registry.events import ClaimRequested
from gpu_agent.registry.job import Job, Sharing, demands_of, sharing_of, size_of
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
    requests: dict[int, float] = field(default_factory=dict)
    """By the ref of each open request: until when it waits."""
    left_at: float = inf
    """When its last request closed."""
    reserved: dict[str, float] = field(default_factory=dict)
    """The nodes that are reserved for it, and since when."""
    refusal: NoAvailableNode | None = None
    """Why it found no node when it was tried last."""
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

    @property
    def order(self) -> tuple[int, int]:
        """Its place: by priority, then arrival."""
        return (-self.job.priority, self.number)


class ClaimQueue:
    """All jobs that wait. Times are monotonic seconds."""

    def __init__(self, thresholds: Thresholds, dispatch: Dispatch) -> None:
        self._thresholds = thresholds
        self._dispatch = dispatch
        self._by_job: dict[str, Waiting] = {}
        self._by_ref: dict[int, Waiting] = {}
        self._arrivals = 0
        self._bytes = 0
        self._tried_at = -1
        """`Dispatch.freed` when all were tried last."""
        self._failed: set[object] = set()
        """What found no node since then: jobs that demand the same fail alike."""
        self._reserving: Waiting | None = None
        self._reserved_at = -inf
        """When it was last decided who has the reservation."""
        self._reserved_when_freed = -1
        """`Dispatch.freed` then: a request may have tried the jobs since, and reserved nothing."""
        self._earliest: float | None = None
        """The earliest of `_deadlines`, which the fleet reads after each event; None where it may differ."""

    def __len__(self) -> int:
        return len(self._by_job)

    @property
    def deadline(self) -> float:
        """When something is due; the past where capacity became free, never where nothing waits."""
        if not self._by_job:
            return inf
        freed = self._dispatch.freed
        if (freed != self._tried_at and self._by_ref) or freed != self._reserved_when_freed:
            return -inf
        if self._earliest is None:
            self._earliest = min(self._deadlines())
        return self._earliest

    def of(self, job_id: str) -> Waiting | None:
        """Return a job's entry."""
        return self._by_job.get(job_id)

    def in_order(self) -> list[Waiting]:
        """Return all entries in the order in which they get capacity."""
        return sorted(self._by_job.values(), key=lambda one: one.order)

    def full_for(self, owner: str | None) -> str | None:
        """Say why an owner's job cannot wait; None where it can."""
        if len(self._by_job) >= self._thresholds.queue_limit:
            return (
                f"{len(self._by_job)} jobs wait already, as many as queue_limit allows: ask again later, or "
                "without wait_seconds"
            )
        if self._bytes > MOST_BYTES:
            return "the jobs that wait take too much memory: ask again later, or without wait_seconds"
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
        else:
            self._bytes -= size_of(waiting.job)
        self._bytes += size_of(event.job)
        self._earliest = None
        waiting.newest = event
        waiting.requests[event.ref] = now + event.job.wait_seconds
        waiting.left_at = inf
        self._by_ref[event.ref] = waiting
        return waiting

    def close(self, ref: int, now: float) -> None:
        """Wait no more for one request; its job keeps its place for a while."""
        waiting = self._by_ref.pop(ref, None)
        if waiting is not None:
            self._earliest = None
            del waiting.requests[ref]
            if not waiting.requests:
                waiting.left_at = now

    def remove(self, waiting: Waiting) -> list[int]:
        """Remove a job; returns the requests that wait for its answer."""
        self._earliest = None
        refs = list(waiting.requests)
        for ref in refs:
            del self._by_ref[ref]
        if self._by_job.pop(waiting.job.job_id, None) is not None:
            self._bytes -= size_of(waiting.job)
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
        """Yield the jobs that may find a node now, in order, if anything became free since the last time."""
        freed = self._dispatch.freed
        if freed == self._tried_at or not self._by_ref:
            return
        self._failed.clear()
        for waiting in self.in_order():
            if waiting.requests and _demand_key(waiting.job) not in self._failed:
                yield waiting
        self._tried_at = self._dispatch.freed

    def note_failure(self, waiting: Waiting, refusal: NoAvailableNode) -> None:
        """Remember that a job found no node, and why."""
        waiting.refusal = refusal
        self._failed.add(_demand_key(waiting.job))

    def overdue(self, now: float) -> list[Waiting]:
        """Return the jobs with a request whose time is over; remove those for which nobody asks any more."""
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
        self._reserved_at, self._earliest, self._reserved_when_freed = now, None, self._dispatch.freed
        first = next((one for one in self.in_order() if self._may_reserve(one, now)), None)
        if first is not self._reserving:
            self._end_reservation()
            self._reserving = first
        if first is None:
            return
        for node_id, since in list(first.reserved.items()):
            if now - since >= RESERVED_SECONDS:
                first.given_up.add(node_id)
            elif self._dispatch.lacks_only_capacity(first.job, node_id):
                continue
            self._dispatch.reserve(node_id, None)
            del first.reserved[node_id]
        if len(first.reserved) < first.job.nodes:
            self._reserve_nodes(first, now)

    def _reserve_nodes(self, waiting: Waiting, now: float) -> None:
        chosen = self._dispatch.nodes_to_reserve(waiting.job, frozenset(waiting.given_up))
        for node_id in set(waiting.reserved).difference(chosen):
            self._dispatch.reserve(node_id, None)
            del waiting.reserved[node_id]
        for node_id in chosen:
            if node_id not in waiting.reserved:
                self._dispatch.reserve(node_id, waiting.job, now)
                waiting.reserved[node_id] = now

    def _may_reserve(self, waiting: Waiting, now: float) -> bool:
        waited = now >= self._reserves_at(waiting)
        return waited and sharing_of(waiting.job) is Sharing.EXCLUSIVE

    def _reserves_at(self, waiting: Waiting) -> float:
        """Return when a job has waited long enough: one sum, since two may differ in the last digit."""
        return waiting.since + self._thresholds.queue_reserve_after_seconds

    def _end_reservation(self) -> None:
        if self._reserving is not None:
            for node_id in self._reserving.reserved:
                self._dispatch.reserve(node_id, None)
            self._reserving.reserved.clear()
        self._reserving = None

    def _deadlines(self) -> Iterator[float]:
        for waiting in self._by_job.values():
            yield from waiting.requests.values()
            yield waiting.left_at + STAYS_SECONDS
            if self._reserves_at(waiting) > self._reserved_at:
                yield self._reserves_at(waiting)
            yield from (since + RESERVED_SECONDS for since in waiting.reserved.values())


def _demand_key(job: Job) -> object:
    """Two jobs with the same key find a node, or find none, alike."""
    return job.priority, frozenset(demands_of(job).items())
