"""Where a server listens: `host:port`, read and written, and whether only this machine reaches it.

A host that is neither an address nor `localhost` counts as reachable from outside, whatever it resolves to.
"""

import ipaddress
import socket
from dataclasses import dataclass
from typing import Self

MAX_PORT = 65535
LOCALHOST, LOOPBACK = "localhost", "127.0.0.1"
"""The name means the address, whatever a resolver makes of it (RFC 6761)."""
BACKLOG = 4096
"""Connections that wait to be accepted: a fleet comes back all at once after a restart."""


@dataclass(frozen=True, slots=True)
class Address:
    """A host and a port; port 0 lets the system choose."""

    host: str
    port: int

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read `127.0.0.1:8080`, `localhost:0` or `[::1]:8080`; raises `ValueError` with the next step."""
        host, colon, port = text.strip().rpartition(":")
        if host.startswith("[") and host.endswith("]"):
            host = str(ipaddress.IPv6Address(host[1:-1]))
        elif ":" in host:
            raise ValueError(f"{text!r}: write an IPv6 address in brackets, like [::1]:8080")
        if not colon or not host or not (port.isascii() and port.isdigit()):
            raise ValueError(f"{text!r} is not HOST:PORT; write it like 127.0.0.1:8080")
        if int(port) > MAX_PORT:
            raise ValueError(f"{text!r}: a port is at most {MAX_PORT}")
        return cls(host, int(port))

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def is_loopback(self) -> bool:
        """True when only this machine reaches it."""
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return self.host.lower() == LOCALHOST

    @property
    def is_wildcard(self) -> bool:
        """Whether it stands for every address of this machine."""
        try:
            return ipaddress.ip_address(self.host).is_unspecified
        except ValueError:
            return False

    def bind(self, *, shared: bool = False) -> socket.socket:
        """Open a listening socket; raises `OSError`. What counts as loopback is bound to it.

        Others of this user may bind a `shared` address too; the kernel spreads connections over them.

        Its connections inherit the protocol number, and asyncio turns Nagle's algorithm off only where it is
        TCP's: without that each answer in two parts waits 40 ms for the other side's delayed ACK.
        """
        at, family = (self.bound_host, self.port), self.family
        listener = socket.create_server(at, family=family, backlog=BACKLOG, reuse_port=shared)
        return socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP, fileno=listener.detach())

    @property
    def bound_host(self) -> str:
        """The host that is bound."""
        return LOOPBACK if self.host.lower() == LOCALHOST else self.host

    @property
    def family(self) -> socket.AddressFamily:
        """The family of its sockets."""
        return socket.AF_INET6 if ":" in self.host else socket.AF_INET


def bound_address(listener: socket.socket) -> Address:
    """Say where a listening socket is reached, with the port that the system chose."""
    host, port = listener.getsockname()[:2]
    return Address(host, port)
