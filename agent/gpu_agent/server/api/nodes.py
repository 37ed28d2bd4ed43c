"""Nodes over HTTP: list them, show one, explain one, and drain, resume, cordon, refresh, check or remove one.

A change is answered once it is stored, with the node as it is then. Reads never wait for the store: a node
says `stored: false` while a change of it is not stored. A list is written piece by piece, so that ten
thousand nodes do not block the event loop.

To add a route:

1. `wire.api`: its request and its answer; `server.service`: a method that answers (`server.views` draws what
   a record shows); here: a function with `needs(role)` and `refusals(HTTP statuses)`; with `RegistryRead` its
   answer names the newest event;
2. a line of the table in `docs/reference/api.md`, and `make schema`, which writes
   `docs/reference/schema/openapi.json`;
3. where it refuses with a code of its own: `wire.documents.PROBLEM_CODES`, and `server.api.errors.STATUSES`
   unless that is 409;
4. where programs need it: `client.routes`, and a method in `client.aio` and in `client.sync`;
5. where a command needs it: `cli.registry.nodes`, its name in `cli.main`, `make reference`, and the route in
   `tests/cli/answers.py`.
"""

import asyncio
import itertools
import json
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping
from typing import Annotated

from fastapi import Query, Request
from fastapi.responses import StreamingResponse
from pydantic import Field, StringConstraints, TypeAdapter

from gpu_agent.registry.actions import Refusal
from gpu_agent.server.api.auth import requester_of
from gpu_agent.server.api.errors import ApiError, raise_if_refused, refuse_body, unknown_node
from gpu_agent.server.api.routing import (
    EVENT_ID,
    WITH_EVENT_ID,
    GpuUuid,
    NodeId,
    Registry,
    RegistryRead,
    api_router,
    needs,
    refusals,
)
from gpu_agent.server.fleet_view import MAX_CURSOR, CursorError, NodeQuery, Show, Sort
from gpu_agent.server.service import RegistryService
from gpu_agent.server.views import NodeFilter
from gpu_agent.wire.api import (
    ApiRequest,
    CordonRequest,
    DrainRequest,
    EventList,
    Flag,
    Name,
    NodeDetail,
    NodeExplanation,
    NodeList,
    NodeSummary,
    ReasonRequest,
    Sentence,
)
from gpu_agent.wire.codes import NodeStatus, ReasonCode
from gpu_agent.wire.fleet_documents import FleetFigures, NodeGpuHistory

NODES_IN_A_PIECE = 50
MOST_NODES = 100_000
"""Characters: a cursor holds a hostname."""

_NO_REASON = ReasonRequest()
_OPTIONAL_TEXT: TypeAdapter[str | None] = TypeAdapter(str | None)

LabelPair = Annotated[str, StringConstraints(pattern="^[^=]+=", max_length=2049)]

router = api_router("nodes")


