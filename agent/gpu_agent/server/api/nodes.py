"""Nodes over HTTP: list them, show one, and drain, resume, cordon, refresh or remove one.

A list is written piece by piece, so that ten thousand nodes do not block the event loop.
"""

import asyncio
import itertools
import json
from collections.abc import AsyncIterator, Iterator
from typing import Annotated, Literal

from fastapi import APIRouter, Query
from fastapi.responses import StreamingResponse
from pydantic import Field, StringConstraints, TypeAdapter

from gpu_agent.server.api.auth import api_router, needs, refusals
from gpu_agent.server.api.errors import raise_if_refused, read_stored, unknown_node, wait_until_stored
from gpu_agent.server.api.schemas import (
    ApiModel,
    CordonRequest,
    DrainRequest,
    EmptyRequest,
    EventList,
    Name,
    NodeId,
    NodeList,
)
from gpu_agent.server.service import RegistryService
from gpu_agent.server.views import NodeDetail, NodeFilter, NodeSummary
from gpu_agent.wire.codes import NodeStatus

# Nodes over HTTP: which there are, and all that is known of one.
#
# Reads only. A list is written piece by piece, so that ten thousand nodes keep nobody waiting.


NODES_IN_A_PIECE = 50

_NODE = TypeAdapter(NodeSummary)

Label = Annotated[str, StringConstraints(pattern="^[^=]+=", max_length=2049)]


class NodesQuery(ApiModel):
    """Which nodes to list; several wishes must all be met."""

    status: list[NodeStatus] = Field(default_factory=list, description="One of these statuses; repeatable.")
    model: Name | None = Field(None, description="A model that is installed, enabled and ready.")
    label: list[Label] = Field(default_factory=list, description="A label, as `name=value`; repeatable.")
    gpu_name: Name | None = Field(None, description="Part of a GPU's name, whatever the case.")
    connected: Literal["true", "false"] | None = Field(None, description="Whether it has a live connection.")
    limit: Annotated[int, Field(ge=1, le=100_000)] | None = Field(None, description="At most so many.")
    after: Name | None = Field(None, description="Only ids behind this one: the `next` of the page before.")

    def wanted(self) -> NodeFilter:
        """The wishes as the registry reads them."""
        return NodeFilter(
            statuses=frozenset(self.status),
            model=self.model,
            labels=dict(label.split("=", 1) for label in self.label),
            gpu_name=self.gpu_name,
            connected=None if self.connected is None else self.connected == "true",
        )


class EventsQuery(ApiModel):
    """How much of a node's history to show."""

    limit: Annotated[int, Field(ge=1, le=1000)] = Field(50, description="The newest so many.")


def node_routes(service: RegistryService) -> APIRouter:
    """Make the routes."""
    router = api_router("nodes")

    @router.get(
        "/v1/nodes",
        summary="List nodes",
        openapi_extra=needs("read"),
        response_model=NodeList,
        responses=refusals(503),
    )
    async def list_nodes(asked: Annotated[NodesQuery, Query()]) -> StreamingResponse:
        """List nodes by id, each with its status and the reason for it."""
        nodes = service.nodes(asked.wanted(), after=asked.after)
        await wait_until_stored(service)
        pieces = _pieces(service, nodes, limit=asked.limit)
        head = json.dumps(
            {"auth": "on" if service.auth_on else "off", "plaintext": service.plaintext},
            separators=(",", ":"),
        )
        written = _write_page(pieces, head=head, limit=asked.limit)
        return StreamingResponse(written, media_type="application/json")

    @router.get(
        "/v1/nodes/{node_id}",
        summary="Show a node",
        openapi_extra=needs("read"),
        responses=refusals(404, 503),
    )
    async def show_node(node_id: NodeId) -> NodeDetail:
        """Show all that is known of a node."""
        return await read_stored(service, lambda: node_or_404(service, node_id))

    @router.get(
        "/v1/nodes/{node_id}/events",
        summary="Show a node's history",
        openapi_extra=needs("read"),
        responses=refusals(404, 503),
    )
    async def list_node_events(node_id: NodeId, asked: Annotated[EventsQuery, Query()]) -> EventList:
        """Show what happened to a node lately, oldest first."""
        node = await read_stored(service, lambda: node_or_404(service, node_id))
        return EventList(node_id=node_id, events=node.events[-asked.limit :])

    return router


def node_or_404(service: RegistryService, node_id: str) -> NodeDetail:
    """Show a node, or end the request."""
    node = service.node(node_id)
    if node is None:
        raise unknown_node(node_id)
    return node


