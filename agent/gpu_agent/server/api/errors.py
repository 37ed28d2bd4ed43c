"""How the operators' API refuses a request: problem documents (RFC 9457), one table of codes.

A route raises `ApiError`; the handlers here write the document. A fault of the registry itself is answered
without any detail, and uvicorn logs it with its traceback.
"""

import difflib
from collections.abc import Callable, Iterator, Mapping, Sequence
from http import HTTPStatus
from typing import Any, TypeVar, get_args

from fastapi import FastAPI, HTTPException, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from fastapi.routing import APIRoute
from pydantic import BaseModel
from pydantic_core import from_json
from starlette.exceptions import HTTPException as StarletteHTTPException
from starlette.routing import Match, Route

from gpu_agent.registry.actions import Refusal, unknown_node_message
from gpu_agent.registry.claims import CLAIM_NOT_FOUND, NOT_CLAIM_OWNER, QUEUE_FULL
from gpu_agent.registry.dispatch.exclusions import NO_AVAILABLE_NODE, NoAvailableNode
from gpu_agent.registry.operations import UNKNOWN_GPU
from gpu_agent.registry.token_issuing import UNKNOWN_TOKEN
from gpu_agent.registry.tokens import Role
from gpu_agent.server import views
from gpu_agent.server.service import RegistryService
from gpu_agent.wire.api import Problem
from gpu_agent.wire.codes import EXPLAIN_ADVICE, ErrorCode

T = TypeVar("T")
Steps = tuple[int | str, ...]
"""Where in a body something is."""

PROBLEM_JSON = "application/problem+json"

STATUSES: Mapping[str, HTTPStatus] = {
    "INVALID_PATH": HTTPStatus.BAD_REQUEST,
    "REQUEST_UNREADABLE": HTTPStatus.BAD_REQUEST,
    "INVALID_REQUEST": HTTPStatus.UNPROCESSABLE_ENTITY,
    "UNAUTHORIZED": HTTPStatus.UNAUTHORIZED,
    "FORBIDDEN": HTTPStatus.FORBIDDEN,
    "HOST_NOT_ALLOWED": HTTPStatus.FORBIDDEN,
    "ORIGIN_NOT_ALLOWED": HTTPStatus.FORBIDDEN,
    ErrorCode.INVALID_MESSAGE.value: HTTPStatus.UNPROCESSABLE_ENTITY,
    ErrorCode.UNKNOWN_NODE.value: HTTPStatus.NOT_FOUND,
    CLAIM_NOT_FOUND: HTTPStatus.NOT_FOUND,
    UNKNOWN_GPU: HTTPStatus.NOT_FOUND,
    NOT_CLAIM_OWNER: HTTPStatus.FORBIDDEN,
    QUEUE_FULL: HTTPStatus.TOO_MANY_REQUESTS,
    UNKNOWN_TOKEN: HTTPStatus.NOT_FOUND,
    "NOT_FOUND": HTTPStatus.NOT_FOUND,
    "UNKNOWN_RECEIVER": HTTPStatus.NOT_FOUND,
    "BODY_TOO_LARGE": HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
    "TOO_MANY_BODIES": HTTPStatus.TOO_MANY_REQUESTS,
    "TOO_MANY_BODIES_OF_ALL": HTTPStatus.SERVICE_UNAVAILABLE,
    "TOO_MANY_STREAMS_OF_TOKEN": HTTPStatus.TOO_MANY_REQUESTS,
    "JSON_REQUIRED": HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
    ErrorCode.REGISTRY_BUSY.value: HTTPStatus.SERVICE_UNAVAILABLE,
    "NOT_READY": HTTPStatus.SERVICE_UNAVAILABLE,
    "TOO_MANY_STREAMS": HTTPStatus.SERVICE_UNAVAILABLE,
    "BACKUP_FAILED": HTTPStatus.SERVICE_UNAVAILABLE,
    "OUTCOME_UNKNOWN": HTTPStatus.BAD_GATEWAY,
}
"""The status of each code; every other code is a conflict (409)."""

