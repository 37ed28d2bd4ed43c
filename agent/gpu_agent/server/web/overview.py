"""The page `/`: what needs me, what is free?

Totals come from the fleet's counters. What costs more, such as why the first jobs wait, is looked at every
few seconds.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from heapq import nsmallest
from itertools import islice

from starlette.responses import Response

from gpu_agent.registry.quoting import clip_quote
from gpu_agent.server.fleet_view import NodeQuery, Show
from gpu_agent.server.service import RegistryService
from gpu_agent.server.web.event_lines import event_line
from gpu_agent.server.web.findings import gpu_number, step_after
from gpu_agent.server.web.live import LiveView, Part, order_mark
from gpu_agent.server.web.nodes import NodeRow, gone_part, node_look, node_row
from gpu_agent.server.web.rendering import gpu_url, node_url, render
from gpu_agent.server.web.visit import PageRoute, Visit
from gpu_agent.wire.api import MemberRole, MemberView, RegistryEvent
from gpu_agent.wire.codes import GpuStatus, NodeStatus, ReasonCode

MOST_ATTENTION = 8
MOST_ALIKE = 3
"""So many offline nodes with one reason have a row each; more have one together."""
MOST_WAITING = 5
MOST_MODELS = 12
MOST_CHANGES = 12
MOST_NEW = 50
"""Of the changes that a page does not show yet; more are as good as so many."""
MOST_LOOKED_AT = 400
HOUR = 3600.0
SLOW_SECONDS = 5.0
"""How often that is looked at which no counter has."""
ROW = "a-"
ALIKE = "o-"
WAITING = "w-"

_PAGE = "overview"
_COLUMNS = 4
"""Of the nodes that need attention, and of the jobs that wait."""
_ROUTINE = frozenset(
    {
        "node_control_sent",
        "node_register_received",
        "node_token_issued",
        "token_created",
        "token_purged",
        "token_revoked",
    }
)
"""Events that say nothing of the fleet's state."""
_ATTENTION = NodeQuery(show=Show.ATTENTION)
_OFFLINE = {
    ReasonCode.HEARTBEAT_TIMEOUT: "no heartbeat",
    ReasonCode.UNREGISTERED: "the agent was stopped",
}
"""Why a node is offline that was not drained."""
_STATUSES = ("ready", "degraded", "registering", "draining", "offline")
_SHARES = (
    (GpuStatus.FREE, "free", "free"),
    (GpuStatus.CLAIMED, "claimed", "claimed"),
    (GpuStatus.IDLE, "idle", "claimed, idle"),
    (GpuStatus.USED_WITHOUT_CLAIM, "noclaim", "in use, no claim"),
    (GpuStatus.NOT_SCHEDULABLE, "closed", "not schedulable"),
)


@dataclass(frozen=True, slots=True)
class Figure:
    """One large figure, what it counts, and more in small letters."""

    id: str
    href: str
    kind: str
    number: int
    words: str
    small: str = ""

    @property
    def text(self) -> str:
        """The number as people write it."""
        return f"{self.number:,}"


@dataclass(frozen=True, slots=True)
class Share:
    """How many GPUs have one status, as part of a bar."""

    kind: str
    words: str
    number: int
    begins: int


@dataclass(frozen=True, slots=True)
class StatusRow:
    """How many nodes have one status."""

    status: str
    number: int
    reasons: tuple[tuple[str, int], ...]
    """By reason code; empty where all is well."""


@dataclass(frozen=True, slots=True)
class ModelRow:
    """The GPUs of one model."""

    name: str
    gpus: int
    shares: tuple[Share, ...]
    """Of the bar, and of the columns: free, claimed, claimed and idle."""
    most_free_on_one_node: int


