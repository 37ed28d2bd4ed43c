"""Where the agent's metrics go: a port that Prometheus scrapes, and a text file for node_exporter.

Neither can hold the agent up: a request has a few seconds, few are served at a time, and the disk of the file
is asked in a thread. What fails is logged once and tried again. The file is removed when the agent ends, so
that no figure outlives it; after `kill -9` its time of change shows its age.
"""

import asyncio
import contextlib
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path

from gpu_agent.node.metrics import CONTENT_TYPE
from gpu_agent.runtime.address import Address
from gpu_agent.runtime.logs import Logger
from gpu_agent.runtime.tasks import in_thread
from gpu_agent.runtime.tls.contexts import OwnCertificate, TlsFileError, server_context

PATH = "/metrics"
MOST_REQUESTS = 16
"""Served at a time; others are closed at once."""
REQUEST_SECONDS, WRITE_SECONDS = 5.0, 5.0
AGAIN_SECONDS = 10.0
_MOST_HEAD_BYTES = 8192
_HEAD_END = b"\r\n\r\n"
_READABLE = 0o644
"""node_exporter runs as a user of its own."""

_LOG = Logger("node.metrics")


async def serve_metrics(address: Address, own: OwnCertificate | None, write: Callable[[], str]) -> None:
    """Serve the metrics until cancelled; an address that cannot be had is tried again.

    `own`: the certificate for TLS, which an address that others reach must have.
    """
    problem: str | None = None
    while True:
        try:
            server = await _listen(address, own, write)
        except (OSError, TlsFileError) as error:
            if str(error) != problem:
                problem = str(error)
                _LOG.error("metrics_listen_failed", address=str(address), problem=problem)
            await asyncio.sleep(AGAIN_SECONDS)
            continue
        port = server.sockets[0].getsockname()[1]
        _LOG.info("metrics_listening", address=str(Address(address.host, port)), encrypted=own is not None)
        async with server:
            await server.serve_forever()


async def _listen(
    address: Address, own: OwnCertificate | None, write: Callable[[], str]
) -> asyncio.base_events.Server:
    tls = None if own is None else server_context(own)
    requests = 0

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal requests
        requests += 1
        try:
            if requests <= MOST_REQUESTS:
                async with asyncio.timeout(REQUEST_SECONDS):
                    writer.write(_answer(await reader.readuntil(_HEAD_END), write))
                    await writer.drain()
        except (OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            pass  # the peer went, was too slow, or speaks no HTTP; a timeout is an OSError
        finally:
            requests -= 1
            writer.close()

    timeout = None if tls is None else REQUEST_SECONDS
    return await asyncio.start_server(
        answer, sock=address.bind(), limit=_MOST_HEAD_BYTES, ssl=tls, ssl_handshake_timeout=timeout
    )


def _answer(head: bytes, write: Callable[[], str]) -> bytes:
    """Answer one request: `GET` and `HEAD` of the metrics, and nothing else."""
    method, _, rest = head.partition(b" ")
    path = rest.partition(b" ")[0].partition(b"?")[0]
    if method not in (b"GET", b"HEAD"):
        status, text = "405 Method Not Allowed", f"send GET {PATH}\n"
    elif path != PATH.encode():
        status, text = "404 Not Found", f"the metrics are at {PATH}\n"
    else:
        status, text = "200 OK", write()
    body = text.encode()
    kind = CONTENT_TYPE if status.startswith("200") else "text/plain; charset=utf-8"
    lines = (
        f"HTTP/1.1 {status}",
        f"Content-Type: {kind}",
        f"Content-Length: {len(body)}",
        "Connection: close",
    )
    return "\r\n".join((*lines, "", "")).encode() + (b"" if method == b"HEAD" else body)


async def write_metrics(path: Path, write: Callable[[], str], *, every_seconds: Callable[[], float]) -> None:
    """Write the metrics to a file until cancelled, whole each time, and remove the file then."""
    problem: str | None = None
    try:
        while True:
            before, problem = problem, await _write_problem(path, write())
            if problem is not None and problem != before:
                _LOG.error("metrics_file_failed", path=str(path), problem=problem)
            elif before is not None and problem is None:
                _LOG.info("metrics_file_recovered", path=str(path))
            await asyncio.sleep(every_seconds())
    finally:
        if problem is None:  # else the disk may hang
            _remove(path)


async def _write_problem(path: Path, text: str) -> str | None:
    """Write the file; returns why that failed."""
    try:
        await in_thread("metrics-file", partial(_replace, path, text), deadline_seconds=WRITE_SECONDS)
    except TimeoutError:
        return f"the disk gave no answer within {WRITE_SECONDS:g} s"
    except OSError as error:
        return f"{error.strerror}: {path.parent} must exist, and the agent's user must be able to write there"
    return None


def _replace(path: Path, text: str) -> None:
    """Replace the file at once: node_exporter must not read half of it."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        beside.write_text(text, encoding="utf-8")
        beside.chmod(_READABLE)
        beside.replace(path)
    except OSError:
        _remove(beside)
        raise


def _remove(path: Path) -> None:
    with contextlib.suppress(OSError):
        path.unlink()
