"""Whether it is this machine's own registry that listens where its operator token is about to go.

Anybody on a machine may listen on a port that is free, as a registry's is while it is stopped, and be
shown the token that it left to its operators. So that one goes only to a port that the user listens on
who left it, or root. Where the system does not say who listens (it does on Linux) the token goes as asked.
"""

import ipaddress
import sys
import urllib.parse
from collections.abc import Iterator
from pathlib import Path

from gpu_agent.cli.outcome import ExitCode, Failure

_TABLES = (Path("/proc/net/tcp"), Path("/proc/net/tcp6"))
_LISTENING = "0A"
_ADDRESS, _USER = 1, 7
"""Columns."""
_WORD_BYTES = 4
_ROOT, _NOBODY = 0, 65534
_OF_SERVICES = range(61184, 65520)
"""The users that systemd makes up for services with `DynamicUser=`; no person is one of them."""
_LOOPBACK = ("127.0.0.1", "::1")
_PORTS = {"http": 80, "https": 443}

_IP = ipaddress.IPv4Address | ipaddress.IPv6Address


def listens(url: str, *, user: int) -> bool:
    """Say whether this user's registry listens at a URL of this machine: False while nobody does.

    Raises `Failure` where somebody else does.
    """
    users = _listening(url)
    if users is None:
        return True
    strangers = _strangers(users, user)
    if strangers:
        raise Failure(
            f"another user of this machine (id {min(strangers)}) listens at {url}, not the registry of user "
            f"{user} that left its operator token here: the token was not sent. If that one is meant, name "
            "the file of a token for it with --token-file",
            code=ExitCode.CONFIGURATION,
        )
    return bool(users)


def is_served(url: str, *, user: int) -> bool:
    """Say whether this user's registry, as far as the system says, and nobody else listens at a URL."""
    users = _listening(url)
    return users is None or (bool(users) and not _strangers(users, user))


def _strangers(users: set[int], user: int) -> set[int]:
    return {one for one in users if one not in (user, _ROOT) and not _is_behind(one, user)}


def _is_behind(listening: int, owner: int) -> bool:
    """Say whether a service of systemd's may have left a file: on the disk it may stand as nobody's."""
    return owner == _NOBODY and listening in _OF_SERVICES


def _listening(url: str) -> set[int] | None:
    """Find the users who listen where a URL of this machine leads; None where the system does not say."""
    parts = urllib.parse.urlsplit(url)
    port = parts.port or _PORTS[parts.scheme]
    host = parts.hostname or ""
    meant = {ipaddress.ip_address(one) for one in (_LOOPBACK if host.lower() == "localhost" else (host,))}
    tables = [table for table in _TABLES if table.exists()]
    if not tables:
        return None
    rows = (row for table in tables for row in _rows(table))
    return {user for address, listened, user in rows if listened == port and _takes(address, meant=meant)}


def _rows(table: Path) -> Iterator[tuple[_IP, int, int]]:
    """Read who listens: address, port, user."""
    for line in table.read_text(encoding="ascii").splitlines()[1:]:
        if f" {_LISTENING} " in line:  # first of all: a registry has ten thousand other connections
            cells = line.split()
            address, _, port = cells[_ADDRESS].partition(":")
            yield _read(address), int(port, 16), int(cells[_USER])


def _read(text: str) -> _IP:
    """Read an address that is written in words of this machine's own order."""
    raw = bytes.fromhex(text)
    if sys.byteorder == "little":
        words = (raw[start : start + _WORD_BYTES] for start in range(0, len(raw), _WORD_BYTES))
        raw = b"".join(word[::-1] for word in words)
    address = ipaddress.ip_address(raw)
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return mapped or address


def _takes(address: _IP, *, meant: set[_IP]) -> bool:
    return address.is_unspecified or address in meant