async def show(visit: Visit) -> Response:
    """Show the overview."""
    view = live(visit)
    rows = view.order()
    parts = {part.id: visit.part_html(part) for part in view.parts(rows)}
    registry = visit.registry
    totals = registry.fleet_view.totals
    changes = [event_line(registry, one) for one in islice(_changes(registry), MOST_CHANGES)]
    return visit.render(
        "overview.html",
        page=_PAGE,
        live=view,
        total=len(totals.of_node),
        parts=parts,
        attention=[parts[row] for row in rows if row.startswith((ALIKE, ROW)) and row in parts],
        waiting=[parts[row] for row in rows if row.startswith(WAITING) and row in parts],
        attention_total=totals.attention,
        figures=[parts[one.id] for one in _figures(registry)],
        changes=changes,
        changes_until=changes[0].id if changes else 0,
    )


def live(visit: Visit) -> LiveView:
    """Return what changes on the page."""
    registry, role = visit.registry, visit.person.role.value
    may_operate = visit.person.may("operate")

    def order() -> tuple[str, ...]:
        return (*_attention(registry), *_first_waiting(registry))

    def parts(rows: Sequence[str]) -> Iterator[Part]:
        for figure in _figures(registry):
            yield Part(figure.id, figure, partial(render, "_figure.html", figure=figure))
        yield from _waiting_parts(registry, [row for row in rows if row.startswith(WAITING)])
        for row in (one for one in rows if one.startswith(ALIKE)):
            code = ReasonCode(row.removeprefix(ALIKE))
            number = registry.fleet_view.totals.reasons[NodeStatus.OFFLINE, code]
            yield Part(row, number, partial(_render_alike, row, code, number))
        for row in (one for one in rows if one.startswith(ROW)):
            node_id = row.removeprefix(ROW)
            look = node_look(registry, node_id)
            if look is None:
                yield gone_part(row, f"{node_id} was removed", columns=_COLUMNS)
            else:
                html = partial(_render_attention, registry, node_id, may_operate=may_operate)
                yield Part(row, look, html, variant=role)
        yield from _panels(registry)

    return LiveView(_PAGE, role, parts, order, apart=WAITING)


def _attention(registry: RegistryService) -> Iterator[str]:
    """Yield the rows of what needs attention: first one for all nodes that are offline for one reason."""
    view = registry.fleet_view
    numbers = {code: view.totals.reasons[NodeStatus.OFFLINE, code] for code in _OFFLINE}
    alike = {code: number for code, number in numbers.items() if number > MOST_ALIKE}
    yield from (f"{ALIKE}{code}" for code in alike)
    most = MOST_ATTENTION - len(alike)
    for node_id in view.page(_ATTENTION, limit=most + sum(alike.values())).node_ids:
        one = view.figures_of(node_id)
        is_alike = one is not None and one.status == NodeStatus.OFFLINE and one.reason_code in alike
        if most and not is_alike:
            yield f"{ROW}{node_id}"
            most -= 1


def _figures(registry: RegistryService) -> tuple[Figure, ...]:
    totals, waiting = registry.fleet_view.totals, registry.waiting_jobs
    gpus = totals.gpus
    faults = (
        (gpus[GpuStatus.LOST], "lost"),
        (gpus[GpuStatus.UNKNOWN], "unknown"),
        (totals.degraded_gpus, "degraded"),
    )
    named = [f"{number:,} {word}" for number, word in faults if number]
    small = f"GPUs: {' · '.join(named)}" if named else ""
    free = nsmallest(2, totals.gpu_models.items(), key=lambda item: (-item[1].most_free_on_one_node, item[0]))
    largest = [f"{one.most_free_on_one_node} {clip_quote(_short(name))}" for name, one in free if one.free]
    return (
        Figure(
            "fig-attention",
            "/nodes?show=attention",
            "bad" if totals.attention else "",
            totals.attention,
            "node needs attention" if totals.attention == 1 else "nodes need attention",
            small or ("no GPU has a fault" if totals.of_node else ""),
        ),
        Figure(
            "fig-free",
            "/nodes?show=free",
            "good",
            gpus[GpuStatus.FREE],
            f"of {gpus.total():,} GPUs free",
            f"most on one node: {', '.join(largest)}" if largest else "a claim would have to wait",
        ),
        Figure(
            "fig-jobs",
            "/jobs",
            "",
            waiting,
            "job waits" if waiting == 1 else "jobs wait",
            f"{totals.slots_taken:,} of {totals.slots:,} slots taken",
        ),
        Figure(
            "fig-idle",
            "/nodes?show=idle",
            "",
            gpus[GpuStatus.IDLE],
            "claimed, idle",
            "GPUs their jobs do not use",
        ),
        Figure(
            "fig-noclaim",
            "/nodes?show=unclaimed",
            "",
            gpus[GpuStatus.USED_WITHOUT_CLAIM],
            "GPUs used without claim",
        ),
    )


