"""The operators' HTTP API: one FastAPI application on one listening socket, and its OpenAPI document.

Uses the registry's facade as any embedding scheduler does. Runs on the facade's event loop and handles no
signals.
"""

import asyncio
import contextlib
import socket
from collections.abc import Callable, Iterator
from functools import cache, partial
from importlib.resources import files
from typing import Any

import uvicorn
from fastapi import FastAPI, Request, Response
from fastapi.openapi.utils import get_openapi
from fastapi.responses import JSONResponse
from starlette.types import ASGIApp

from gpu_agent.runtime.address import BACKLOG, Address
from gpu_agent.runtime.logs import Logger
from gpu_agent.server.api import admin, claims, discovery, events, nodes, tokens
from gpu_agent.server.api.auth import PUBLIC, ROLE, RequestChecks
from gpu_agent.server.api.compression import Compression
from gpu_agent.server.api.connection import MAX_CONNECTIONS, ApiConnection, ConnectionLimit
from gpu_agent.server.api.errors import add_error_handlers
from gpu_agent.server.api.hot_routes import HotRoutes, with_errors_answered
from gpu_agent.server.api.instance import OWN_PATHS, Here, InstanceAnswers, InstanceApi
from gpu_agent.server.api.routing import Registry, api_router, needs, refusals
from gpu_agent.server.event_log import EventStreams
from gpu_agent.server.event_loop import handles_of
from gpu_agent.server.http_headers import host_names
from gpu_agent.server.log_limit import LogLimit
from gpu_agent.server.metrics import RequestMetrics
from gpu_agent.server.service import RegistryService
from gpu_agent.server.tls import Encryption, TlsConnection, TlsPort
from gpu_agent.server.web.app import FleetPages, with_problem_pages
from gpu_agent.version import __version__
from gpu_agent.wire.api import Problem

STOP_SECONDS = 2
ACCEPTED_AT_ONCE = 32
"""New connections in one turn of the event loop: more may queue than there is room for."""

_CREDENTIAL = {
    "type": "http",
    "scheme": "bearer",
    "description": "An operator token: `gpu-agent registry token create --operator ROLE`.",
}
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_PAGE_HEADERS = {
    "Content-Security-Policy": _POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}
_UNPROCESSABLE = "422"
_LOG = Logger("server.operator")

about = api_router("registry")


class ApiServer:
    """The operators' API on a listening socket."""

    def __init__(
        self,
        service: RegistryService | None,
        listener: socket.socket,
        *,
        address: Address,
        tls: Encryption | None = None,
        hot: bool = True,
        instance: InstanceAnswers | None = None,
    ) -> None:
        """Declare the routes; without `hot` the framework answers the hot ones too, for comparison.

        Of several instances each lives as long as its process, and leads no registry before `attach`.
        """
        metrics = RequestMetrics()
        self._instance = instance
        self._checks = RequestChecks(hosts=host_names(address), metrics=metrics)
        self._pages = FleetPages(hosts=host_names(address), metrics=metrics)
        # A leader has those that the other instances forward besides its own.
        most = MAX_CONNECTIONS if instance is None else 2 * MAX_CONNECTIONS
        self._connections = ConnectionLimit(LogLimit(_LOG.info), most=most)
        self._app = create_app()
        self._app.router.routes.extend(self._pages.as_routes())
        self._here = Here(instance, metrics)
        self._app.state.checks, self._app.state.here = self._checks, self._here
        self._hot = HotRoutes(self._app, self._checks)
        registry = with_errors_answered(self._hot) if hot else self._app
        self._front = None if instance is None else InstanceApi(registry, instance, self._checks)
        front: ASGIApp = (
            registry if self._front is None else with_problem_pages(self._front, besides=OWN_PATHS)
        )
        self._attach(service)
        config = uvicorn.Config(
            front,
            log_config=None,
            log_level="error",  # what a client sends wrongly is answered, not logged
            access_log=False,
            lifespan="off",
            ws="none",
            http=_protocol(self._connections, tls),  # type: ignore[arg-type]  # uvicorn only calls it
            loop="none",
            backlog=ACCEPTED_AT_ONCE,
            timeout_graceful_shutdown=STOP_SECONDS,
            server_header=False,
            proxy_headers=False,  # else anybody on this machine could write any address into the log
        )
        self._listener = listener
        self._server = _Server(config)

    def attach(self, service: RegistryService, *, may_answer: Callable[[], bool]) -> None:
        """Answer from a registry that this instance leads from now on, each time only if `may_answer`.

        It is asked after a request was read, and before each part of the answer is sent.
        """
        self._streams.close()  # their readers go on where they were, from this registry
        self._attach(service)
        if self._front is not None:
            self._front.begin_term(may_answer)

    def detach(self) -> None:
        """Lead no registry any more: end its event streams now, and answer its other requests with 503.

        Counts of limits and metrics go on.
        """
        if self._front is not None:
            self._front.end_term()
        self._streams.close()
        self._attach(None)

    async def serve(self) -> None:
        """Answer requests until `stop`."""
        await self._server.serve(sockets=handles_of(self._listener))

    def stop(self) -> None:
        """Accept no new requests, end the endless ones now, and the others soon."""
        self._streams.close()
        self._pages.stop()
        self._checks.stop()
        self._connections.stop()
        self._server.stop()

    def _attach(self, service: RegistryService | None) -> None:
        state, self._streams = self._app.state, EventStreams()
        state.registry = self._hot.attached = self._here.service = service
        self._pages.attach(service)
        state.streams, state.endpoint_lists = self._streams, discovery.EndpointLists()
        state.event_log = None if service is None else service.event_log
        state.copy_is_current = None if self._instance is None else self._instance.copy_is_current
        if service is None and self._instance is not None:
            state.event_log = self._instance.event_log
        if service is not None:
            self._checks.authenticate = service.tokens.authenticate if service.auth_on else None
            self._checks.may_lack_tokens = lambda: False
        elif self._instance is not None:
            copy_is_current = self._instance.copy_is_current
            self._checks.authenticate = self._instance.authenticate
            self._checks.may_lack_tokens = lambda: not copy_is_current()


