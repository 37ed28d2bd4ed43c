"""Why a job waits: each node's answer to its demands, the nearest first."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice

from gpu_agent.registry.dispatch.exclusions import Excluded, Explanation, clears_when
from gpu_agent.registry.job import Job
from gpu_agent.server.service import RegistryService
from gpu_agent.server.web.visit import Visit
from gpu_agent.wire.codes import ExclusionReason

PAGE_ROWS = 100


@dataclass(frozen=True, slots=True)
class NodeAnswer:
    """One node's answer."""

    node_id: str
    name: str
    reason: str
    """Empty for a node that takes the job."""
    need: str
    have: str
    clears_when: str
    is_near: bool
    """Whether no other excluded node passes more filters."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """The answer of all nodes to one job."""

    lead: str
    advice: str
    fits: bool
    eligible: int
    nodes: int
    counts: tuple[tuple[str, int], ...]
    reason: str
    """Only nodes that this reason excludes are listed; empty for all."""
    rows: tuple[NodeAnswer, ...]
    first: int
    """The place of the first row, from 0."""
    total: int
    """How many rows all pages have."""

    @property
    def previous(self) -> int:
        """The place of the first row of the page before."""
        return max(0, self.first - PAGE_ROWS)


async def explain(visit: Visit, job: Job) -> Answer:
    """Ask each node whether it takes a job; reserves nothing."""
    registry = visit.registry
    found = await registry.explain(job)
    reason = visit.query.get("reason", "")
    if reason not in {one.value for one in ExclusionReason}:
        reason = ""
    excluded = [one for one in found.excluded if not reason or one.reason.value == reason]
    eligible = () if reason else found.eligible_nodes
    first = _offset(visit.query.get("from", ""))
    fits = len(found.eligible_nodes) >= job.nodes
    rows = [
        NodeAnswer(one.node_id, one.hostname or one.node_id, "", "", "takes the job now", "", is_near=False)
        for one in eligible[first : first + PAGE_ROWS]
    ]
    begin = max(0, first - len(eligible))
    rows += _excluded_rows(registry, excluded, found.excluded, begin=begin, most=PAGE_ROWS - len(rows))
    return Answer(
        lead=_lead(found, job, fits=fits),
        advice=_advice(registry, found, fits=fits),
        fits=fits,
        eligible=len(found.eligible_nodes),
        nodes=len(found.eligible_nodes) + len(found.excluded),
        counts=tuple((code.value, count) for code, count in found.counts.items()),
        reason=reason,
        rows=tuple(rows),
        first=first,
        total=len(eligible) + len(excluded),
    )


def _excluded_rows(
    registry: RegistryService,
    excluded: Sequence[Excluded],
    everybody: Sequence[Excluded],
    *,
    begin: int,
    most: int,
) -> list[NodeAnswer]:
    nearest = everybody[0].reason if everybody else None
    return [
        NodeAnswer(
            one.node_id,
            one.hostname or one.node_id,
            one.reason.value,
            one.need,
            one.have,
            clears_when(one, registry.explain_node(one.node_id)),
            is_near=one.reason is nearest,
        )
        for one in islice(excluded, begin, begin + most)
    ]


def _lead(found: Explanation, job: Job, *, fits: bool) -> str:
    count = len(found.eligible_nodes)
    if fits:
        nodes = "1 node" if count == 1 else f"{count:,} nodes"
        return f"It fits now: {nodes} can take it."
    if not count and not found.excluded:
        return "No node is registered."
    if job.nodes > 1:
        return f"It needs {job.nodes} nodes, and {count:,} can take it now."
    nearest = found.excluded[0]
    return f"No node can take it now. Nearest: {nearest.hostname or nearest.node_id}, {nearest.have}."


def _advice(registry: RegistryService, found: Explanation, *, fits: bool) -> str:
    if fits:
        return "Nothing is reserved by asking. A job that waits gets its claim in the order of the queue."
    if not found.excluded:
        return "Start an agent on a machine with a GPU: it registers by itself."
    nearest = found.excluded[0]
    until = clears_when(nearest, registry.explain_node(nearest.node_id))
    name = nearest.hostname or nearest.node_id
    needs = f"{name} lacks this: {nearest.need}."
    return f"{needs} That changes when {until}." if until else needs


def _offset(text: str) -> int:
    return int(text) if text.isdecimal() and len(text) < 8 else 0  # noqa: PLR2004 - far more than nodes
