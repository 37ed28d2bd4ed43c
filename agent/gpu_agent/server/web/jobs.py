"""The page `/jobs`: why does my job wait? The queue, each node's answer to a job, claims with what is odd."""

from bisect import bisect_right
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice

from starlette.responses import Response

from gpu_agent.registry.tokens import Role
from gpu_agent.server.service import RegistryService
from gpu_agent.server.web.actions import release_url
from gpu_agent.server.web.demands import Needs, form_of, job_from, needs_of
from gpu_agent.server.web.live import LiveView, Part
from gpu_agent.server.web.nodes import gone_part
from gpu_agent.server.web.rendering import render
from gpu_agent.server.web.visit import PageRoute, Visit
from gpu_agent.server.web.why import Answer, explain
from gpu_agent.wire.api import ClaimDetail, ClaimView, WaitingJob
from gpu_agent.wire.codes import GpuStatus

PAGE_CLAIMS = 100
MOST_WAITING = 100
"""So many waiting jobs the page lists."""
MOST_ENDED = 100
QUEUE_SECONDS = 2.0
"""How often it is looked why jobs wait: that asks dispatch once for each different demand."""

_PAGE = "jobs"
_RANK_DIGITS = 8
_QUEUED, _CLAIMED = "q-", "c-"
_QUEUE_COLUMNS, _CLAIM_COLUMNS = 6, 7


@dataclass(frozen=True, slots=True)
class QueueRow:
    """What a waiting job's row shows."""

    job: WaitingJob
    needs: Needs
    reserved: tuple[str, ...]
    """The names of the nodes that are reserved for it."""


@dataclass(frozen=True, slots=True)
class ClaimRow:
    """What a claim's row shows."""

    claim: ClaimDetail
    seconds: float
    """How old it is."""
    busy_percent: float | None
    """The mean use of its GPUs since it began; None where it has none, and where nothing is known."""
    idle_seconds: float | None
    fault: str
    """Which of its GPUs became unusable; empty where none did."""
    release: str
    """The address of the page that releases it."""


class _Queue:
    """The waiting jobs as they were looked at last: for all parts of one page."""

    def __init__(self, registry: RegistryService) -> None:
        self._registry = registry
        self._at = -QUEUE_SECONDS
        self._jobs: dict[str, WaitingJob] = {}

    def jobs(self) -> dict[str, WaitingJob]:
        """Return the first waiting jobs by their ids, in their order."""
        now = self._registry.clock.monotonic()
        if now - self._at >= QUEUE_SECONDS:
            self._at = now
            self._jobs = {one.job_id: one for one in islice(self._registry.queue(), MOST_WAITING)}
        return self._jobs


async def show(visit: Visit) -> Response:
    """Show the queue, the answer to one job, and the claims."""
    registry, job_id = visit.registry, visit.query.get("job", "").strip()
    view = live(visit)
    answer, form, problem = await _answer(visit, job_id)
    # After the wait: the stream sends what is newer than the end of the page.
    rows = view.order()
    parts = {part.id: visit.part_html(part) for part in view.parts(rows)}
    claims = registry.claims_for_people()
    page = _claims(visit, claims)
    waits = registry.waiting_jobs
    ended = _ended(visit) if visit.query.get("ended") else None
    return visit.render(
        "jobs.html",
        page=_PAGE,
        live=view,
        head=parts["jobs-head"],
        queue=[parts[row] for row in rows if row.startswith(_QUEUED) and row in parts],
        waiting=waits,
        waiting_ids=[row.removeprefix(_QUEUED) for row in rows if row.startswith(_QUEUED)],
        claims=[parts[row] for row in rows if row.startswith(_CLAIMED) and row in parts],
        claims_total=len(claims),
        claims_page=page,
        ended=ended,
        job=job_id,
        detail=registry.claim_of(job_id) if job_id else None,
        free=registry.fleet_view.totals.gpus[GpuStatus.FREE],
        has_nodes=bool(registry.fleet_view.totals.of_node),
        answer=answer,
        form=form,
        problem=problem,
        names=partial(_name, registry),
    )


def live(visit: Visit) -> LiveView:
    """Return what changes on the page: the rows of jobs that wait and that hold claims."""
    registry, queue = visit.registry, _Queue(visit.registry)
    after = visit.query.get("after", "")

    def order() -> tuple[str, ...]:
        claims = _claims(visit, registry.claims_for_people()).jobs
        return (*(f"{_QUEUED}{one}" for one in queue.jobs()), *(f"{_CLAIMED}{one}" for one in claims))

    may_operate = visit.person.may("operate")
    parts = partial(_parts, registry, queue, may_operate=may_operate)
    return LiveView(_PAGE, (after, may_operate), parts, order)


@dataclass(frozen=True, slots=True)
class _ClaimPage:
    jobs: tuple[str, ...]
    previous: str | None
    """Where the page before begins; None on the first two."""
    following: str | None
    """Where the next page begins; None on the last one."""
    first: int
    """The place of the first claim, from 0."""


def _claims(visit: Visit, claims: Sequence[tuple[int, str]]) -> _ClaimPage:
    rank, has_mark, job_id = visit.query.get("after", "").partition(".")
    is_rank = rank.isdecimal() and len(rank) <= _RANK_DIGITS
    begin = bisect_right(claims, (int(rank), job_id)) if has_mark and is_rank else 0
    page = claims[begin : begin + PAGE_CLAIMS]
    return _ClaimPage(
        jobs=tuple(job for _, job in page),
        previous=_cursor(claims[begin - PAGE_CLAIMS - 1]) if begin > PAGE_CLAIMS else None,
        following=_cursor(page[-1]) if page and begin + PAGE_CLAIMS < len(claims) else None,
        first=begin,
    )


