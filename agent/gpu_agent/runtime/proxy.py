"""A TCP connection to a host within a deadline, directly or by CONNECT through the configured HTTP proxy.

Only what the settings name is used: no environment variable, no list of exceptions. It speaks no TLS to the
proxy, and shows the password to no one else. A thread looks names up; the agent leaves it behind when it
hangs, because a dead resolver must not keep the agent from exiting.
"""

import asyncio
import base64
import contextlib
import os
import re
import socket
from dataclasses import dataclass, field
from typing import Annotated, Self
from urllib.parse import SplitResult, unquote, urlsplit

from pydantic import BeforeValidator
from pydantic_settings import NoDecode

from gpu_agent.runtime.logs import REDACTED
from gpu_agent.runtime.tasks import in_thread
from gpu_agent.version import __version__

RESOLVE_SECONDS = 5.0
CONNECT_SECONDS = 4.0
"""For one address, so that a host with a dead IPv6 address is still reached by its IPv4 one."""
UNACKNOWLEDGED_SECONDS = 20
"""A peer that has not acknowledged sent bytes for so long is gone.

With the 15 s to the next heartbeat, this leaves 10 of the 45 s after which a registry takes the node for
lost: enough to register at another address, or at this one once another machine has it.
"""
ANSWER_SECONDS = 5.0
"""How long a proxy may take to open the tunnel, beside the time to connect."""
MAX_ANSWER_BYTES = 16 * 1024

_EXAMPLE = "write it like http://proxy.example:3128"
_STATUS = re.compile(rb"HTTP/1\.[01] ([0-9]{3})[ \r]")
_END = b"\r\n\r\n"
_PROXY_AUTHENTICATION_REQUIRED = 407

Address = tuple[socket.AddressFamily, tuple[object, ...]]


class ProxyError(OSError):
    """The proxy cannot be reached, or opens no tunnel: a sentence with the next step."""


@dataclass(frozen=True, slots=True)
class Proxy:
    """An HTTP proxy; its text form never shows the password."""

    host: str
    port: int
    user: str | None = None
    password: str | None = field(default=None, repr=False)

    @classmethod
    def parse(cls, written: str) -> Self:
        """Read `http://HOST:PORT`, perhaps with `USER:PASSWORD@`; raises `ValueError` without the value."""
        parts, port = _split(written)
        if parts.scheme != "http":
            raise ValueError(f"only an HTTP proxy with CONNECT is supported: {_EXAMPLE}")
        if not parts.hostname or parts.path not in ("", "/") or parts.query or parts.fragment:
            raise ValueError(f"it names a host and a port and nothing else: {_EXAMPLE}")
        if not port:
            raise ValueError(f"it names no port: {_EXAMPLE}")
        if (parts.username is None) is not (parts.password is None):
            raise ValueError("a user without a password opens nothing: write http://USER:PASSWORD@HOST:PORT")
        user, password = (None if one is None else unquote(one) for one in (parts.username, parts.password))
        return cls(parts.hostname, port, user, password)

    def __str__(self) -> str:
        """Write it without its password."""
        user = "" if self.user is None else f"{self.user}:{REDACTED}@"
        return f"http://{user}{authority(self.host, self.port)}"

    @property
    def authorization(self) -> str | None:
        """The `Proxy-Authorization` header."""
        if self.user is None:
            return None
        return "Basic " + base64.b64encode(f"{self.user}:{self.password}".encode()).decode()


def _split(written: str) -> tuple[SplitResult, int | None]:
    """Take a URL apart; the library's own words for its faults may hold the password."""
    try:
        parts = urlsplit(written)
        port = parts.port
    except ValueError:
        raise ValueError(f"it is no URL with a host and a port: {_EXAMPLE}") from None
    return parts, port


def _read(value: object) -> object:
    """Accept its URL; an empty text, as a variable may hold, is none."""
    return (Proxy.parse(value) if value else None) if isinstance(value, str) else value


ProxySetting = Annotated[Proxy | None, BeforeValidator(_read), NoDecode]


async def connect_tcp(proxy: Proxy | None, host: str, port: int) -> socket.socket:
    """Connect to a host, through the proxy where there is one; raises `OSError`."""
    if proxy is None:
        return await connect_directly(host, port)
    try:
        opened = await connect_directly(proxy.host, proxy.port)
    except OSError as error:
        raise ProxyError(f"the proxy {proxy} cannot be reached ({error.strerror or error})") from None
    with contextlib.ExitStack() as undo:
        undo.callback(opened.close)
        await tunnel(opened, proxy, host=host, port=port)
        undo.pop_all()
    return opened


