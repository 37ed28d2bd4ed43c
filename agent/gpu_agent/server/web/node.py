"""The page `/nodes/{node_id}`: what is wrong with a node, and what to do?"""

from collections.abc import Collection, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from http import HTTPStatus
from urllib.parse import urlencode

from starlette.responses import Response

from gpu_agent.registry.actions import unknown_node_message
from gpu_agent.registry.quoting import clip_quote, listed
from gpu_agent.server.event_log import EventFilter
from gpu_agent.server.service import RegistryService
from gpu_agent.server.web.event_lines import event_line
from gpu_agent.server.web.findings import Finding, findings_of, gpu_number, jobs_of, placeable
from gpu_agent.server.web.gpu_rows import Action, gpu_parts
from gpu_agent.server.web.live import LiveView, Part
from gpu_agent.server.web.rendering import clock_time, node_url, render
from gpu_agent.server.web.visit import PageError, PageRoute, Visit
from gpu_agent.wire.api import NodeDetail
from gpu_agent.wire.codes import NodeStatus

MOST_EVENTS = 30
MOST_FINDINGS = 12
MOST_MODELS = 200

_PAGE = "node"


async def show(visit: Visit) -> Response:
    """Show one node."""
    node = await _node(visit)
    view = live(visit)
    parts = {part.id: visit.part_html(part) for part in view.parts(())}
    gpus = placeable(node.gpus)
    return visit.render(
        "node.html",
        page="nodes",
        live=view,
        node=node,
        name=node.hostname or node.node_id,
        parts=parts,
        gpu_rows=[parts[f"gpu-{place}"] for place in range(len(gpus))],
        lines=[event_line(visit.registry, one) for one in reversed(node.events[-MOST_EVENTS:])],
        lines_until=node.events[-1].id if node.events else 0,
    )


def live(visit: Visit) -> LiveView:
    """Return what changes on the page."""
    node_id = visit.request.path_params.get("node_id") or visit.query.get("node_id", "")
    order = partial(_order, visit.registry, node_id)
    return LiveView(_PAGE, (node_id, visit.person.role), partial(_parts, visit, node_id), order)


def _order(registry: RegistryService, node_id: str) -> tuple[str, ...]:
    """Return the GPUs of the page's rows: with others the page is loaded again, or says that it is gone."""
    record = registry.record(node_id)
    return ("gone",) if record is None else tuple(record.gpus)


async def _node(visit: Visit) -> NodeDetail:
    node_id = visit.param("node_id")
    await visit.registry.fetch_figures(node_id)
    node = visit.registry.node(node_id)
    if node is None:
        raise unknown_node(visit.registry, node_id)
    return node


def unknown_node(registry: RegistryService, node_id: str) -> PageError:
    """Say of a node that there is not whether it was removed, and how its machine comes back."""
    wanted = EventFilter(node_id=node_id, events=frozenset({"node_removed", "node_purged"}))
    event = next(registry.event_log.search(wanted), None)
    if event is None:
        return PageError(HTTPStatus.NOT_FOUND, "There is no such node", f"{unknown_node_message(node_id)}.")
    line = event_line(registry, event)
    return PageError(
        HTTPStatus.NOT_FOUND,
        f"{clip_quote(line.name)} is no node any more",
        f"At {clock_time(line.at)} UTC: {line.sentence}. Its machine comes back when its agent has a join "
        "token: `gpu-agent registry token create` makes one.",
        link=(f"/events?{urlencode({'node': node_id})}", "Its events"),
    )