def _panels(registry: RegistryService) -> Iterator[Part]:
    """Yield the panels that change as a whole."""
    totals = registry.fleet_view.totals
    slowly = int(registry.clock.monotonic() / SLOW_SECONDS)
    statuses = _statuses(registry)
    yield Part("by-status", statuses, partial(render, "_by_status.html", statuses=statuses, totals=totals))
    shares, gpu_models = _shares(registry), _gpu_models(registry)
    more = max(0, len(totals.gpu_models) - MOST_MODELS)
    all_gpus = totals.gpus.total()
    html = partial(render, "_by_model.html", shares=shares, models=gpu_models, more=more, all=all_gpus)
    yield Part("by-model", (shares, gpu_models, more), html)
    first = nsmallest(MOST_MODELS, totals.models.items(), key=lambda item: (-item[1], item[0]))
    models = tuple(sorted(first))
    more = max(0, len(totals.models) - MOST_MODELS)
    yield Part("models", (models, more), partial(render, "_models.html", models=models, more=more))
    yield Part("registry", slowly, partial(_render_registry, registry))
    yield Part("newer", registry.event_log.last_id, partial(_render_newer, registry))


def _statuses(registry: RegistryService) -> tuple[StatusRow, ...]:
    """Return how many nodes have each status, with their reasons."""
    totals = registry.fleet_view.totals
    rows = []
    for status in NodeStatus:
        of_status = {code.value: number for (of, code), number in totals.reasons.items() if of is status}
        reasons = () if status is NodeStatus.READY else tuple(sorted(of_status.items()))
        rows.append(StatusRow(status.value, totals.nodes[status], reasons))
    return tuple(sorted(rows, key=lambda row: _STATUSES.index(row.status)))


def _shares(registry: RegistryService) -> tuple[Share, ...]:
    """Return the parts of the bar of all GPUs."""
    gpus, begins, shares = registry.fleet_view.totals.gpus, 0, []
    for status, kind, words in _SHARES:
        shares.append(Share(kind, words, gpus[status], begins))
        begins += gpus[status]
    unusable = gpus[GpuStatus.LOST] + gpus[GpuStatus.UNKNOWN]
    return (*shares, Share("unusable", "not usable", unusable, begins))


def _gpu_models(registry: RegistryService) -> tuple[ModelRow, ...]:
    """Return the GPUs of the most frequent models, in an order that claims do not change."""
    models = registry.fleet_view.totals.gpu_models
    first = nsmallest(MOST_MODELS, models.items(), key=lambda item: (-item[1].gpus, item[0]))
    return tuple(
        ModelRow(
            name,
            one.gpus,
            (
                Share("free", "free", one.free, 0),
                Share("claimed", "claimed", one.claimed, one.free),
                Share("idle", "claimed, idle", one.idle, one.free + one.claimed),
            ),
            one.most_free_on_one_node,
        )
        for name, one in first
    )


def _render_alike(row: str, code: ReasonCode, number: int) -> str:
    step = step_after(code)
    words = _OFFLINE[code]
    return render("_alike.html", id=row, code=code, number=number, words=words, step=step, columns=_COLUMNS)


def _render_attention(registry: RegistryService, node_id: str, *, may_operate: bool) -> str:
    row = node_row(registry, node_id)
    if row is None:
        return ""
    action = _action(row) if may_operate else None
    return render("_attention.html", row=row, id=f"{ROW}{node_id}", action=action)


