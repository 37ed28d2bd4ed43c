"""A webhook on a socket of its own, which takes alarms or misbehaves as it is told."""

import asyncio
import hashlib
import hmac
import json
import ssl
from collections import deque
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

SECRET = "0123456789abcdef0123456789abcdef"
OK = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


def answer(status: str, *headers: str) -> str:
    return "\r\n".join([f"HTTP/1.1 {status}", *headers, "Content-Length: 0", "", ""])


@dataclass(frozen=True, slots=True)
class Received:
    """One request, whatever was answered."""

    target: str
    headers: Mapping[str, str]
    body: bytes

    @property
    def document(self) -> Any:  # noqa: ANN401 - what the test reads
        return json.loads(self.body)

    @property
    def ids(self) -> list[int]:
        ids: list[int] = self.document["event_ids"]
        return ids

    def is_signed(self, secret: str = SECRET) -> bool:
        """Verify the signature as the documentation says."""
        parts = dict(one.split("=", 1) for one in self.headers["x-gpu-agent-signature"].split(","))
        expected = hmac.new(secret.encode(), f"{parts['t']}.".encode() + self.body, hashlib.sha256)
        return hmac.compare_digest(expected.hexdigest(), parts["v1"])


@dataclass
class AlarmWebhook:
    """What came in, and what is answered next; without a fault it takes everything."""

    port: int = 0
    faults: deque[str] = field(default_factory=deque)
    """Of the next requests: an answer, `hang`, `close`, `endless` or `endless head`."""
    requests: list[Received] = field(default_factory=list)
    taken: list[Received] = field(default_factory=list)

    @property
    def ids(self) -> list[int]:
        """The ids of all events that it took, as they came."""
        return [one for request in self.taken for one in request.ids]

    def url(self, path: str = "/hook", *, scheme: str = "http") -> str:
        return f"{scheme}://127.0.0.1:{self.port}{path}"

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError, asyncio.IncompleteReadError):
            request = await _read(reader)
            self.requests.append(request)
            fault = self.faults.popleft() if self.faults else ""
            match fault:
                case "hang":
                    await reader.read()  # until the registry hangs up
                case "close":
                    pass
                case "endless":
                    self.taken.append(request)
                    writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
                    while True:
                        writer.write(b"1000\r\n" + b"x" * 4096 + b"\r\n")
                        await writer.drain()
                case "endless head":
                    writer.write(b"HTTP/1.1 200 OK\r\nX-Long: ")
                    while True:
                        writer.write(b"x" * 4096)
                        await writer.drain()
                case "":
                    self.taken.append(request)
                    writer.write(OK.encode())
                case _:
                    writer.write(fault.encode())
            await writer.drain()
        with suppress(ConnectionError):
            writer.close()
            await writer.wait_closed()


@asynccontextmanager
async def webhook(
    *, port: int = 0, tls: ssl.SSLContext | None = None, known: AlarmWebhook | None = None
) -> AsyncIterator[AlarmWebhook]:
    """Listen; `known` goes on with what it had, on the port it had."""
    hook = known or AlarmWebhook()
    tasks: set[asyncio.Task[None]] = set()

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        try:
            await hook.handle(reader, writer)
        finally:
            tasks.discard(task)

    server = await asyncio.start_server(handle, "127.0.0.1", port or hook.port, ssl=tls)
    hook.port = server.sockets[0].getsockname()[1]
    try:
        yield hook
    finally:
        server.close()
        for task in tuple(tasks):
            task.cancel()
        if tasks:
            await asyncio.wait(tuple(tasks))


async def _read(reader: asyncio.StreamReader) -> Received:
    head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
    headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in head[1:]) if name}
    body = await reader.readexactly(int(headers["content-length"]))
    return Received(head[0].split(" ")[1], headers, body)
