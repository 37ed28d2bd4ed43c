"""The way to a registry, walked step by step, and servers that stand at its end."""

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from gpu_agent.node.proxy import Proxy
from gpu_agent.node.rehearsal import STEPS, Tokens, rehearse
from gpu_agent.node.tls import DEFAULT, Security
from gpu_agent.runtime.findings import Finding, Verdict

NOBODYS = "gpuj_00000000_abcdefghijklmnopqrstuvwxyz0123456789ABCDEFG"


async def walked(
    address: str, proxy: Proxy | None = None, *, security: Security = DEFAULT, **tokens: str
) -> dict[str, Finding]:
    way = rehearse(address, Tokens(**tokens), proxy, security=security)
    findings = [finding async for finding in way]
    assert [finding.check for finding in findings] == list(STEPS)
    assert all(finding.mend for finding in findings if finding.verdict in (Verdict.WARN, Verdict.FAIL))
    return {finding.check: finding for finding in findings}


@asynccontextmanager
async def answering(status: str, context: ssl.SSLContext | None = None, **headers: str) -> AsyncIterator[int]:
    """A server that answers each request with this status and these headers."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with_headers = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in headers.items())
        if await reader.read(4096):
            writer.write(f"HTTP/1.1 {status}\r\nContent-Length: 2\r\n{with_headers}\r\nno".encode())
            await writer.drain()
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context) as server:
        yield server.sockets[0].getsockname()[1]
