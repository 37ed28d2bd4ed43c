"""A link to a test server, and the events that it reports."""

import asyncio
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from http import HTTPStatus
from pathlib import Path

from websockets.asyncio.server import ServerConnection, serve
from websockets.http11 import Request, Response

from gpu_agent.node.connection.link import Link, LinkEvent
from gpu_agent.runtime.proxy import Proxy
from gpu_agent.runtime.tasks import Tasks
from tests.waiting import patience

Handler = Callable[[ServerConnection], Awaitable[None]]


class Received:
    """Listens to a link; events are awaited in order."""

    def __init__(self) -> None:
        self.events: asyncio.Queue[LinkEvent] = asyncio.Queue()

    async def __call__(self, _: Link, event: LinkEvent) -> None:
        await self.events.put(event)

    async def next(self) -> LinkEvent:
        async with asyncio.timeout(patience(10)):
            return await self.events.get()


@asynccontextmanager
async def served_by(handler: Handler, **options: object) -> AsyncIterator[str]:
    options.setdefault("close_timeout", 0.1)
    async with serve(handler, "127.0.0.1", 0, **options) as server:  # type: ignore[arg-type]  # its options
        yield f"ws://127.0.0.1:{next(iter(server.sockets)).getsockname()[1]}/ws/node"


@asynccontextmanager
async def linked(
    url: str, token: str | None = None, *, proxy: Proxy | None = None
) -> AsyncIterator[tuple[Link, Received]]:
    heard = Received()
    link = Link(url, token=token, report=heard, proxy=proxy)
    async with Tasks() as tasks:
        link.start(tasks)
        yield link, heard
        tasks.end()


async def unregister(connection: ServerConnection) -> None:
    await connection.close(1001, "restarting")


async def refuse(connection: ServerConnection) -> None:
    raise AssertionError(connection)


def answering(status: int, **headers: str) -> Callable[[ServerConnection, Request], Response]:
    def answer(connection: ServerConnection, _: Request) -> Response:
        response = connection.respond(HTTPStatus(status), "no")
        for name, value in headers.items():
            response.headers[name.replace("_", "-")] = value
        return response

    return answer


def certificate_at(folder: Path) -> tuple[Path, Path]:
    certificate, key = folder / "certificate.pem", folder / "key.pem"
    curve = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
    names = ("-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost", "-days", "2")
    command = ("openssl", "req", "-x509", *curve, *names, "-keyout", key, "-out", certificate)
    subprocess.run(command, check=True, capture_output=True)
    return certificate, key