def _action(row: NodeRow) -> tuple[str, str] | None:
    """Return what a person most likely does about a fault: its address and its words."""
    finding, node = row.finding, row.node
    if finding is None or node.status == "offline":
        return None
    if finding.mark == "d" and finding.gpus and len(finding.gpus) == 1:
        gpu = row.gpus[finding.gpus[0]]
        return gpu_url(node.node_id, gpu.uuid, "cordon"), f"Cordon GPU {gpu_number(gpu, finding.gpus[0])}"
    if finding.mark == "d" and not finding.gpus:
        return node_url(node.node_id, "refresh"), "Refresh"
    return node_url(node.node_id, "drain"), "Drain"


def _first_waiting(registry: RegistryService) -> tuple[str, ...]:
    return tuple(f"{WAITING}{job_id}" for job_id in registry.first_waiting(MOST_WAITING))


def _waiting_parts(registry: RegistryService, rows: Sequence[str]) -> Iterator[Part]:
    """Yield the rows of jobs that wait, and whether others would be shown now.

    The queue's order is what it is about, and it moves at any time. So a row keeps its place, and says at
    which position its job is now.
    """
    look = int(registry.clock.monotonic() / SLOW_SECONDS), registry.waiting_jobs
    for row in rows:
        yield Part(row, look, partial(_render_waiting, registry, row))
    yield Part("waiting-newer", look, partial(_render_newer_waiting, registry, rows), order_mark(rows))
    yield Part("waiting", look, partial(_render_queue_length, registry))


def _render_waiting(registry: RegistryService, row: str) -> str:
    job_id = row.removeprefix(WAITING)
    job = next(registry.queue(only=(job_id,)), None)
    if job is not None:
        return render("_waiting_row.html", id=row, job=job)
    words = f"{job_id} {'waits no more' if registry.claim_of(job_id) is None else 'got its claim'}"
    return gone_part(row, words, columns=_COLUMNS).html()


def _render_newer_waiting(registry: RegistryService, rows: Sequence[str]) -> str:
    changed = _first_waiting(registry) != tuple(rows)
    return render("_waiting_newer.html", id="waiting-newer", changed=changed)


def _render_queue_length(registry: RegistryService) -> str:
    total, longest = registry.waiting_jobs, registry.longest_wait_seconds
    return render("_waiting.html", id="waiting", total=total, longest=longest)


def _render_registry(registry: RegistryService) -> str:
    members = registry.members()
    failed = sum(window.failed for window in registry.exclusions())
    return render(
        "_registry.html",
        now=registry.clock.wall(),
        leader=next((one for one in members if one.role == MemberRole.LEADER), None),
        standbys=_with_role(members, MemberRole.STANDBY),
        gateways=_with_role(members, MemberRole.GATEWAY),
        checks=registry.health.readiness(),
        is_ready=registry.health.ready,
        size=registry.size,
        failed=failed,
        figures=registry.health.meter.last,
    )


def _with_role(members: Sequence[MemberView], role: MemberRole) -> list[MemberView]:
    return [one for one in members if one.role == role]


def _changes(registry: RegistryService) -> Iterator[RegistryEvent]:
    """Yield what changed in the last hour, the newest first."""
    since = registry.clock.wall() - HOUR
    recent = registry.event_log.latest(MOST_LOOKED_AT, since=since)
    return (one for one in recent if one.event not in _ROUTINE)


def _render_newer(registry: RegistryService) -> str:
    ids = [one.id for one in islice(_changes(registry), MOST_NEW)]
    return render("_newer.html", id="newer", ids=ids, more=len(ids) == MOST_NEW)


def _short(name: str) -> str:
    """Leave out of a GPU's name what all of its vendor's have."""
    for prefix in ("NVIDIA ", "GeForce ", "AMD ", "Instinct "):
        name = name.removeprefix(prefix)
    return name.split(" ")[0].split("-")[0] or name


ROUTES = (PageRoute("/", show),)
LIVE = {_PAGE: live}
