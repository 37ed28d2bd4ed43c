"""The page `/nodes`: which node, which GPU? One row a node, with a tile for each GPU."""

from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from heapq import nlargest
from http import HTTPStatus

from starlette.responses import Response

from gpu_agent.registry.node import NodeRecord
from gpu_agent.registry.quoting import LONGEST_QUOTE
from gpu_agent.server.fleet_view import CursorError, NodePage, NodeQuery, Show, Sort
from gpu_agent.server.service import RegistryService
from gpu_agent.server.views import NodeFilter
from gpu_agent.server.web.findings import Finding, findings_of, placeable
from gpu_agent.server.web.live import LiveView, Part
from gpu_agent.server.web.rendering import render
from gpu_agent.server.web.tiles import TileGroup, tiles_of, tiles_sentence
from gpu_agent.server.web.visit import PageError, PageRoute, Visit
from gpu_agent.wire.api import GpuView, NodeSummary
from gpu_agent.wire.codes import STATUS_COLOURS, GpuStatus, NodeStatus, ReasonCode

ROW = "n-"
"""The id of a row is this, and the node's id."""

_PAGE = "nodes"
_FILTERS = ("q", "status", "reason", "gpu", "model", "label", "show")
_COLUMNS = 9
_TENTHS = 10
_MOST_CHOICES = 200
"""So many names a filter offers, and none longer than a quote; others are found by the text."""
_SHOWN: Mapping[Show, str] = {
    Show.ATTENTION: "Need attention",
    Show.FREE: "With free GPUs",
    Show.IDLE: "Idle claims",
    Show.UNCLAIMED: "Used without claim",
}
_ORDERS: Mapping[Sort, str] = {
    Sort.SEVERITY: "worst first",
    Sort.HOSTNAME: "by hostname",
    Sort.STATUS: "by status",
    Sort.FREE: "most free GPUs first",
    Sort.SINCE: "latest change first",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeRow:
    """What a node's row shows."""

    node: NodeSummary
    name: str
    gpus: tuple[GpuView, ...]
    """Without the parents of MIG devices, in the order of the declaration."""
    tiles: tuple[TileGroup, ...]
    sentence: str
    """What the tiles say, in words."""
    finding: Finding | None
    """What is most urgent."""
    severity: int
    seconds: float
    """For how long it has its status."""

    now: float
    """Unix time."""

    @property
    def fault_seconds(self) -> float | None:
        """For how long there has been what is most urgent; None where that is unknown."""
        since = None if self.finding is None else self.finding.since
        return None if since is None else max(0.0, self.now - since)

    @property
    def free(self) -> int:
        """How many GPUs a claim can get now."""
        return sum(gpu.status == GpuStatus.FREE for gpu in self.gpus)

    @property
    def models(self) -> int:
        """How many models it has ready."""
        return sum(one.enabled and one.status == "ready" for one in self.node.installed_models)

    @property
    def models_enabled(self) -> int:
        """How many models it is to have ready."""
        return sum(one.enabled for one in self.node.installed_models)

    @property
    def said(self) -> str:
        """What a screen reader says when it changes: status and health alone."""
        fault = self.finding.sentence if self.finding is not None and self.finding.is_fault else ""
        return f"{self.name} is {self.node.status}{f': {fault}' if fault else ''}"


async def show(visit: Visit) -> Response:
    """Show a page of the nodes that match the filters."""
    query, view = _query(visit), visit.registry.fleet_view
    page = _page(visit, query)
    rows = {f"{ROW}{node_id}": node_id for node_id in page.node_ids}
    parts = [visit.part_html(part) for part in row_parts(visit.registry, tuple(rows))]
    totals = view.totals
    filters = {name: visit.query.get(name, "") for name in _FILTERS}
    return visit.render(
        "nodes.html",
        page=_PAGE,
        live=live(visit),
        rows=parts,
        first=page.first,
        matching=page.matching,
        following=page.after,
        previous=page.before,
        total=len(totals.of_node),
        filters=filters,
        is_filtered=any(filters.values()),
        compact=visit.query.get("rows") == "compact",
        sort=query.sort.value,
        order=_ORDERS[query.sort],
        orders={one.value: words for one, words in _ORDERS.items()},
        tabs=[("", "All"), *((one.value, words) for one, words in _SHOWN.items())],
        statuses=[*STATUS_COLOURS],
        reasons=sorted({code.value for (_, code), count in totals.reasons.items() if count}),
        gpu_models=_choices({name: one.gpus for name, one in totals.gpu_models.items()}),
        models=_choices(totals.models),
    )


def live(visit: Visit) -> LiveView:
    """Return what changes on the page."""
    query = _query(visit)

    def order() -> tuple[str, ...]:
        return tuple(f"{ROW}{node_id}" for node_id in _page(visit, query).node_ids)

    key = query.key, visit.query.get("after", "")
    return LiveView(_PAGE, key, partial(row_parts, visit.registry), order)


def row_parts(registry: RegistryService, rows: Sequence[str]) -> Iterator[Part]:
    """Yield the rows of nodes; that of a node that was removed says so."""
    for row in rows:
        node_id = row.removeprefix(ROW)
        look = node_look(registry, node_id)
        if look is None:
            yield gone_part(row, f"{node_id} was removed", columns=_COLUMNS)
        else:
            yield Part(row, look, partial(_render_row, registry, node_id))


def gone_part(row: str, words: str, *, columns: int) -> Part:
    """Return what stands in the place of a row: it stays until the reader asks for the list again."""
    return Part(row, words, partial(render, "_gone_row.html", id=row, words=words, columns=columns))


def node_row(registry: RegistryService, node_id: str) -> NodeRow | None:
    """Return what a node's row shows; None where there is none with this id."""
    node, figures = registry.summary(node_id), registry.fleet_view.figures_of(node_id)
    if node is None or figures is None:
        return None
    gpus, findings = placeable(node.gpus), findings_of(node)
    now = registry.clock.wall()
    return NodeRow(
        node=node,
        name=node.hostname or node_id,
        gpus=gpus,
        tiles=tiles_of(gpus, offline=node.status == NodeStatus.OFFLINE),
        sentence=tiles_sentence(gpus),
        finding=findings[0] if findings else None,
        severity=int(figures.severity),
        seconds=max(0.0, now - node.since),
        now=now,
    )


def node_look(registry: RegistryService, node_id: str) -> Hashable:
    """Return what is equal as long as a node's row looks the same; None where there is no such node."""
    record, figures = registry.record(node_id), registry.fleet_view.figures_of(node_id)
    if record is None or figures is None:
        return None
    usage = record.liveness.usage
    cpu = None if usage is None or usage.cpu_percent is None else round(usage.cpu_percent)
    return figures, record.reason, cpu, _age_look(registry, record), _gpus_look(record), tuple(record.claims)


def _age_look(registry: RegistryService, record: NodeRecord) -> int:
    """An age is shown in one unit, of which the smallest that lasts is a minute."""
    return int(max(0.0, registry.clock.monotonic() - record.since) / 60)


def _gpus_look(record: NodeRecord) -> Hashable:
    gpus = record.gpus
    figures = gpus.figures
    size = len(gpus)
    use = tuple(-1 if value != value else int(value / _TENTHS) for value in figures[:size])  # noqa: PLR0124 - NaN
    memory = tuple(-1 if value != value else int(value) // _TENTHS for value in figures[size : 2 * size])  # noqa: PLR0124
    cordons = tuple(record.desired.gpu_cordons)
    faults = (
        () if gpus.all_ok else tuple((gpu.health, gpu.reasons, gpu.failed_checks) for gpu in gpus.values())
    )
    return use, memory, cordons, record.desired.cordoned, faults


def _render_row(registry: RegistryService, node_id: str) -> str:
    row = node_row(registry, node_id)
    return "" if row is None else render("_row.html", row=row, id=f"{ROW}{node_id}")


def _choices(counts: Mapping[str, int]) -> list[str]:
    """Return the names that most have, in the order of names."""
    short = (name for name in counts if len(name) <= LONGEST_QUOTE)
    return sorted(nlargest(_MOST_CHOICES, short, key=lambda name: counts[name]))


def _query(visit: Visit) -> NodeQuery:
    """Read the filters of the address: an unknown word filters nothing."""
    given = visit.query
    statuses, reasons = {one.value for one in NodeStatus}, {one.value for one in ReasonCode}
    label, has_value, value = given.get("label", "").partition("=")
    wanted = NodeFilter(
        statuses=frozenset({NodeStatus(given["status"])} if given.get("status") in statuses else ()),
        reason=ReasonCode(given["reason"]) if given.get("reason") in reasons else None,
        model=given.get("model"),
        labels={label: value} if has_value and label else {},
        gpu_name=given.get("gpu"),
        text=given.get("q", "").strip() or None,
    )
    show = Show(given["show"]) if given.get("show") in {one.value for one in Show} else None
    sort = Sort(given["sort"]) if given.get("sort") in {one.value for one in Sort} else Sort.SEVERITY
    return NodeQuery(wanted=wanted, show=show, sort=sort)


def _page(visit: Visit, query: NodeQuery) -> NodePage:
    try:
        return visit.registry.fleet_view.page(query, after=visit.query.get("after"))
    except CursorError:
        raise PageError(
            HTTPStatus.BAD_REQUEST, "This page of the list cannot be found", "Begin with the first page."
        ) from None


ROUTES = (PageRoute("/nodes", show),)
LIVE = {_PAGE: live}