_ERRORS_NAMED = 20
"""Of one request: a body of 1 MiB may hold 50,000, and to name them all took 19 seconds."""
_MOST_FIELDS = 256
"""Of one object, where the fields are known: many more than the largest model has."""
_DEEPEST_MODEL = 3
"""Steps to the deepest object of a request that is a model."""
_LONGEST_SIMILAR = 64
_LEAST_SIMILARITY = 0.7
_MEANT = {
    "gpu": "gpu_count",
    "gpus": "gpu_count",
    "model": "required_models",
    "models": "required_models",
    "feature": "required_features",
    "features": "required_features",
    "node": "allowed_nodes",
    "node_id": "allowed_nodes",
    "exclude_node": "excluded_nodes",
    "affinity": "affinity_key",
    "ttl": "ttl_seconds",
    "wait": "wait_seconds",
}
"""Words that people write for fields of a job whose names they do not resemble."""

_FOR_NOW = (HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE)
"""What a client should try again: the answer says after how many seconds."""


LEADS_NO_MORE = (
    "this instance of the registry does not lead any more: send the same request again in a moment"
)


class ApiError(HTTPException):
    """Ends a request with a problem document; `fields` are what the document holds besides."""

    def __init__(self, code: str, detail: str, **fields: object) -> None:
        super().__init__(STATUSES.get(code, HTTPStatus.CONFLICT), detail)
        self.code, self.fields = code, fields


def raise_if_refused(refusal: Refusal | None) -> None:
    """End the request if the fleet refused it."""
    if refusal is not None:
        raise ApiError(refusal.code, refusal.message)


async def refuse_body(request: Request, find: Callable[[], object], *, instead: str) -> None:
    """Refuse the body of a DELETE, which nothing reads, where that would end what `find` finds.

    What is not there is not found, whatever the request carries. `instead` says what names the thing.
    """
    if await request.body() and find():
        raise ApiError("INVALID_REQUEST", f"a DELETE has no body, and nothing reads one: {instead}")


def registry_busy(detail: str) -> ApiError:
    """The registry cannot do this now, or cannot know yet whether it has: the same request goes again."""
    return ApiError(ErrorCode.REGISTRY_BUSY.value, detail)


def unknown_node(node_id: str) -> ApiError:
    """There is no such node."""
    return ApiError(ErrorCode.UNKNOWN_NODE.value, unknown_node_message(node_id))


def no_available_node(verdict: NoAvailableNode) -> ApiError:
    """No node can take a job: how many nodes each reason excludes, with examples (A-8)."""
    if verdict.knows_no_node:
        waited = "not waited: " if verdict.never_fits else ""
        detail = f"{waited}no node is registered: start an agent with `gpu-agent run --registry URL`"
    else:
        nobody = "no node" if verdict.nodes_needed == 1 else "too few nodes"
        found = f"{nobody} can take this job"
        if verdict.never_fits:
            found = f"not waited: {nobody} of today's fleet could ever take it, even empty; {found}"
        detail = f"{found} ({verdict}){EXPLAIN_ADVICE}"
    return ApiError(NO_AVAILABLE_NODE, detail, **views.no_available_node_fields(verdict))


async def once_stored(registry: RegistryService, shown: T) -> T:
    """Answer what was read once everything that it rests on is stored (§4, *store before sending*).

    Ends the request where the store takes too long.
    """
    if not await registry.settled():
        problem = registry.store_problem or "the store is slow; ask again in a moment"
        raise registry_busy(f"the answer is not stored yet: {problem}")
    return shown


def add_error_handlers(app: FastAPI) -> None:
    """Answer every refusal and every fault of an application with a problem document."""
    app.add_exception_handler(ApiError, on_api_error)
    app.add_exception_handler(RequestValidationError, on_invalid)
    app.add_exception_handler(Exception, on_internal_error)
    app.add_exception_handler(StarletteHTTPException, _on_http)


