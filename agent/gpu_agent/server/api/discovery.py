"""Bridges to other programs: the workers that a router may send requests to, and Prometheus' targets."""

import time
from collections.abc import Iterator
from typing import Annotated, Any, cast
from urllib.parse import urlsplit

from fastapi import Header, Query, Request, Response
from fastapi.responses import StreamingResponse
from pydantic import Field

from gpu_agent.server.api.auth import Caller
from gpu_agent.server.api.events import STREAM_HEADERS, stream_token
from gpu_agent.server.api.nodes import LabelPair, labels_of
from gpu_agent.server.api.routing import Registry, api_router, needs
from gpu_agent.server.event_log import EventStreams
from gpu_agent.server.service import RegistryService
from gpu_agent.server.views import NodeFilter
from gpu_agent.wire.api import ApiRequest, Name, NodeSummary
from gpu_agent.wire.codes import NodeStatus
from gpu_agent.wire.service_discovery import EndpointList, ScrapeTarget

METRICS_LABEL = "metrics_endpoint"
"""A node's label that states where its metrics are, if not at its endpoint."""
FRESH_SECONDS = 1.0
"""A list is made at most so often for all that read the same one."""
_MOST_LISTS = 64
_EVENT_STREAM = "text/event-stream"

_ANSWERS: dict[int | str, dict[str, Any]] = {
    200: {
        "model": EndpointList,
        "description": "The list; with `Accept: text/event-stream` it, and it again after each change",
        "content": {_EVENT_STREAM: {"schema": {"type": "string"}}},
    }
}

router = api_router("service discovery")


class EndpointsQuery(ApiRequest):
    """Which workers to list: those of nodes that match every condition."""

    model: Name | None = Field(None, description="A model that is installed, enabled and ready.")
    label: list[LabelPair] = Field(
        default_factory=list,
        description="A label, as `name=value`; repeatable: of one name any of the values.",
    )


class EndpointLists:
    """The lists that routers read, each made at most once a second."""

    def __init__(self) -> None:
        self._made: dict[str, tuple[float, bytes]] = {}

    def read(self, registry: RegistryService, query: EndpointsQuery) -> bytes:
        """Return a list as JSON."""
        key, now = query.model_dump_json(), time.monotonic()
        made = self._made.get(key)
        if made is not None and now - made[0] < FRESH_SECONDS:
            return made[1]
        if len(self._made) >= _MOST_LISTS:
            self._made.clear()
        endpoints = tuple(
            registry.endpoints(
                NodeFilter(
                    statuses=frozenset({NodeStatus.READY}),
                    model=query.model,
                    labels=labels_of(query.label),
                    connected=True,
                )
            )
        )
        document = EndpointList(endpoints=endpoints, count=len(endpoints)).model_dump_json().encode()
        self._made[key] = now, document
        return document


@router.get(
    "/v1/endpoints",
    summary="List the workers of ready nodes",
    openapi_extra=needs("read"),
    response_class=Response,
    responses=_ANSWERS,
)
async def list_endpoints(
    query: Annotated[EndpointsQuery, Query()],
    *,
    request: Request,
    registry: Registry,
    accept: Annotated[str, Header(description="`text/event-stream` follows the list as it changes.")] = "",
) -> Response:
    """List where the workers of ready nodes are reached, for a router: no cordoned or draining node is in it.

    A node's slots are counted as for a job. As an event stream, the list comes at once, and again within a
    second of each change.
    """
    lists: EndpointLists = request.app.state.endpoint_lists
    if _EVENT_STREAM not in accept:
        return Response(lists.read(registry, query), media_type="application/json")
    streams: EventStreams = request.app.state.streams
    caller = cast("Caller", request.state.caller)
    token_id = stream_token(streams, caller)
    pieces = streams.watch(
        lambda: lists.read(registry, query), event="endpoints", token_id=token_id, is_valid=caller.is_valid
    )
    return StreamingResponse(pieces, media_type=_EVENT_STREAM, headers=STREAM_HEADERS)


@router.get(
    "/v1/http_sd",
    summary="List targets for Prometheus",
    openapi_extra=needs("read"),
)
async def list_scrape_targets(registry: Registry) -> list[ScrapeTarget]:
    """List what Prometheus scrapes on the nodes (`http_sd_configs`): their endpoints, unless offline.

    The label `metrics_endpoint` of a node names another place for its metrics.
    """
    return list(_targets(registry.nodes()))


def _targets(nodes: Iterator[NodeSummary]) -> Iterator[ScrapeTarget]:
    for node in nodes:
        stated = node.labels.get(METRICS_LABEL) or node.endpoint
        if stated is None or node.status == NodeStatus.OFFLINE:
            continue
        url = urlsplit(stated if "//" in stated else f"//{stated}")
        if not url.netloc:
            continue
        labels = {
            "__meta_gpu_agent_node_id": node.node_id,
            "__meta_gpu_agent_hostname": node.hostname or "",
            "__meta_gpu_agent_status": node.status,
            **{f"__meta_gpu_agent_label_{_label_name(name)}": value for name, value in node.labels.items()},
        }
        if url.scheme in ("http", "https"):
            labels["__scheme__"] = url.scheme
        if METRICS_LABEL in node.labels and url.path.strip("/"):
            labels["__metrics_path__"] = url.path
        yield ScrapeTarget(targets=(url.netloc,), labels=labels)


def _label_name(name: str) -> str:
    """Return a name that Prometheus takes, as its own service discoveries write it."""
    return "".join(one if one.isascii() and (one.isalnum() or one == "_") else "_" for one in name)