async def tunnel(opened: socket.socket, proxy: Proxy, *, host: str, port: int) -> None:
    """Ask the proxy at the other end of a socket for a tunnel to a host; raises `ProxyError`."""
    loop = asyncio.get_running_loop()
    try:
        async with asyncio.timeout(ANSWER_SECONDS):
            await loop.sock_sendall(opened, _request(proxy, authority(host, port)))
            answer = await _answer(opened)
    except TimeoutError:
        raise ProxyError(f"the proxy {proxy} opened no tunnel within {ANSWER_SECONDS:g} s") from None
    except ConnectionError as error:
        raise ProxyError(f"the proxy {proxy} hung up ({error.strerror or error})") from None
    refusal = _refusal(answer)
    if refusal is not None:
        raise ProxyError(f"the proxy {proxy} opens no tunnel to {authority(host, port)}: {refusal}")


async def connect_directly(host: str, port: int) -> socket.socket:
    """Connect to the first address of `host` that answers; raises `OSError` with the last one's reason."""
    failure = OSError(f"{host} has no address")
    for family, address in await resolve(host, port):
        try:
            return await connect_address(family, address)
        except TimeoutError:
            failure = TimeoutError(f"no answer within {CONNECT_SECONDS:g} s")
        except OSError as error:
            failure = OSError(error.errno, os.strerror(error.errno)) if error.errno else error
    raise failure


async def resolve(host: str, port: int) -> list[Address]:
    """Look a host up; raises `OSError`."""

    def look_up() -> list[Address]:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        return [(family, address) for family, _, _, _, address in found]

    try:
        return await in_thread("resolve", look_up, deadline_seconds=RESOLVE_SECONDS)
    except TimeoutError:
        raise TimeoutError(f"looking up {host} took over {RESOLVE_SECONDS:g} s") from None
    except UnicodeError as error:
        raise OSError(f"{host!r} is no host name: {error}") from None


async def connect_address(family: socket.AddressFamily, address: tuple[object, ...]) -> socket.socket:
    """Connect to one address within its deadline; raises `OSError`."""
    opened = socket.socket(family, socket.SOCK_STREAM)
    with contextlib.ExitStack() as undo:
        undo.callback(opened.close)
        opened.setblocking(False)  # noqa: FBT003 - the socket module's own signature
        _set_keepalive(opened)
        async with asyncio.timeout(CONNECT_SECONDS):
            await asyncio.get_running_loop().sock_connect(opened, address)
        undo.pop_all()
    return opened


def _request(proxy: Proxy, target: str) -> bytes:
    lines = [f"CONNECT {target} HTTP/1.1", f"Host: {target}", f"User-Agent: gpu-agent/{__version__}"]
    if proxy.authorization is not None:
        lines.append(f"Proxy-Authorization: {proxy.authorization}")
    return "\r\n".join([*lines, "", ""]).encode()


async def _answer(opened: socket.socket) -> bytes:
    """Read the head of the answer; what follows comes from the registry."""
    loop = asyncio.get_running_loop()
    answer = b""
    while _END not in answer and len(answer) < MAX_ANSWER_BYTES:
        part = await loop.sock_recv(opened, 1 if answer.endswith((b"\r", b"\n")) else len(_END))
        if not part:
            break
        answer += part
    return answer


def _refusal(answer: bytes) -> str | None:
    """Why there is no tunnel, if there is none."""
    status = _STATUS.match(answer)
    if status is None or _END not in answer:
        return "it answers, but not as an HTTP proxy does"
    code = int(status[1])
    if code == _PROXY_AUTHENTICATION_REQUIRED:
        return "it asks for a user and a password that it knows: http://USER:PASSWORD@HOST:PORT"
    return None if code // 100 == 2 else f"it answers HTTP {code}"  # noqa: PLR2004 - success, in HTTP's counting


def authority(host: str, port: int) -> str:
    """Write a host and its port, an IPv6 address in brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _set_keepalive(opened: socket.socket) -> None:
    """Let the kernel drop a silent peer: this protocol has no pings."""
    opened.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    opened.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in (
        ("TCP_USER_TIMEOUT", UNACKNOWLEDGED_SECONDS * 1000),
        ("TCP_KEEPIDLE", UNACKNOWLEDGED_SECONDS),
        ("TCP_KEEPINTVL", UNACKNOWLEDGED_SECONDS // 3),
    ):
        if hasattr(socket, option):  # not every platform has each
            with contextlib.suppress(OSError):
                opened.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)
