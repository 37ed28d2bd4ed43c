"""The operators' door: JSON over HTTP, for people's tools and for schedulers in other processes.

One user of the registry's facade; adds nothing to what that can do. Serves on the facade's
own event loop and leaves signals alone. The routes stand in `operator_*`, subject by subject.
"""

import contextlib
import socket
from collections.abc import Iterator
from typing import Any, cast

import uvicorn
from fastapi import FastAPI

from gpu_agent.runtime.logs import EventLog
from gpu_agent.server.address import BACKLOG, Address
from gpu_agent.server.event_streams import EventStreams
from gpu_agent.server.operator.about import about_registry
from gpu_agent.server.operator.auth import Authorization
from gpu_agent.server.operator.backup import about_backup
from gpu_agent.server.operator.connection import OperatorConnection, connections
from gpu_agent.server.operator.dispatch import about_dispatch
from gpu_agent.server.operator.events import about_events
from gpu_agent.server.operator.guard import Guard
from gpu_agent.server.operator.jobs import about_jobs
from gpu_agent.server.operator.nodes import about_nodes
from gpu_agent.server.operator.openapi import describe_itself
from gpu_agent.server.operator.paths import ExactPaths
from gpu_agent.server.operator.problems import answer_with_problems, refusing
from gpu_agent.server.operator.routes import taker
from gpu_agent.server.operator.tokens import about_tokens
from gpu_agent.server.operator.trace import Tracing
from gpu_agent.server.operator.wishes import about_wishes
from gpu_agent.server.quieting import Quieting
from gpu_agent.server.service import RegistryService
from gpu_agent.server.tls_connection import Contexts, TlsConnection, TlsPort
from gpu_agent.server.web_pages import names_of
from gpu_agent.version import __version__

STOP_SECONDS = 2
ACCEPTED_AT_ONCE = 32
"""New connections in one turn of the loop: all that may queue are more than there is room for."""

_LOG = EventLog("server.operator")
_SUBJECTS = (
    about_registry,
    about_nodes,
    about_wishes,
    about_dispatch,
    about_jobs,
    about_tokens,
    about_backup,
)


class OperatorServer:
    """The operator API on a listening socket."""

    def __init__(
        self,
        service: RegistryService,
        listener: socket.socket,
        *,
        address: Address,
        tls: Contexts | None = None,
    ) -> None:
        hosts = names_of(address)
        self._streams = EventStreams()
        self._quieting = Quieting(_LOG.info)
        app = application(service, self._streams)
        self._authorization = Authorization(
            Guard(
                app, hosts=hosts, refuse=refusing, takes=lambda scope: taker(app.routes, scope) is not None
            ),
            routes=app.routes,
            desk=service.tokens if service.auth_on else None,
            refuse=refusing,
        )
        config = uvicorn.Config(
            # Outermost are the paths: all that stands behind reads the same one.
            ExactPaths(Tracing(self._authorization), refuse=refusing),
            log_config=None,
            log_level="error",  # what a peer sends wrongly is answered, not logged
            access_log=False,
            lifespan="off",
            ws="none",
            http=_encrypted(connections(self._quieting), tls),
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
        self._quieting.stop()
        self._server.should_exit = True


def _encrypted(kind: type[OperatorConnection], tls: Contexts | None) -> type[OperatorConnection]:
    """Put TLS before each connection: uvicorn asks no more of a protocol's class than to make one."""
    if tls is None:
        return kind
    port = TlsPort(tls)

    def make(**given: Any) -> TlsConnection:  # noqa: ANN401 - uvicorn's business
        connection = kind(**given)
        return port.wrap(connection, connection.speaks_no_tls)

    return cast("type[OperatorConnection]", make)


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


def application(service: RegistryService, streams: EventStreams | None = None) -> FastAPI:
    """Make the API of one registry. Its `routes` are all there are, each with the role it needs."""
    app = FastAPI(
        title="gpu-agent registry",
        version=__version__,
        description="What operators and schedulers ask of a registry of GPU nodes.",
        docs_url="/docs",
        redoc_url=None,
        redirect_slashes=False,
    )
    for about in _SUBJECTS:
        app.router.routes.extend(about(service).routes)
    app.router.routes.extend(about_events(service, streams or EventStreams()).routes)
    answer_with_problems(app)
    describe_itself(app)
    return app