def _cursor(claim: tuple[int, str]) -> str:
    return f"{claim[0]}.{claim[1]}"


def _parts(
    registry: RegistryService, queue: _Queue, rows: Sequence[str], *, may_operate: bool
) -> Iterator[Part]:
    """Yield the head and the rows; that of a job that waits no more, or whose claim is forgotten, says so."""
    role = (Role.OPERATE if may_operate else Role.READ).value
    failed = sum(one.failed for one in registry.exclusions())
    numbers = registry.waiting_jobs, registry.current_claims, failed
    yield Part("jobs-head", numbers, partial(_render_head, *numbers))
    for row in rows:
        if row.startswith(_QUEUED):
            job_id = row.removeprefix(_QUEUED)
            waiting = queue.jobs().get(job_id)
            if waiting is not None:
                yield _queue_part(registry, row, waiting)
            elif registry.waiting(job_id) is None:
                got = registry.claim_of(job_id) is not None
                words = f"{job_id} {'got its claim' if got else 'waits no more'}"
                yield gone_part(row, words, columns=_QUEUE_COLUMNS)
        else:
            job_id = row.removeprefix(_CLAIMED)
            claim = registry.claim_of(job_id)
            if claim is not None:
                yield _claim_part(registry, row, claim, role=role)
            else:
                yield gone_part(row, f"{job_id} has no claim any more", columns=_CLAIM_COLUMNS)


def _queue_part(registry: RegistryService, row: str, waiting: WaitingJob) -> Part:
    found = registry.waiting(waiting.job_id)
    needs = Needs("", "") if found is None else needs_of(found.job)
    reserved = tuple(_name(registry, one) for one in waiting.reserved_nodes)
    shown = QueueRow(waiting, needs, reserved)
    age = int(waiting.waited_seconds / (1 if waiting.waited_seconds < 60 else 10))  # noqa: PLR2004
    look = waiting.position, waiting.reason, waiting.reserved_nodes, waiting.open_requests, age
    return Part(row, look, partial(render, "_queue_row.html", id=row, row=shown))


def _claim_part(registry: RegistryService, row: str, claim: ClaimDetail, *, role: str) -> Part:
    shown = _claim_row(registry, claim)
    idle = None if shown.idle_seconds is None else int(shown.idle_seconds / 60)
    busy = None if shown.busy_percent is None else round(shown.busy_percent)
    age = int(shown.seconds / 60)
    left = int(claim.expires_in_seconds / 5)
    look: Hashable = (claim.claim_id, claim.state, claim.unusable_gpus, shown.fault, idle, busy, age, left)
    html: Callable[[], str] = partial(
        render,
        "_claim_row.html",
        id=row,
        row=shown,
        names=partial(_name, registry),
        may_release=role != Role.READ.value and claim.state in {"active", "held"},
    )
    return Part(row, look, html, role)


def _claim_row(registry: RegistryService, claim: ClaimDetail) -> ClaimRow:
    now = registry.clock.wall()
    means = [one.mean_utilization_percent for one in claim.gpu_use]
    known = [one for one in means if one is not None]
    return ClaimRow(
        claim=claim,
        seconds=max(0.0, now - claim.granted_at),
        busy_percent=sum(known) / len(known) if known else None,
        idle_seconds=None if claim.idle_since is None else max(0.0, now - claim.idle_since),
        fault=_fault(registry, claim),
        release=release_url(claim.job_id),
    )


def _fault(registry: RegistryService, claim: ClaimDetail) -> str:
    """Name the GPUs that became unusable while the claim had them, by their numbers."""
    where = []
    for grant in claim.nodes:
        numbers = dict(zip(grant.gpu_uuids, grant.gpu_indices, strict=False))
        faulty = [str(numbers[uuid]) for uuid in claim.unusable_gpus if uuid in numbers]
        if faulty:
            where.append(f"GPU {', '.join(faulty)} of {_name(registry, grant.node_id)}")
    return f"{'; '.join(where)} became unusable" if where else ""


def _render_head(waiting: int, claims: int, failed: int) -> str:
    return render("_jobs_head.html", id="jobs-head", waiting=waiting, claims=claims, failed=failed)


def _ended(visit: Visit) -> list[ClaimView]:
    return visit.registry.ended_claims()[:MOST_ENDED]


async def _answer(visit: Visit, job_id: str) -> tuple[Answer | None, dict[str, str], str]:
    """Answer the form, or the demands of a waiting job; also what the form shows, and what is wrong."""
    given = {name: visit.query.get(name, "") for name in form_of(job_from({}, ""))}
    asked = any(given.values())
    waiting = visit.registry.waiting(job_id) if job_id else None
    if not asked and waiting is not None:
        return await explain(visit, waiting.job), form_of(waiting.job), ""
    if not asked:
        return None, given | {"gpus": "1", "nodes": "1"}, ""
    try:
        job = job_from(given, job_id)
    except ValueError as error:
        return None, given, str(error)
    return await explain(visit, job), given, ""


def _name(registry: RegistryService, node_id: str) -> str:
    record = registry.record(node_id)
    return node_id if record is None else record.hostname or node_id


ROUTES = (PageRoute("/jobs", show),)
LIVE = {_PAGE: live}
