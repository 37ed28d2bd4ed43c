"""How a route of the operators' API is declared: its role, its refusals, the ids in its path, its registry.

The role stands with the route as `x-role` in the OpenAPI document.
"""

from typing import Annotated, Any, Literal, cast

from fastapi import APIRouter, Depends, Path, Request, Response
from fastapi.routing import APIRoute
from starlette.convertors import StringConvertor, register_url_convertor

from gpu_agent.server.api.auth import PUBLIC, ROLE, ApiRoute
from gpu_agent.server.api.errors import LEADS_NO_MORE, PROBLEM_JSON, registry_busy
from gpu_agent.server.service import RegistryService

EVENT_ID = "X-Event-Id"

WITH_EVENT_ID: dict[int | str, dict[str, Any]] = {
    200: {
        "headers": {
            EVENT_ID: {
                "description": "The newest event before this answer: follow `/v1/events?after=` from there.",
                "schema": {"type": "integer"},
            }
        }
    }
}
"""Declares the header of a route that uses `RegistryRead`."""

_MEANINGS = {
    400: "The request cannot be read",
    401: "No credential, or an unknown one",
    403: "The credential's role does not suffice, or the request comes from a foreign web page",
    404: "There is no such thing",
    409: "The current state does not allow this",
    413: "The request is too large",
    415: "The request does not say that it is JSON",
    422: "The request has a wrong or unknown field",
    429: "Too many at a time: try again later",
    431: "The first line and the headers of the request are too long",
    500: "A fault of the registry: its log says more",
    502: "The instance that leads was lost before its answer: the request may have been carried out",
    503: "The registry cannot do this now: try again in a moment",
}


class _JobIdConvertor(StringConvertor):
    """Takes the rest of a path, or all up to its last part: a job's id may hold slashes and line ends."""

    regex = "(?s:.+)"


register_url_convertor("job_id", _JobIdConvertor())

NodeId = Annotated[str, Path(min_length=1, max_length=128, description="A node's id.")]
GpuUuid = Annotated[str, Path(min_length=1, max_length=128, description="A GPU's UUID.")]
JobId = Annotated[
    str,
    Path(min_length=1, max_length=256, description="A job's id, percent-encoded: a slash in it is `%2F`."),
]
TokenId = Annotated[
    str, Path(min_length=1, max_length=64, description="The id in a token's text, between its underscores.")
]


async def _registry(request: Request) -> RegistryService:
    registry = cast("RegistryService | None", request.app.state.registry)
    if registry is None:
        raise registry_busy(LEADS_NO_MORE)
    return registry


Registry = Annotated[RegistryService, Depends(_registry)]
"""The registry that a route asks."""


async def _registry_read(request: Request, response: Response) -> RegistryService:
    """Return the registry, and name in the answer the event after which a follower goes on.

    The id is read before the list: what changes meanwhile is in both, and nothing is in neither.
    """
    registry = await _registry(request)
    response.headers[EVENT_ID] = str(registry.event_log.last_id)
    return registry


RegistryRead = Annotated[RegistryService, Depends(_registry_read)]
"""The registry, for a route whose answer names the newest event in `X-Event-Id`."""


def api_router(tag: str) -> APIRouter:
    """Make the router of one subject."""
    return APIRouter(
        tags=[tag], route_class=ApiRoute, generate_unique_id_function=_operation_id, redirect_slashes=False
    )


def needs(role: Literal["public", "read", "operate", "admin"]) -> dict[str, Any]:
    """Declare which role a route needs."""
    return {ROLE: role} if role == PUBLIC else {ROLE: role, "security": [{"operatorToken": []}]}


def refusals(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Declare with which statuses a route may refuse, besides those of every route."""
    problem = {PROBLEM_JSON: {"schema": {"$ref": "#/components/schemas/Problem"}}}
    return {status: {"description": _MEANINGS[status], "content": problem} for status in statuses}


def _operation_id(route: APIRoute) -> str:
    return route.name