def create_app() -> FastAPI:
    """Declare the API. Its `state` is complete once an `ApiServer` has it."""
    app = FastAPI(
        title="gpu-agent registry",
        version=__version__,
        description="The API of a registry of GPU nodes, for operators and schedulers.",
        openapi_url=None,  # these pages are routes of ours, with a role
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
    )
    for router in (
        admin.router,
        nodes.router,
        claims.dispatch,
        claims.claims,
        tokens.router,
        events.router,
        discovery.router,
        about,
    ):
        app.router.routes.extend(router.routes)
    add_error_handlers(app)
    app.add_middleware(Compression)
    app.openapi = partial(_openapi, app)  # type: ignore[method-assign]  # FastAPI's documented way
    return app


@about.get("/openapi.json", include_in_schema=False, openapi_extra=needs("read"))
async def show_openapi(request: Request) -> JSONResponse:
    """Show the OpenAPI document."""
    return JSONResponse(request.app.openapi())


@about.get("/docs", include_in_schema=False, openapi_extra=needs("public"))
async def show_docs(registry: Registry) -> Response:
    """Show the page on which a person reads and tries every route: with auth on it asks for a token."""
    page = _content("index.html")
    if registry.auth_on:
        page = page.replace(b'data-auth="off"', b'data-auth="on"')
    return Response(page, media_type="text/html; charset=utf-8", headers=_PAGE_HEADERS)


@about.get("/docs/page.css", include_in_schema=False, openapi_extra=needs("public"))
async def show_style() -> Response:
    """Show the page's style."""
    return _file("page.css", "text/css; charset=utf-8")


@about.get("/docs/page.js", include_in_schema=False, openapi_extra=needs("public"))
async def show_script() -> Response:
    """Show the page's script."""
    return _file("page.js", "text/javascript; charset=utf-8")


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self._stopping = asyncio.Event()

    def stop(self) -> None:
        """Accept nothing more, and end once the requests that run are answered."""
        self.should_exit = True
        self._stopping.set()

    async def main_loop(self) -> None:
        """Wait for `stop`: the library's loop wakes up ten times a second, to renew the date of answers."""
        await self._stopping.wait()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Let more connections queue than are accepted at once: asyncio has one figure for both."""
        await super().startup(sockets)
        for listener in sockets or ():
            listener.listen(BACKLOG)

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave signals to the program."""
        yield


def _protocol(limit: ConnectionLimit, tls: Encryption | None) -> Callable[..., ApiConnection | TlsConnection]:
    """Make what makes a connection's protocol: HTTP, behind TLS where there is a certificate."""
    if tls is None:
        return partial(ApiConnection, limit=limit)
    port = TlsPort(tls)

    def encrypted(**kwargs: Any) -> TlsConnection:  # noqa: ANN401 - uvicorn's own arguments
        connection = ApiConnection(**kwargs, limit=limit)
        return port.wrap(connection, connection.speaks_no_tls)

    return encrypted


def _file(name: str, media_type: str) -> Response:
    return Response(_content(name), media_type=media_type, headers=_PAGE_HEADERS)


@cache
def _content(name: str) -> bytes:
    return files("gpu_agent.server.api").joinpath("docs_page", name).read_bytes()


def _openapi(app: FastAPI) -> dict[str, Any]:
    """Describe the routes as declared, with the credential and the refusals of every route."""
    if app.openapi_schema is None:
        document = get_openapi(
            title=app.title, version=app.version, description=app.description, routes=app.routes
        )
        components = document.setdefault("components", {})
        components["securitySchemes"] = {"operatorToken": _CREDENTIAL}
        schemas = components.setdefault("schemas", {})
        for unused in ("HTTPValidationError", "ValidationError"):
            schemas.pop(unused, None)
        schemas["Problem"] = Problem.model_json_schema(ref_template="#/components/schemas/{model}")
        schemas.update(schemas["Problem"].pop("$defs", {}))
        for path, operations in document["paths"].items():
            for method, operation in operations.items():
                _complete_operation(method, operation, forwarded=path not in OWN_PATHS)
        app.openapi_schema = document
    return app.openapi_schema


def _complete_operation(method: str, operation: dict[str, Any], *, forwarded: bool) -> None:
    responses = operation["responses"]
    general = [400, 403, 413, 431, 500, 503]
    if operation.get(ROLE) != PUBLIC:
        general += [401, 429]
    if method == "post":
        general.append(415)
        if "requestBody" in operation:
            operation["requestBody"]["required"] = True  # an empty body passes, but it must say JSON
    if forwarded and method != "get":
        general.append(502)
    if _UNPROCESSABLE in responses:
        general.append(422)
    for status, answer in refusals(*general).items():
        responses[str(status)] = answer
    operation["responses"] = dict(sorted(responses.items()))