async def _pieces(
    service: RegistryService, nodes: Iterator[NodeSummary], *, limit: int | None
) -> AsyncIterator[list[NodeSummary]]:
    """Read one node more than is asked for, some at a time, each time what is kept."""

    def again(shown: list[NodeSummary]) -> list[NodeSummary]:
        return [node for one in shown if (node := service.node(one.node_id)) is not None]

    wanted = None if limit is None else limit + 1
    nodes = itertools.islice(nodes, wanted)
    while piece := await read_stored(
        service, lambda: list(itertools.islice(nodes, NODES_IN_A_PIECE)), again=again
    ):
        yield piece


async def _write_page(
    pieces: AsyncIterator[list[NodeSummary]], *, head: str, limit: int | None
) -> AsyncIterator[bytes]:
    """Write a page of nodes, then how many they are and where the next page begins."""
    yield f'{head[:-1]},"nodes":['.encode()
    count, last, more = 0, "", False
    async for piece in pieces:
        room = len(piece) if limit is None else limit - count
        shown, more = piece[:room], len(piece) > room
        if shown:
            yield (b"," if count else b"") + b",".join(map(_NODE.dump_json, shown))
            count, last = count + len(shown), shown[-1].node_id
        await asyncio.sleep(0)
    following = _TEXT.dump_json(last if more else None).decode()
    yield f'],"count":{count},"next":{following}}}'.encode()


_TEXT: TypeAdapter[str | None] = TypeAdapter(str | None)


# What operators wish of a node, over HTTP: empty it, close it, take it back, let it go.
#
# Each is answered once it is saved, with the node as it then stands.


_NOTHING = EmptyRequest()


def node_action_routes(service: RegistryService) -> APIRouter:
    """Make the routes."""
    router = api_router("nodes")

    @router.post(
        "/v1/nodes/{node_id}/drain",
        summary="Drain a node",
        openapi_extra=needs("operate"),
        responses=refusals(404, 503),
    )
    async def drain_node(node_id: NodeId, asked: DrainRequest) -> NodeDetail:
        """Let a node finish its jobs, then take it offline until it is resumed."""
        raise_if_refused(
            await service.drain(node_id, deadline_seconds=asked.deadline_seconds, reason=asked.reason)
        )
        return await read_stored(service, lambda: node_or_404(service, node_id))

    @router.post(
        "/v1/nodes/{node_id}/resume",
        summary="Resume a node",
        openapi_extra=needs("operate"),
        responses=refusals(404, 503),
    )
    async def resume_node(node_id: NodeId, _: EmptyRequest = _NOTHING) -> NodeDetail:
        """Take a drained node back."""
        raise_if_refused(await service.resume(node_id))
        return await read_stored(service, lambda: node_or_404(service, node_id))

    @router.post(
        "/v1/nodes/{node_id}/cordon",
        summary="Cordon a node",
        openapi_extra=needs("operate"),
        responses=refusals(404, 503),
    )
    async def cordon_node(node_id: NodeId, asked: CordonRequest) -> NodeDetail:
        """Give a node no new jobs; its status stays."""
        raise_if_refused(await service.cordon(node_id, reason=asked.reason))
        return await read_stored(service, lambda: node_or_404(service, node_id))

    @router.post(
        "/v1/nodes/{node_id}/uncordon",
        summary="Uncordon a node",
        openapi_extra=needs("operate"),
        responses=refusals(404, 503),
    )
    async def uncordon_node(node_id: NodeId, _: EmptyRequest = _NOTHING) -> NodeDetail:
        """Lift a cordon."""
        raise_if_refused(await service.uncordon(node_id))
        return await read_stored(service, lambda: node_or_404(service, node_id))

    @router.post(
        "/v1/nodes/{node_id}/refresh",
        summary="Have a node probe again",
        openapi_extra=needs("operate"),
        responses=refusals(404, 409, 503),
    )
    async def refresh_node(node_id: NodeId, _: EmptyRequest = _NOTHING) -> NodeDetail:
        """Have a node probe again now, and tell all that it finds with its next beat."""
        raise_if_refused(await service.refresh(node_id))
        return await read_stored(service, lambda: node_or_404(service, node_id))

    @router.post(
        "/v1/nodes/{node_id}/reregister",
        summary="Have a node register again",
        openapi_extra=needs("operate"),
        responses=refusals(404, 409, 503),
    )
    async def reregister_node(node_id: NodeId, _: EmptyRequest = _NOTHING) -> NodeDetail:
        """Have a node register again on its open connection."""
        raise_if_refused(await service.reregister(node_id))
        return await read_stored(service, lambda: node_or_404(service, node_id))

    @router.delete(
        "/v1/nodes/{node_id}",
        summary="Forget a node",
        status_code=204,
        openapi_extra=needs("admin"),
        responses=refusals(404, 503),
    )
    async def forget_node(node_id: NodeId) -> None:
        """Let a node's record go; a node that still lives is sent away first, and may register anew."""
        raise_if_refused(await service.forget(node_id))

    return router