def problem_response(status: int, code: str, detail: str, **fields: object) -> JSONResponse:
    """Write a problem document."""
    title = code.replace("_", " ").capitalize()
    document = Problem.model_validate(
        {"status": status, "title": title, "code": code, "detail": detail, **fields}
    )
    response = JSONResponse(
        document.model_dump(exclude_none=True), status_code=status, media_type=PROBLEM_JSON
    )
    if status in _FOR_NOW:
        response.headers["Retry-After"] = "1"
    return response


async def on_api_error(_: Request, error: Exception) -> Response:
    """Write a refusal."""
    assert isinstance(error, ApiError)  # noqa: S101 - registered for nothing else
    response = problem_response(error.status_code, error.code, error.detail, **error.fields)
    if error.status_code == HTTPStatus.UNAUTHORIZED:
        response.headers["WWW-Authenticate"] = "Bearer"
    return response


async def on_invalid(request: Request, invalid: Exception) -> Response:
    """Name the fields because of which a request cannot be read, the first ones of many."""
    assert isinstance(invalid, RequestValidationError)  # noqa: S101 - registered for nothing else
    found = invalid.errors()
    errors = [_field_error(one, request, invalid.body) for one in found[:_ERRORS_NAMED]]
    problems = [f"{one['path']}: {one['problem']}" for one in errors]
    if len(found) > _ERRORS_NAMED:
        problems.append(f"and {len(found) - _ERRORS_NAMED} more")
    detail = "the request cannot be read: " + "; ".join(problems)
    return problem_response(HTTPStatus.UNPROCESSABLE_ENTITY, "INVALID_REQUEST", detail, errors=errors)


async def _on_http(request: Request, error: Exception) -> Response:
    """Answer what FastAPI refuses itself: no such path, no such method, an unreadable body."""
    assert isinstance(error, StarletteHTTPException)  # noqa: S101 - registered for nothing else
    status = error.status_code
    if status == HTTPStatus.BAD_REQUEST:
        detail = "the request cannot be read: $: not valid JSON"
        return problem_response(status, "INVALID_REQUEST", detail)
    try:
        request.app.state.checks.authorize(request, Role.READ)  # a stranger learns no paths
    except ApiError as refused:
        return await on_api_error(request, refused)
    detail = f"there is no {request.method} {request.scope['path']} here: /docs lists what there is"
    if status == HTTPStatus.NOT_FOUND:
        return problem_response(status, "NOT_FOUND", detail)
    response = problem_response(status, "METHOD_NOT_ALLOWED", detail)
    response.headers["Allow"] = ", ".join(sorted(_methods(request)))
    return response


def _methods(request: Request) -> set[str]:
    """Collect the methods of all routes at a path: Starlette's own `Allow` names those of the first.

    A job's id may hold a slash, or be the last word of another path: the route with the longest path counts.
    """
    app: FastAPI = request.app
    matching = [
        route
        for route in app.routes
        if isinstance(route, Route) and route.matches(request.scope)[0] is not Match.NONE
    ]
    longest = max((_fixed_letters(route) for route in matching), default=0)
    exact = (route for route in matching if _fixed_letters(route) == longest)
    return {method for route in exact for method in route.methods or ()}


def _fixed_letters(route: Route) -> int:
    """Count the letters of a route's path outside of its parameters."""
    return sum(len(part.partition("}")[2]) for part in f"}}{route.path}".split("{"))


async def on_internal_error(_: Request, __: Exception) -> Response:
    """Answer a fault of ours."""
    return problem_response(
        HTTPStatus.INTERNAL_SERVER_ERROR,
        ErrorCode.INTERNAL_ERROR.value,
        "the registry failed internally: its log has the error; try again",
    )