def labels_of(pairs: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """Return the values of each label that `name=value` pairs state: of one name each value will do."""
    values: dict[str, tuple[str, ...]] = {}
    for name, _, value in (pair.partition("=") for pair in pairs):
        values[name] = (*values.get(name, ()), value)
    return values


class NodesQuery(ApiRequest):
    """Which nodes to list: those that match every condition."""

    status: list[NodeStatus] = Field(default_factory=list, description="One of these statuses; repeatable.")
    reason: ReasonCode | None = Field(None, description="Why it has its status.")
    model: Name | None = Field(None, description="A model that is installed, enabled and ready.")
    label: list[LabelPair] = Field(
        default_factory=list,
        description="A label, as `name=value`; repeatable: of one name any of the values.",
    )
    gpu_name: Name | None = Field(None, description="Part of a GPU's name, in upper or lower case.")
    connected: Flag | None = Field(None, description="Whether it has a live connection.")
    q: Name | None = Field(
        None,
        description="Part of a hostname, an id, an address, a label's value, a GPU's name or a ready model.",
    )
    show: Show | None = Field(
        None,
        description="Nodes that need attention, or with a GPU of this kind: `free`, `claimed`, `idle` though "
        "claimed, `unclaimed` (used without a claim) or `cordoned`.",
    )
    sort: Sort | None = Field(
        None,
        description="The most urgent first, by hostname, by status, the most free GPUs first, or the latest "
        "change of status first; left out: by id.",
    )
    limit: Annotated[int, Field(ge=1, le=MOST_NODES)] | None = Field(None, description="At most so many.")
    after: Annotated[str, StringConstraints(min_length=1, max_length=MAX_CURSOR)] | None = Field(
        None, description="Only what comes behind: the `next` of the page before."
    )

    def filter(self) -> NodeFilter:
        """Return the conditions as the registry applies them."""
        return NodeFilter(
            statuses=frozenset(self.status),
            reason=self.reason,
            model=self.model,
            labels=labels_of(self.label),
            gpu_name=self.gpu_name,
            connected=self.connected,
            text=self.q,
        )

    def query(self) -> NodeQuery | None:
        """Return the list in an order of its own, or of some nodes; None where it is by id."""
        if self.sort is None and self.show is None:
            return None
        return NodeQuery(wanted=self.filter(), show=self.show, sort=self.sort or Sort.SEVERITY)


class EventsQuery(ApiRequest):
    """How much of a node's history to show."""

    limit: Annotated[int, Field(ge=1, le=1000)] = Field(50, description="The newest so many.")


class ReasonQuery(ApiRequest):
    """Why something is removed."""

    reason: Sentence = Field("", description="Why, for people who read the events; at most 500 characters.")


class ExplainQuery(ApiRequest):
    """What to explain besides."""

    model: Name | None = Field(None, description="Also the state of this model on the node.")


@router.get(
    "/v1/nodes",
    summary="List nodes",
    openapi_extra=needs("read"),
    response_model=NodeList,
    responses={**WITH_EVENT_ID, **refusals(404)},
)
async def list_nodes(query: Annotated[NodesQuery, Query()], registry: Registry) -> StreamingResponse:
    """List nodes, each with its status and the reason for it: by id, or in the order of `sort`."""
    event_id = str(registry.event_log.last_id)
    head = {"auth": "on" if registry.auth_on else "off", "plaintext": registry.plaintext}
    in_order = query.query()
    if in_order is None:
        nodes = registry.nodes(query.filter(), after=query.after)
        pieces = _write_page(nodes, head=head, limit=query.limit)
    else:
        try:
            nodes, page = await registry.page_of_nodes(
                in_order, after=query.after, limit=query.limit or MOST_NODES
            )
        except CursorError as error:
            raise ApiError("NOT_FOUND", f"$.after: {error}") from None
        pieces = _write_page(nodes, head=head, limit=query.limit, following=page.after)
    return StreamingResponse(pieces, media_type="application/json", headers={EVENT_ID: event_id})


@router.get(
    "/v1/fleet",
    summary="Show the fleet in figures",
    openapi_extra=needs("read"),
    responses=WITH_EVENT_ID,
)
async def show_fleet(registry: RegistryRead) -> FleetFigures:
    """Count nodes by status and reason, GPUs by status and model, slots and models."""
    return await registry.fleet_figures()


@router.get(
    "/v1/nodes/{node_id}",
    summary="Show a node",
    openapi_extra=needs("read"),
    responses={**WITH_EVENT_ID, **refusals(404)},
)
async def show_node(node_id: NodeId, registry: RegistryRead) -> NodeDetail:
    """Show all that the registry knows of a node."""
    await registry.fetch_figures(node_id)
    return _node(registry, node_id)


@router.get(
    "/v1/nodes/{node_id}/events",
    summary="Show a node's history",
    openapi_extra=needs("read"),
    responses=refusals(404),
)
async def list_node_events(
    node_id: NodeId, query: Annotated[EventsQuery, Query()], registry: Registry
) -> EventList:
    """Show a node's latest events, oldest first."""
    return EventList(node_id=node_id, events=_node(registry, node_id).events[-query.limit :])


@router.get(
    "/v1/nodes/{node_id}/gpu-history",
    summary="Show what a node's GPUs did lately",
    openapi_extra=needs("read"),
    responses=refusals(404),
)
async def show_gpu_history(node_id: NodeId, registry: Registry) -> NodeGpuHistory:
    """Show use, memory, temperature and power of each GPU over the last 15 minutes."""
    found = registry.gpu_history(node_id)
    if found is None:
        raise unknown_node(node_id)
    return found


@router.get(
    "/v1/nodes/{node_id}/explain",
    summary="Explain why a node gets no job",
    openapi_extra=needs("read"),
    responses=refusals(404),
)
async def explain_node(
    node_id: NodeId, query: Annotated[ExplainQuery, Query()], registry: Registry
) -> NodeExplanation:
    """Explain which jobs a node would refuse now, why, and what would change it."""
    explanation = registry.explain_node(node_id, query.model)
    if explanation is None:
        raise unknown_node(node_id)
    return explanation


@router.post(
    "/v1/nodes/{node_id}/drain",
    summary="Drain a node",
    openapi_extra=needs("operate"),
    responses=refusals(404),
)
async def drain_node(
    node_id: NodeId, body: DrainRequest, *, request: Request, registry: Registry
) -> NodeDetail:
    """Let a node finish its jobs, then take it offline until it is resumed."""
    refusal = await registry.drain(
        node_id, deadline_seconds=body.deadline_seconds, reason=body.reason, by=_name_of(request)
    )
    return await changed_node(registry, node_id, refusal)


@router.post(
    "/v1/nodes/{node_id}/resume",
    summary="Resume a node",
    openapi_extra=needs("operate"),
    responses=refusals(404),
)
async def resume_node(
    node_id: NodeId, *, request: Request, registry: Registry, body: ReasonRequest = _NO_REASON
) -> NodeDetail:
    """Return a drained node to service."""
    refusal = await registry.resume(node_id, reason=body.reason, by=_name_of(request))
    return await changed_node(registry, node_id, refusal)


@router.post(
    "/v1/nodes/{node_id}/cordon",
    summary="Cordon a node",
    openapi_extra=needs("operate"),
    responses=refusals(404),
)
async def cordon_node(
    node_id: NodeId, body: CordonRequest, *, request: Request, registry: Registry
) -> NodeDetail:
    """Give a node no new jobs; its status stays."""
    refusal = await registry.cordon(node_id, reason=body.reason, by=_name_of(request))
    return await changed_node(registry, node_id, refusal)


@router.post(
    "/v1/nodes/{node_id}/uncordon",
    summary="Uncordon a node",
    openapi_extra=needs("operate"),
    responses=refusals(404),
)
async def uncordon_node(
    node_id: NodeId, *, request: Request, registry: Registry, body: ReasonRequest = _NO_REASON
) -> NodeDetail:
    """Give a cordoned node jobs again."""
    refusal = await registry.uncordon(node_id, reason=body.reason, by=_name_of(request))
    return await changed_node(registry, node_id, refusal)


@router.post(
    "/v1/nodes/{node_id}/gpus/{uuid}/cordon",
    summary="Cordon one GPU",
    openapi_extra=needs("operate"),
    responses=refusals(404),
)
async def cordon_gpu(
    node_id: NodeId, uuid: GpuUuid, body: CordonRequest, *, request: Request, registry: Registry
) -> NodeDetail:
    """Give one GPU to no new claim, until it is uncordoned; claims that hold it go on."""
    refusal = await registry.cordon_gpu(node_id, uuid, reason=body.reason, by=_name_of(request))
    return await changed_node(registry, node_id, refusal)


@router.post(
    "/v1/nodes/{node_id}/gpus/{uuid}/uncordon",
    summary="Uncordon one GPU",
    openapi_extra=needs("operate"),
    responses=refusals(404),
)
async def uncordon_gpu(
    node_id: NodeId,
    uuid: GpuUuid,
    *,
    request: Request,
    registry: Registry,
    body: ReasonRequest = _NO_REASON,
) -> NodeDetail:
    """Let claims have a cordoned GPU again."""
    refusal = await registry.uncordon_gpu(node_id, uuid, reason=body.reason, by=_name_of(request))
    return await changed_node(registry, node_id, refusal)


@router.post(
    "/v1/nodes/{node_id}/refresh",
    summary="Have a node probe again",
    openapi_extra=needs("operate"),
    responses=refusals(404, 409),
)
async def refresh_node(
    node_id: NodeId, *, request: Request, registry: Registry, body: ReasonRequest = _NO_REASON
) -> NodeDetail:
    """Have a node probe again now, and report everything with its next heartbeat."""
    refusal = await registry.refresh(node_id, reason=body.reason, by=_name_of(request))
    return await changed_node(registry, node_id, refusal)


@router.post(
    "/v1/nodes/{node_id}/reregister",
    summary="Have a node register again",
    openapi_extra=needs("operate"),
    responses=refusals(404, 409),
)
async def reregister_node(
    node_id: NodeId, *, request: Request, registry: Registry, body: ReasonRequest = _NO_REASON
) -> NodeDetail:
    """Have a node register again on its open connection."""
    refusal = await registry.reregister(node_id, reason=body.reason, by=_name_of(request))
    return await changed_node(registry, node_id, refusal)


@router.post(
    "/v1/nodes/{node_id}/check",
    summary="Have a node run its checks",
    openapi_extra=needs("operate"),
    responses=refusals(404, 409),
)
async def check_node(
    node_id: NodeId, *, request: Request, registry: Registry, body: ReasonRequest = _NO_REASON
) -> NodeDetail:
    """Have a node run its admission checks now, on the GPUs that are not in use, and report their results."""
    refusal = await registry.check(node_id, reason=body.reason, by=_name_of(request))
    return await changed_node(registry, node_id, refusal)


@router.delete(
    "/v1/nodes/{node_id}",
    summary="Remove a node",
    status_code=204,
    openapi_extra=needs("admin"),
    responses=refusals(404),
)
async def remove_node(
    node_id: NodeId, query: Annotated[ReasonQuery, Query()], *, request: Request, registry: Registry
) -> None:
    """Remove a node's record; a connected node is disconnected first, and may register again."""
    await refuse_body(request, lambda: registry.node(node_id), instead="`node_id` in the path names the node")
    raise_if_refused(await registry.remove(node_id, reason=query.reason, by=_name_of(request)))


async def changed_node(registry: RegistryService, node_id: str, refusal: Refusal | None) -> NodeDetail:
    """Answer a change, which is stored by now, with the node as it is."""
    raise_if_refused(refusal)
    return _node(registry, node_id)


def _name_of(request: Request) -> str:
    """Return whose token a request has; empty with auth off."""
    return requester_of(request).name or ""


def _node(registry: RegistryService, node_id: str) -> NodeDetail:
    node = registry.node(node_id)
    if node is None:
        raise unknown_node(node_id)
    return node


async def _write_page(
    nodes: Iterator[NodeSummary],
    *,
    head: Mapping[str, object],
    limit: int | None,
    following: str | None = None,
) -> AsyncIterator[bytes]:
    """Write a page as `NodeList` reads it, in pieces: the nodes, their count, where the next page begins.

    Without `following` the last id is where that is.
    """
    yield f'{json.dumps(head, separators=(",", ":"))[:-1]},"nodes":['.encode()
    count, last = 0, ""
    page = itertools.islice(nodes, limit)
    while piece := list(itertools.islice(page, NODES_IN_A_PIECE)):
        yield (b"," if count else b"") + b",".join(node.model_dump_json().encode() for node in piece)
        count, last = count + len(piece), piece[-1].node_id
        await asyncio.sleep(0)
    more = limit is not None and next(nodes, None) is not None
    last_or_none = _OPTIONAL_TEXT.dump_json(following or (last if more else None)).decode()
    yield f'],"count":{count},"next":{last_or_none}}}'.encode()
