"""A real HTTP proxy for tests: it opens ways by CONNECT, and remembers who asked for which."""

import asyncio
import base64
from types import TracebackType
from typing import Self

REFUSED = b"HTTP/1.1 403 Forbidden\r\nContent-Length: 2\r\n\r\nno"
ASKS = b'HTTP/1.1 407 Proxy Authentication Required\r\nProxy-Authenticate: Basic realm="x"\r\n\r\n'


class ConnectProxy:
    """Serves on a port of its own.

    `answer`: said instead of opening the way; `user`: whom alone it serves, as `name:password`; `to`:
    where it finds every host.
    """

    def __init__(self, *, answer: bytes | None = None, user: str | None = None, to: str = "") -> None:
        self.asked: list[str] = []
        self._answer = answer
        self._user = user
        self._to = to
        self._flows: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.close()
        for flow in self._flows:
            flow.cancel()
        if self._flows:
            await asyncio.wait(self._flows)
        await self._server.wait_closed()

    def url(self, user: str = "") -> str:
        return f"http://{user}127.0.0.1:{self.port}"

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._flows.add(task)
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            self.asked.append(head.split()[1])
            refusal = self._answer if self._answer is not None else self._refusal(head)
            if refusal is not None:
                writer.write(refusal)
                await writer.drain()
            else:
                await self._open(head.split()[1], reader, writer)
        except (OSError, asyncio.IncompleteReadError):
            pass  # a peer that leaves is the test's own doing
        finally:
            writer.close()

    def _refusal(self, head: str) -> bytes | None:
        if self._user is None:
            return None
        expected = "Proxy-Authorization: Basic " + base64.b64encode(self._user.encode()).decode()
        return None if expected in head.split("\r\n") else ASKS

    async def _open(self, authority: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        host, _, port = authority.rpartition(":")
        their_reader, their_writer = await asyncio.open_connection(self._to or host.strip("[]"), int(port))
        writer.write(b"HTTP/1.1 200 Connection established\r\nVia: test\r\n\r\n")
        try:
            async with asyncio.TaskGroup() as both:
                both.create_task(_pump(reader, their_writer))
                both.create_task(_pump(their_reader, writer))
        except* OSError:
            pass
        finally:
            their_writer.close()


async def _pump(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
    while data := await source.read(65536):
        sink.write(data)
        await sink.drain()
    sink.write_eof()
