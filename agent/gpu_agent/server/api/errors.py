"""How the operators' API answers errors: problem documents (RFC 9457), and a status for every code."""

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from starlette.routing import Match, Route

from gpu_agent.registry.actions import Refusal, unknown_node_message
from gpu_agent.registry.claims import CLAIM_NOT_FOUND
from gpu_agent.registry.dispatch.refusals import NO_AVAILABLE_NODE, NoAvailableNode
from gpu_agent.registry.token_issuing import UNKNOWN_TOKEN
from gpu_agent.server.api.auth import App
from gpu_agent.server.api.schemas import Problem, no_available_node_fields
from gpu_agent.server.service import RegistryService
from gpu_agent.wire.codes import ErrorCode

# How the operator API refuses: one shape for every refusal, and a status for every code (RFC 9457).
#
# Makes documents; decides nothing about who is refused.


NOT_READY = "NOT_READY"
TOO_MANY_STREAMS = "TOO_MANY_STREAMS"
BACKUP_FAILED = "BACKUP_FAILED"
NOTHING_TO_BACK_UP = "NOTHING_TO_BACK_UP"
PROBLEM_JSON = "application/problem+json"

BAD_REQUEST, NOT_FOUND, METHOD_NOT_ALLOWED, CONFLICT, UNPROCESSABLE = 400, 404, 405, 409, 422
INTERNAL_ERROR, UNAVAILABLE = 500, 503

_STATUSES = {
    ErrorCode.UNKNOWN_NODE.value: NOT_FOUND,
    CLAIM_NOT_FOUND: NOT_FOUND,
    UNKNOWN_TOKEN: NOT_FOUND,
    ErrorCode.REGISTRY_BUSY.value: UNAVAILABLE,
    NOT_READY: UNAVAILABLE,
    TOO_MANY_STREAMS: UNAVAILABLE,
    BACKUP_FAILED: UNAVAILABLE,
}
"""The statuses of the codes that are no conflict."""


class ApiError(Exception):
    """Ends a request with a problem document."""

    def __init__(self, code: str, detail: str, **more: object) -> None:
        super().__init__(detail)
        self.code, self.detail, self.more = code, detail, more


def raise_if_refused(refusal: Refusal | None) -> None:
    """End the request if the fleet refused what was asked."""
    if refusal is not None:
        raise ApiError(refusal.code, refusal.message)


def unknown_node(node_id: str) -> ApiError:
    """Refuse what is asked of a node that there is not."""
    return ApiError(ErrorCode.UNKNOWN_NODE.value, unknown_node_message(node_id))


def no_available_node(verdict: NoAvailableNode) -> ApiError:
    """Refuse a job that no node can take, with what each of them fell to, counted (A-8)."""
    if not verdict.counts:
        detail = "no node has ever registered: start an agent with `gpu-agent run --registry URL`"
    else:
        counted = ", ".join(f"{count} {reason.value}" for reason, count in verdict.counts.items())
        detail = f"no node can take this job ({counted}): `gpu-agent registry explain` says why, node by node"
    return ApiError(NO_AVAILABLE_NODE, detail, **no_available_node_fields(verdict))


def problem_response(status: int, code: str, detail: str, **more: object) -> JSONResponse:
    """Write a problem document."""
    title = code.replace("_", " ").capitalize()
    document = Problem.model_validate(
        {"status": status, "title": title, "code": code, "detail": detail, **more}
    )
    return JSONResponse(document.model_dump(exclude_none=True), status_code=status, media_type=PROBLEM_JSON)


def refusal_app(status: int, code: str, detail: str) -> App:
    """Make the answer of those who stand before the application."""
    return problem_response(status, code, detail)


def add_error_handlers(app: FastAPI) -> None:
    """Let every refusal and every fault of an application be answered with a problem document."""
    app.add_exception_handler(ApiError, _on_api_error)
    app.add_exception_handler(RequestValidationError, _on_invalid)
    app.add_exception_handler(Exception, _on_internal_error)
    for status in (BAD_REQUEST, NOT_FOUND, METHOD_NOT_ALLOWED):
        app.add_exception_handler(status, _on_http)


async def _on_api_error(_: Request, refused: Exception) -> Response:
    assert isinstance(refused, ApiError)  # noqa: S101 - registered for nothing else
    return problem_response(
        _STATUSES.get(refused.code, CONFLICT), refused.code, refused.detail, **refused.more
    )


async def _on_invalid(_: Request, invalid: Exception) -> Response:
    assert isinstance(invalid, RequestValidationError)  # noqa: S101 - registered for nothing else
    errors = [_field_error(one) for one in invalid.errors()]
    detail = "the request cannot be read: " + "; ".join(f"{one['path']}: {one['problem']}" for one in errors)
    return problem_response(UNPROCESSABLE, "INVALID_REQUEST", detail, errors=errors)


async def _on_http(request: Request, error: Exception) -> Response:
    status = getattr(error, "status_code", NOT_FOUND)
    if status == BAD_REQUEST:
        return problem_response(status, "INVALID_REQUEST", "the request cannot be read: $: not valid JSON")
    detail = f"there is no {request.method} {request.url.path} here: /docs lists what there is"
    if status == NOT_FOUND:
        return problem_response(status, "NOT_FOUND", detail)
    answer = problem_response(status, "METHOD_NOT_ALLOWED", detail)
    answer.headers["Allow"] = ", ".join(sorted(_methods(request)))
    return answer


def _methods(request: Request) -> set[str]:
    """Collect what may be asked at a path, over all routes that match it."""
    app: FastAPI = request.app
    matching = (route for route in app.routes if route.matches(request.scope)[0] is not Match.NONE)
    return {method for route in matching if isinstance(route, Route) for method in route.methods or ()}


async def _on_internal_error(_: Request, __: Exception) -> Response:
    """Tell nothing of a fault of ours but that it is one; the server logs it with its traceback."""
    return problem_response(
        INTERNAL_ERROR,
        ErrorCode.INTERNAL_ERROR.value,
        "the registry met a fault of its own: its log has it; try again",
    )


def _field_error(error: Mapping[str, Any]) -> dict[str, str]:
    """Name the place and the problem; where a body is no JSON at all, the place is the whole."""
    if error["type"] == "json_invalid":
        return {"path": "$", "problem": f"not valid JSON: {error.get('ctx', {}).get('error', error['msg'])}"}
    return {"path": ".".join(["$", *map(str, error["loc"][1:])]), "problem": error["msg"]}


# Reading for those outside: nobody is shown what is not kept yet (§4, *save before telling*).
#
# What is read at once may rest on a save that is still on its way. So it is shown once all such saves
# are kept, and read again where one of them had to be undone. Changes nothing.


_MOST_READINGS = 5
"""A disk that fails all the time undoes something all the time; somebody must be able to look at it."""

T = TypeVar("T")


async def read_stored(
    service: RegistryService, read: Callable[[], T], *, again: Callable[[T], T] | None = None
) -> T:
    """Read what is kept; `again` reads a second time what cannot be read twice in the same way."""
    undone = service.undone
    shown = read()
    for _ in range(_MOST_READINGS):
        await wait_until_stored(service)
        if service.undone == undone:
            break
        undone = service.undone
        shown = read() if again is None else again(shown)
    return shown


async def wait_until_stored(service: RegistryService) -> None:
    """Wait until all that was handled so far is kept; ends the request where the store takes too long."""
    if not await service.settled():
        why = service.store_problem or "the store is slow; ask again in a moment"
        raise ApiError(ErrorCode.REGISTRY_BUSY.value, f"what there is to show is not kept yet: {why}")
