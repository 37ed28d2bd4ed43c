"""Every change as it happens, over HTTP: server-sent events, resumed from the last event that a client read."""

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Header, Query
from fastapi.responses import StreamingResponse
from pydantic import Field

from gpu_agent.server.api.auth import api_router, needs, refusals
from gpu_agent.server.api.errors import TOO_MANY_STREAMS, ApiError
from gpu_agent.server.api.schemas import ApiModel, Name
from gpu_agent.server.event_log import EventStreams
from gpu_agent.server.service import RegistryService

_STREAM: dict[str, Any] = {
    "description": "Server-sent events, without end",
    "content": {"text/event-stream": {"schema": {"type": "string"}}},
}
_HEADERS = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}

EventId = Annotated[int, Field(ge=0, lt=2**63)]


class StreamQuery(ApiModel):
    """Which events to follow."""

    after: EventId | None = Field(None, description="Begin behind this event; left out: with the next one.")
    node_id: Name | None = Field(None, description="Only events of this node.")
    follow: Literal["true", "false"] = Field(
        "true", description="With false the stream ends where the present begins: only what was is told."
    )


def event_routes(service: RegistryService, streams: EventStreams) -> APIRouter:
    """Make the routes."""
    router = api_router("events")

    @router.get(
        "/v1/events",
        summary="Follow every change",
        openapi_extra=needs("read"),
        response_class=StreamingResponse,
        responses={
            200: _STREAM,
            **refusals(503),
        },
    )
    async def follow_events(
        asked: Annotated[StreamQuery, Query()],
        last_event_id: Annotated[
            EventId | None, Header(description="The last event that was read; goes before `after`.")
        ] = None,
    ) -> StreamingResponse:
        """Follow every change as it happens.

        Each event has its number as `id`, its identifier as `event` (docs/logs.md), and JSON as `data`.
        Where events were missed, because they are too long ago or the reader was too slow, an event
        `events_missed` says how many, if that is known.
        """
        if streams.full:
            raise ApiError(TOO_MANY_STREAMS, "too many follow the events already: end one, or try later")
        after = asked.after if last_event_id is None else last_event_id
        written = streams.stream(service, after=after, node_id=asked.node_id, on=asked.follow == "true")
        return StreamingResponse(written, media_type="text/event-stream", headers=_HEADERS)

    return router
