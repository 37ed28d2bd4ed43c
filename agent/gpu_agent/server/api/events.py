"""Every change as it happens, over HTTP: server-sent events, resumed where a client left off."""

from collections.abc import Callable
from typing import Annotated, Any, Literal

from fastapi import Header, Query, Request
from fastapi.responses import StreamingResponse
from pydantic import Field

from gpu_agent.server.api.auth import Caller
from gpu_agent.server.api.errors import ApiError, registry_busy
from gpu_agent.server.api.routing import api_router, needs
from gpu_agent.server.event_log import ALL_EVENTS, EventFilter, EventStreams, RegistryEventLog
from gpu_agent.wire import api

_STREAM: dict[str, Any] = {
    "description": "Server-sent events, without end",
    "content": {"text/event-stream": {"schema": {"type": "string"}}},
}
STREAM_HEADERS = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}

BEHIND_SECONDS = 10.0
"""The longest wait for an event that a reader has from another instance, and this one's copy does not yet."""

_BEHIND = (
    "this instance of the registry does not have the event yet after which to begin: send the same request "
    "again in a moment, or to another instance"
)

EventId = Annotated[int, Field(ge=0, lt=2**63)]

router = api_router("events")


class StreamQuery(api.ApiRequest):
    """Which events to follow."""

    after: EventId | None = Field(None, description="Begin after this event; left out: with the next one.")
    node_id: api.Name | None = Field(None, description="Only events of this node.")
    event: list[api.Name] = Field(
        default_factory=list, description="Only events of this identifier; repeatable."
    )
    level: Literal["info", "warning"] = Field(
        "info", description="With `warning` only what the registry logs as a warning."
    )
    since: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = Field(
        None, description="Only events from this Unix time on."
    )
    follow: api.Flag = Field(
        default=True, description="With false the stream ends with the latest event that is stored."
    )

    def filter(self) -> EventFilter:
        """Return the conditions as the registry applies them."""
        wanted = EventFilter(
            node_id=self.node_id,
            events=frozenset(self.event),
            warnings_only=self.level == "warning",
            since=self.since,
        )
        return ALL_EVENTS if wanted == ALL_EVENTS else wanted


@router.get(
    "/v1/events",
    summary="Follow every change",
    openapi_extra=needs("read"),
    response_class=StreamingResponse,
    responses={200: _STREAM},
)
async def follow_events(
    query: Annotated[StreamQuery, Query()],
    *,
    request: Request,
    last_event_id: Annotated[
        EventId | None, Header(description="The last event that was read; overrides `after`.")
    ] = None,
) -> StreamingResponse:
    """Follow every change as it happens.

    Each event has its number as `id`, its identifier as `event` (see *Log events* in the documentation),
    and JSON as `data`.
    Where events were missed, because they are too old or the reader was too slow, an event
    `events_missed` says how many, if that is known.
    """
    streams: EventStreams = request.app.state.streams
    token_id = stream_token(streams, request.state.caller)
    after = query.after if last_event_id is None else last_event_id
    log: RegistryEventLog = request.app.state.event_log
    copy_is_current: Callable[[], bool] | None = request.app.state.copy_is_current
    if after is not None and copy_is_current is not None:  # other instances may show an event before this one
        reached = await log.reach(after, within_seconds=BEHIND_SECONDS)
        if not reached and not copy_is_current():
            raise registry_busy(_BEHIND)
    pieces = streams.stream(
        log,
        after=after,
        wanted=query.filter(),
        follow=query.follow,
        token_id=token_id,
        is_valid=request.state.caller.is_valid,
    )
    return StreamingResponse(pieces, media_type="text/event-stream", headers=STREAM_HEADERS)


def stream_token(streams: EventStreams, caller: Caller) -> str | None:
    """Return the id of the token to which a new stream counts; ends the request where there are too many."""
    if streams.full:
        raise ApiError("TOO_MANY_STREAMS", "too many clients follow the events: end one, or try later")
    token_id = None if caller.credential is None else caller.credential.token_id
    if streams.full_for(token_id):
        raise ApiError("TOO_MANY_STREAMS_OF_TOKEN", "this token follows the events too often: end a stream")
    return token_id
