"""Nodes over HTTP: which there are, and all that is known of one.

Reads only. A list is written piece by piece, so that ten thousand nodes keep nobody waiting.
"""

import asyncio
import itertools
import json
from collections.abc import AsyncIterator, Iterator
from typing import Annotated, Literal

from fastapi import APIRouter, Query
from fastapi.responses import StreamingResponse
from pydantic import Field, StringConstraints, TypeAdapter

from gpu_agent.server.node_filter import NodeFilter
from gpu_agent.server.operator.models import ApiModel, EventList, Name, NodeList
from gpu_agent.server.operator.paths import NodeId
from gpu_agent.server.operator.problems import unknown_node
from gpu_agent.server.operator.reads import kept, settled
from gpu_agent.server.operator.routes import needs, refusals, subject
from gpu_agent.server.service import RegistryService
from gpu_agent.server.views import NodeDetail, NodeSummary
from gpu_agent.wire.codes import NodeStatus

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


def about_nodes(service: RegistryService) -> APIRouter:
    """Make the routes."""
    router = subject("nodes")

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
        await settled(service)
        pieces = _pieces(service, nodes, limit=asked.limit)
        head = json.dumps(
            {"auth": "on" if service.auth_on else "off", "plaintext": service.plaintext},
            separators=(",", ":"),
        )
        written = _written(pieces, head=head, limit=asked.limit)
        return StreamingResponse(written, media_type="application/json")

    @router.get(
        "/v1/nodes/{node_id}",
        summary="Show a node",
        openapi_extra=needs("read"),
        responses=refusals(404, 503),
    )
    async def show_node(node_id: NodeId) -> NodeDetail:
        """Show all that is known of a node."""
        return await kept(service, lambda: known(service, node_id))

    @router.get(
        "/v1/nodes/{node_id}/events",
        summary="Show a node's history",
        openapi_extra=needs("read"),
        responses=refusals(404, 503),
    )
    async def list_node_events(node_id: NodeId, asked: Annotated[EventsQuery, Query()]) -> EventList:
        """Show what happened to a node lately, oldest first."""
        node = await kept(service, lambda: known(service, node_id))
        return EventList(node_id=node_id, events=node.events[-asked.limit :])

    return router


def known(service: RegistryService, node_id: str) -> NodeDetail:
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
    while piece := await kept(service, lambda: list(itertools.islice(nodes, NODES_IN_A_PIECE)), again=again):
        yield piece


async def _written(
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
