"""Where the agent's metrics go: a port that Prometheus scrapes, and a text file for node_exporter.

Neither can hold the agent up: a request has a few seconds, few are served at a time, and the disk of the file
is asked in a thread. What fails is logged once and tried again. The file is removed when the agent ends, so
that no figure outlives it; after `kill -9` its time of change shows its age.
"""

import asyncio
import contextlib
import os
import secrets
import socket
import ssl
from collections.abc import Callable
from functools import partial
from pathlib import Path

from gpu_agent.node.metrics import CONTENT_TYPE
from gpu_agent.runtime.address import Address
from gpu_agent.runtime.logs import Logger
from gpu_agent.runtime.tasks import in_thread, start_alone
from gpu_agent.runtime.tls.contexts import OwnCertificate, TlsFileError, server_context

PATH = "/metrics"
MOST_REQUESTS = 16
"""Connections served at a time; others are closed at once."""
REQUEST_SECONDS, WRITE_SECONDS = 5.0, 5.0
AGAIN_SECONDS = 10.0
ACCEPT_AGAIN_SECONDS = 0.5
_NO_ANSWER = f"the disk gave no answer within {WRITE_SECONDS:g} s"
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
            listener, tls = await in_thread(
                "metrics-listen", partial(_open, address, own), deadline_seconds=REQUEST_SECONDS
            )
        except (OSError, TlsFileError) as error:
            before, problem = problem, _listen_problem(error, address)
            if problem != before:
                _LOG.error("metrics_listen_failed", address=str(address), problem=problem)
            await asyncio.sleep(AGAIN_SECONDS)
            continue
        at = Address(address.host, listener.getsockname()[1])
        _LOG.info("metrics_listening", address=str(at), encrypted=own is not None)
        with listener:
            await _accept(listener, tls, write)


def _listen_problem(error: OSError | TlsFileError, address: Address) -> str:
    """Say why it does not listen, with the next step; that of a certificate has it already."""
    if isinstance(error, TlsFileError):
        return str(error)
    words = str(error) or f"{address.host} was not resolved in time"
    return f"{words}: name a free address of this machine in metrics_listen"


def _open(address: Address, own: OwnCertificate | None) -> tuple[socket.socket, ssl.SSLContext | None]:
    tls = None if own is None else server_context(own)
    listener = address.bind()
    listener.settimeout(0)
    return listener, tls


async def _accept(listener: socket.socket, tls: ssl.SSLContext | None, write: Callable[[], str]) -> None:
    """Serve few connections at a time, their handshakes included, and leave none when cancelled."""
    loop, serving = asyncio.get_running_loop(), set[asyncio.Task[None]]()
    try:
        while True:
            try:
                peer, _ = await loop.sock_accept(listener)
            except OSError:  # the peer has gone, or no file can be opened now
                await asyncio.sleep(ACCEPT_AGAIN_SECONDS)
                continue
            if len(serving) >= MOST_REQUESTS:
                peer.close()
                continue
            request = start_alone("metrics-request", _serve(peer, tls, write))
            serving.add(request)
            request.add_done_callback(serving.discard)
    finally:
        for request in serving:
            request.cancel()


async def _serve(peer: socket.socket, tls: ssl.SSLContext | None, write: Callable[[], str]) -> None:
    """Answer one request and close its connection, all within a few seconds."""
    reader = asyncio.StreamReader(limit=_MOST_HEAD_BYTES)
    protocol = asyncio.StreamReaderProtocol(reader)
    transport: asyncio.BaseTransport | None = None
    try:
        async with asyncio.timeout(REQUEST_SECONDS):
            transport, _ = await asyncio.get_running_loop().connect_accepted_socket(
                lambda: protocol, peer, ssl=tls
            )
            writer = asyncio.StreamWriter(transport, protocol, reader, asyncio.get_running_loop())
            writer.write(_answer(await reader.readuntil(_HEAD_END), write))
            await writer.drain()
            writer.close()
            await writer.wait_closed()
    except (OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
        pass  # the peer went, was too slow, or speaks no HTTP; a timeout is an OSError
    finally:
        if isinstance(transport, asyncio.WriteTransport):
            transport.abort()
        else:
            peer.close()


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
    file = _File(path)
    problem: str | None = None
    try:
        while True:
            before, problem = problem, await _write_problem(file, write())
            if problem is not None and problem != before:
                _LOG.error("metrics_file_failed", path=str(path), problem=problem)
            elif before is not None and problem is None:
                _LOG.info("metrics_file_recovered", path=str(path))
            await asyncio.sleep(every_seconds())
    finally:
        file.ended = True
        if problem != _NO_ANSWER:
            _remove(path)


class _File:
    """The file that is written; a write that is late leaves none behind once `ended` is set."""

    def __init__(self, path: Path) -> None:
        self.path, self.ended = path, False

    def replace(self, text: str) -> None:
        """Replace it in one step: node_exporter must read no half. Raises `OSError`, and no file stays.

        Written beside under a name that nobody can foresee and that follows no link: others may be able to
        write the directory.
        """
        beside = self.path.with_name(f".{self.path.name}.{secrets.token_hex(8)}")
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0)
        try:
            with os.fdopen(os.open(beside, flags, _READABLE), "w", encoding="utf-8") as opened:
                if hasattr(os, "fchmod"):
                    os.fchmod(opened.fileno(), _READABLE)
                opened.write(text)
            beside.replace(self.path)
        except OSError:
            _remove(beside)
            _remove(self.path)  # its figures are no longer true
            raise
        if self.ended:
            _remove(self.path)


async def _write_problem(file: _File, text: str) -> str | None:
    """Write the file; returns why that failed."""
    try:
        await in_thread("metrics-file", partial(file.replace, text), deadline_seconds=WRITE_SECONDS)
    except TimeoutError:
        return _NO_ANSWER
    except OSError as error:
        where = file.path.parent
        return f"{error.strerror}: {where} must exist, have room, and be one that the agent's user may write"
    return None


def _remove(path: Path) -> None:
    with contextlib.suppress(OSError):
        path.unlink()