def _parts(visit: Visit, node_id: str, _rows: Sequence[str]) -> Iterator[Part]:
    registry = visit.registry
    node = registry.node(node_id)
    if node is None:
        return
    now, numbers = registry.clock.wall(), _numbers(node)

    def part(word: str, look: Hashable, **values: object) -> Part:
        html = partial(render, f"_{word.replace('-', '_')}.html", id=word, node=node, now=now, **values)
        return Part(word, look, html, f"{visit.person.role.value} {node_id}")

    minutes, findings = int((now - node.since) / 60), findings_of(node)
    state = node.status, node.cordoned, node.connected, node.drain, minutes
    yield part("node-head", state, actions=_actions(visit, node))
    found = findings, node.clears_when, minutes
    yield part(
        "node-finding",
        found,
        findings=findings[:MOST_FINDINGS],
        more=len(findings[MOST_FINDINGS:]),
        affected=_affected(node, findings),
    )
    gpus, reported_at = placeable(node.gpus), _reported_at(node, now)
    names = listed({gpu.name for gpu in gpus}, empty="")
    look = len(gpus), names, reported_at is None, node.since
    yield part("node-gpus", look, gpus=gpus, names=names, reported_at=reported_at)
    yield from gpu_parts(visit, node, now)
    claims = registry.claims(node_id=node_id)
    of_claims = tuple((one.claim_id, one.state) for one in claims), int(now / 15)
    yield part("node-claims", of_claims, claims=claims, numbers=numbers)
    checks = _admission_checks(node, numbers)
    yield part("node-checks", (node.checks, checks), admission=checks)
    explanation = registry.explain_node(node_id)
    refuses = () if explanation is None else explanation.exclusions
    yield part("node-refuses", refuses, refuses=refuses)
    models = node.installed_models
    yield part("node-models", models, shown=models[:MOST_MODELS], more=len(models[MOST_MODELS:]))
    load = round(node.cpu_percent or 0), round(node.mem_percent or 0), node.address, node.session_epoch
    yield part("node-facts", (load, tuple(node.labels.items()), node.token))
    ids = [one.id for one in reversed(node.events)]
    yield part("newer", ids[0] if ids else None, ids=ids, more=False)


def _reported_at(node: NodeDetail, now: float) -> float | None:
    """Return when an offline node sent its last figures, in Unix time; None of others, whose are of now."""
    age = node.last_heartbeat_age_seconds
    return now - age if node.status == NodeStatus.OFFLINE and age is not None else None


def _actions(visit: Visit, node: NodeDetail) -> list[Action]:
    """Return what this person may do to the node, the most likely first."""
    actions = []
    drained = node.drain is not None and node.drain.by_operator
    if visit.person.may("operate"):
        if drained:
            actions.append(Action("Resume", node_url(node.node_id, "resume"), "main"))
        elif node.status != NodeStatus.OFFLINE:
            actions.append(Action("Drain", node_url(node.node_id, "drain"), "main"))
        word = "uncordon" if node.cordoned is not None else "cordon"
        actions.append(Action(word.capitalize(), node_url(node.node_id, word)))
        if node.connected:
            actions.append(Action("Refresh", node_url(node.node_id, "refresh")))
    if visit.person.may("admin"):
        actions.append(Action("Remove", node_url(node.node_id, "remove"), "danger"))
    return actions


def _affected(node: NodeDetail, findings: Sequence[Finding]) -> tuple[str, ...]:
    """Return the jobs on the GPUs that have a fault."""
    gpus = placeable(node.gpus)
    places = {place for one in findings if one.is_fault for place in one.gpus}
    return tuple(sorted({job for place in places for job in jobs_of(gpus[place])}))


@dataclass(frozen=True, slots=True)
class _AdmissionCheck:
    """An admission check that found the same of each of its GPUs."""

    name: str
    ok: bool
    required: bool
    detail: str
    gpus: str
    """Which, in words; empty for a check of the node."""


def _admission_checks(node: NodeDetail, numbers: Mapping[str, str]) -> tuple[_AdmissionCheck, ...]:
    """Return the admission checks, those in one for which the same was found."""
    found: dict[tuple[str, bool, bool, str], set[str]] = {}
    for one in node.node_checks or ():
        scopes = found.setdefault((one.name, one.ok, one.required, one.detail), set())
        scopes.update(set() if one.scope == "node" else {one.scope})
    return tuple(_AdmissionCheck(*same, _which(scopes, numbers)) for same, scopes in found.items())


def _which(uuids: Collection[str], numbers: Mapping[str, str]) -> str:
    if len(uuids) > 1 and numbers.keys() <= set(uuids):
        return "every GPU"
    named = [number for uuid, number in numbers.items() if uuid in uuids]
    named += sorted(set(uuids) - numbers.keys())
    return f"GPU{'s' if len(named) > 1 else ''} {', '.join(named)}" if named else ""


def _numbers(node: NodeDetail) -> dict[str, str]:
    """Return by which number people name each GPU, by its UUID."""
    return {gpu.uuid: gpu_number(gpu, place) for place, gpu in enumerate(placeable(node.gpus))}


ROUTES = (PageRoute("/nodes/{node_id}", show),)
LIVE = {_PAGE: live}