def refuse_many_fields(request: Request, content: bytes) -> None:
    """Refuse a body with an object of very many unknown fields, before a model makes an error of each.

    Raises `RequestValidationError`. A body that is no JSON is left to the model.
    """
    try:
        body = from_json(content)
    except ValueError:
        return
    for steps, fields in _objects_in(body, ()):
        known = _fields_at(request, "body", steps) if len(fields) > _MOST_FIELDS else ()
        unknown = fields.keys() - set(known)
        if known and len(unknown) > _MOST_FIELDS:
            named = [name for name in fields if name in unknown]
            raise RequestValidationError(
                [_unknown_field(("body", *steps, name)) for name in named], body=body
            )


def _objects_in(value: object, steps: Steps) -> Iterator[tuple[Steps, Mapping[str, object]]]:
    if isinstance(value, dict):
        yield steps, value
    below = enumerate(value) if isinstance(value, list) else value.items() if isinstance(value, dict) else ()
    for step, inner in below:
        if isinstance(inner, dict | list) and len(steps) < _DEEPEST_MODEL:
            yield from _objects_in(inner, (*steps, step))


def _unknown_field(place: Steps) -> dict[str, object]:
    return {"type": "extra_forbidden", "loc": place, "msg": ""}


def _field_error(error: Mapping[str, Any], request: Request, body: object) -> dict[str, str]:
    """Name the field and the problem; where a body is no JSON, the field is the whole."""
    if error["type"] == "json_invalid":
        return {"path": "$", "problem": f"not valid JSON: {error.get('ctx', {}).get('error', error['msg'])}"}
    place, *steps = error["loc"]
    problem = str(error["msg"]).removeprefix("Value error, ")
    if error["type"] == "extra_forbidden":
        problem = f"there is no such field{_did_you_mean(steps[-1], _fields_at(request, place, steps[:-1]))}"
    if place == "body":
        missing = steps[-1:] if error["type"] == "missing" else []
        steps = [*_steps_in(body, steps[: len(steps) - len(missing)]), *missing]
    return {"path": ".".join(["$", *map(str, steps)]), "problem": problem}


def _steps_in(value: Any, steps: Sequence[Any]) -> Iterator[int | str]:  # noqa: ANN401 - any JSON
    """Choose the steps that a body has: pydantic adds which alternative of several it read."""
    for step in steps:
        if (isinstance(value, dict) and step in value) or (isinstance(value, list) and isinstance(step, int)):
            yield step
            value = value[step]


def _did_you_mean(meant: str, known: Sequence[str]) -> str:
    """Name the known field that is nearest to an unknown one, where one is near."""
    if len(meant) > _LONGEST_SIMILAR:  # to compare long names takes long
        return ""
    near = [one for one in known if one == _MEANT.get(meant)]
    near = near or difflib.get_close_matches(meant, known, 1, _LEAST_SIMILARITY)
    near = near or [one for one in known if one.startswith(meant) or meant.startswith(one)][:1]
    return f"; did you mean `{near[0]}`?" if near else ""


def _fields_at(request: Request, place: str, steps: Sequence[int | str]) -> Sequence[str]:
    """Return the fields of the model that a route reads from its body or its query, or from a part of it."""
    app: FastAPI = request.scope.get("app") or request.app
    for route in app.routes:
        if isinstance(route, APIRoute) and route.matches(request.scope)[0] is Match.FULL:
            read = route.dependant.body_params if place == "body" else route.dependant.query_params
            models = [model for one in read for model in _models_in(one.field_info.annotation)]
            for step in steps:
                if isinstance(step, str):
                    models = _models_below(models, step)
            return [name for model in models for name in model.model_fields]
    return ()


def _models_below(models: Sequence[type[BaseModel]], step: str) -> list[type[BaseModel]]:
    """Return the models in a field of these; or those that a word such as `join` chooses among them."""
    fields = [model.model_fields[step] for model in models if step in model.model_fields]
    if fields:
        return [model for one in fields for model in _models_in(one.annotation)]
    return [
        model
        for model in models
        if any(step in get_args(one.annotation) for one in model.model_fields.values())
    ]


def _models_in(annotation: object) -> Iterator[type[BaseModel]]:
    """Find the models that an annotation, such as a list of one, is made of."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for part in get_args(annotation):
        yield from _models_in(part)
