"""The routes that schedulers call for every job, without what the web framework costs.

FastAPI declares these routes as all others, and the OpenAPI document shows them. A request to one of them
comes here first: the same checks run, the body is read by the same model, and the same function answers.
What is left out is the framework's own work (routing, dependencies, copies of the answer): about half of the
time of a claim. Whatever is unusual (a path that may be another route's) is left to the framework.
"""

import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from http import HTTPStatus
from typing import TypeVar

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ValidationError
from pydantic_core import from_json
from starlette.middleware.errors import ServerErrorMiddleware
from starlette.types import ASGIApp, Receive, Scope, Send

from gpu_agent.registry.tokens import Role
from gpu_agent.server.api import claims
from gpu_agent.server.api.auth import RequestChecks
from gpu_agent.server.api.errors import (
    LEADS_NO_MORE,
    ApiError,
    on_api_error,
    on_internal_error,
    on_invalid,
    registry_busy,
)
from gpu_agent.server.service import RegistryService
from gpu_agent.wire.api import DryRunRequest, JobRequest, ReleaseQuery, RenewRequest

_CLAIMS, _SELECT, _OF_JOB = "/v1/claims", "/v1/dispatch/select", "/v1/claims/{job_id}"
_RENEWAL = "/renew"
_LONGEST_JOB_ID = 256
_RELEASE_QUERY = re.compile(r"claim_id=([0-9a-f]{1,64})")

_Model = TypeVar("_Model", bound=BaseModel)
_Handler = Callable[[Request], Awaitable[Response]]


@dataclass(frozen=True, slots=True)
class _Hot:
    """What answers one request."""

    route: str
    needed: Role
    handler: _Handler


class HotRoutes:
    """An ASGI application that answers the hot routes itself, and leaves the others to FastAPI's."""

    def __init__(self, app: FastAPI, checks: RequestChecks) -> None:
        self._app = app
        self._checks = checks
        self.attached: RegistryService | None = None
        """The registry; None while another instance leads."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        hot = self._hot(scope) if scope["type"] == "http" else None
        if hot is None:
            await self._app(scope, receive, send)
            return
        scope["app"] = self._app
        request = Request(scope, receive)
        try:
            response = await self._checks.handle_traced(
                request, hot.handler, route=hot.route, needed=hot.needed
            )
        except ApiError as refused:
            response = await on_api_error(request, refused)
        except RequestValidationError as invalid:
            response = await on_invalid(request, invalid)
        await response(scope, receive, send)

    @property
    def _registry(self) -> RegistryService:
        if self.attached is None:
            raise registry_busy(LEADS_NO_MORE)
        return self.attached

    def _hot(self, scope: Scope) -> _Hot | None:
        """Return what answers a request; None where that is FastAPI."""
        method, path = scope["method"], scope["path"]
        if method == "POST" and path == _CLAIMS:
            return _Hot(_CLAIMS, Role.OPERATE, self._claim)
        if method == "POST" and path == _SELECT:
            return _Hot(_SELECT, Role.READ, self._select)
        if not path.startswith(f"{_CLAIMS}/"):
            return None
        job_id = path[len(_CLAIMS) + 1 :]
        if method == "DELETE":
            return self._release(job_id, scope["query_string"].decode("latin-1"))
        if method == "POST" and job_id.endswith(_RENEWAL):
            return self._renewal(job_id.removesuffix(_RENEWAL))
        return None

    async def _claim(self, request: Request) -> Response:
        body = _read(JobRequest, await request.body())
        return _answer(await claims.claim_slots(body, request=request, registry=self._registry))

    async def _select(self, request: Request) -> Response:
        body = _read(DryRunRequest, await request.body())
        return _answer(await claims.select_node(body, self._registry))

    def _renewal(self, job_id: str) -> _Hot | None:
        if not 0 < len(job_id) <= _LONGEST_JOB_ID:
            return None

        async def renew(request: Request) -> Response:
            content = await request.body()
            body = _read(RenewRequest, content) if content else RenewRequest()
            answer = claims.renew_claim(job_id, request=request, registry=self._registry, body=body)
            return _answer(await answer)

        return _Hot(f"{_OF_JOB}{_RENEWAL}", Role.OPERATE, renew)

    def _release(self, job_id: str, query: str) -> _Hot | None:
        named = _RELEASE_QUERY.fullmatch(query)
        if not 0 < len(job_id) <= _LONGEST_JOB_ID or (query and named is None):
            return None

        async def release(request: Request) -> Response:
            wanted = ReleaseQuery(claim_id=None if named is None else named[1])
            return await claims.release_claim(job_id, wanted, request=request, registry=self._registry)

        return _Hot(_OF_JOB, Role.OPERATE, release)


def with_errors_answered(hot: HotRoutes) -> ASGIApp:
    """Answer and log a fault in a hot route as any other."""
    return ServerErrorMiddleware(hot, on_internal_error)


def _read(model: type[_Model], content: bytes) -> _Model:
    """Read a body; raises `RequestValidationError`, as FastAPI does."""
    try:
        return model.model_validate_json(content)
    except ValidationError as invalid:
        errors = [{**one, "loc": ("body", *one["loc"])} for one in invalid.errors(include_url=False)]
        body = None if errors[0]["type"] == "json_invalid" else from_json(content)
        raise RequestValidationError(errors, body=body) from None


def _answer(document: BaseModel) -> Response:
    content = document.__pydantic_serializer__.to_json(document)
    return Response(content, status_code=HTTPStatus.OK, media_type="application/json")
