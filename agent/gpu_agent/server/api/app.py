"""The operators' HTTP API: one FastAPI application on one listening socket, and its OpenAPI document.

Uses the registry's facade as any embedding scheduler does. Runs on the facade's event loop and handles no signals.
"""

import contextlib
import socket
from collections.abc import Iterator
from typing import Any, cast

import uvicorn
from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from gpu_agent.runtime.logs import Logger
from gpu_agent.server.address import BACKLOG, Address
from gpu_agent.server.api.admin import backup_routes, registry_routes
from gpu_agent.server.api.auth import ROLE, Authorization, Guard, Tracing, matching_route, refusals
from gpu_agent.server.api.claims import claim_routes, dispatch_routes
from gpu_agent.server.api.connection import ApiConnection, connections
from gpu_agent.server.api.errors import add_error_handlers, refusal_app
from gpu_agent.server.api.events import event_routes
from gpu_agent.server.api.nodes import node_action_routes, node_routes
from gpu_agent.server.api.schemas import ExactPaths, Problem
from gpu_agent.server.api.tokens import token_routes
from gpu_agent.server.event_log import EventStreams
from gpu_agent.server.http_headers import host_names
from gpu_agent.server.log_limit import LogLimit
from gpu_agent.server.service import RegistryService
from gpu_agent.server.tls import Contexts, TlsConnection, TlsPort
from gpu_agent.version import __version__

# The operators' door: JSON over HTTP, for people's tools and for schedulers in other processes.
#
# One user of the registry's facade; adds nothing to what that can do. Serves on the facade's
# own event loop and leaves signals alone. The routes stand in `operator_*`, subject by subject.


STOP_SECONDS = 2
ACCEPTED_AT_ONCE = 32
"""New connections in one turn of the loop: all that may queue are more than there is room for."""

_LOG = Logger("server.operator")
_ROUTES = (
    registry_routes,
    node_routes,
    node_action_routes,
    dispatch_routes,
    claim_routes,
    token_routes,
    backup_routes,
)


class ApiServer:
    """The operator API on a listening socket."""

    def __init__(
        self,
        service: RegistryService,
        listener: socket.socket,
        *,
        address: Address,
        tls: Contexts | None = None,
    ) -> None:
        hosts = host_names(address)
        self._streams = EventStreams()
        self._log_limit = LogLimit(_LOG.info)
        app = create_app(service, self._streams)
        self._authorization = Authorization(
            Guard(
                app,
                hosts=hosts,
                refuse=refusal_app,
                takes=lambda scope: matching_route(app.routes, scope) is not None,
            ),
            routes=app.routes,
            desk=service.tokens if service.auth_on else None,
            refuse=refusal_app,
        )
        config = uvicorn.Config(
            # Outermost are the paths: all that stands behind reads the same one.
            ExactPaths(Tracing(self._authorization), refuse=refusal_app),
            log_config=None,
            log_level="error",  # what a peer sends wrongly is answered, not logged
            access_log=False,
            lifespan="off",
            ws="none",
            http=_encrypted(connections(self._log_limit), tls),
            loop="none",
            backlog=ACCEPTED_AT_ONCE,
            timeout_graceful_shutdown=STOP_SECONDS,
            server_header=False,
            proxy_headers=False,  # else whoever is on this machine may claim any address for the log
        )
        self._listener = listener
        self._server = _Server(config)

    async def serve(self) -> None:
        """Answer requests until `stop`."""
        await self._server.serve(sockets=[self._listener])

    def stop(self) -> None:
        """Take no new requests, end those that never would, and the rest soon."""
        self._streams.close()
        self._authorization.stop()
        self._log_limit.stop()
        self._server.should_exit = True


def _encrypted(kind: type[ApiConnection], tls: Contexts | None) -> type[ApiConnection]:
    """Put TLS before each connection: uvicorn asks no more of a protocol's class than to make one."""
    if tls is None:
        return kind
    port = TlsPort(tls)

    def make(**given: Any) -> TlsConnection:  # noqa: ANN401 - uvicorn's business
        connection = kind(**given)
        return port.wrap(connection, connection.speaks_no_tls)

    return cast("type[ApiConnection]", make)


class _Server(uvicorn.Server):
    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Let more queue than are taken at once: asyncio has one figure for both."""
        await super().startup(sockets)
        for listener in sockets or ():
            listener.listen(BACKLOG)

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave signals to the program."""
        yield


def create_app(service: RegistryService, streams: EventStreams | None = None) -> FastAPI:
    """Make the API of one registry. Its `routes` are all there are, each with the role it needs."""
    app = FastAPI(
        title="gpu-agent registry",
        version=__version__,
        description="What operators and schedulers ask of a registry of GPU nodes.",
        docs_url="/docs",
        redoc_url=None,
        redirect_slashes=False,
    )
    for about in _ROUTES:
        app.router.routes.extend(about(service).routes)
    app.router.routes.extend(event_routes(service, streams or EventStreams()).routes)
    add_error_handlers(app)
    add_openapi(app)
    return app


# What the operator API says of itself: the routes as declared, and what holds for every one of them.
#
# Adds the refusals that stand before every route, the credential, and one shape for every
# refusal; invents no route and hides none.


_CREDENTIAL = {
    "type": "http",
    "scheme": "bearer",
    "description": "An operator token: `gpu-agent registry token create --operator ROLE`.",
}
_UNREADABLE = "422"


def add_openapi(app: FastAPI) -> None:
    """Let an application answer `/openapi.json` with all that holds for its routes."""

    def described() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = _openapi_document(app)
        return app.openapi_schema

    app.openapi = described  # type: ignore[method-assign]  # FastAPI's own way to say it


def _openapi_document(app: FastAPI) -> dict[str, Any]:
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
    for method, operation in _operations(document):
        _complete_operation(method, operation)
    return document


def _operations(document: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    for path in document["paths"].values():
        yield from path.items()


def _complete_operation(method: str, operation: dict[str, Any]) -> None:
    responses = operation["responses"]
    general = [400, 403, 413] if operation.get(ROLE) == "public" else [400, 401, 403, 413]
    if method == "post":
        general.append(415)
        if "requestBody" in operation:
            operation["requestBody"]["required"] = True  # an empty one is forgiven, yet JSON must be said
    if _UNREADABLE in responses:
        general.append(422)
    for status, answer in refusals(*general).items():
        responses[str(status)] = answer
    operation["responses"] = dict(sorted(responses.items()))
