"""How each route of the operator API is declared: its role, and how it may refuse.

The role stands with the route, as `x-role` in what the API says of itself, so that whoever
checks credentials and whoever reads the page go by the same word. Checks nothing.
"""

from collections.abc import Sequence
from typing import Any, Literal

from fastapi import APIRouter
from fastapi.routing import APIRoute
from starlette.routing import BaseRoute, Match

from gpu_agent.server.operator.guard import Scope

ROLE = "x-role"
Needed = Literal["public", "read", "operate", "admin"]

_PROBLEM = {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}}
_MEANINGS = {
    400: "The request cannot be read",
    401: "No credential, or one that is not known",
    403: "The credential's role does not suffice, or the request comes from a foreign page",
    404: "There is no such thing",
    409: "What is asked for cannot be done as things stand",
    413: "The request is too long",
    415: "The request is not said to be JSON",
    422: "The request breaks the rules of its own form",
    503: "The registry cannot do this now: ask again in a moment",
}


def subject(tag: str) -> APIRouter:
    """Make the router of one subject."""
    return APIRouter(tags=[tag], generate_unique_id_function=_name, redirect_slashes=False)


def needs(role: Needed) -> dict[str, Any]:
    """Say which role a route needs."""
    return {ROLE: role} if role == "public" else {ROLE: role, "security": [{"operatorToken": []}]}


def refusals(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Say with which statuses a route may refuse, besides those that any route may."""
    return {status: {"description": _MEANINGS[status], "content": _PROBLEM} for status in statuses}


def role_of(route: object) -> str | None:
    """Return the role that a route was declared with; None for one that was not declared here."""
    extra = route.openapi_extra if isinstance(route, APIRoute) else None
    return None if extra is None else extra.get(ROLE)


def taker(routes: Sequence[BaseRoute], scope: Scope) -> BaseRoute | None:
    """Find the route that takes a request; None when none does."""
    return next((route for route in routes if route.matches(scope)[0] is Match.FULL), None)


def _name(route: APIRoute) -> str:
    return route.name
