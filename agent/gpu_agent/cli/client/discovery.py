"""Which registry a command uses, and which operator token it may send there.

The registry is that of `--api`, of the environment, else this machine's own. The token is that of a file, of
the environment, else the one that this machine's registry left; never from the arguments, where every user
can read it, and never unencrypted to another machine unless the operator says so. A token that a registry
left is sent only to a port that the same user, or root, listens on: any user may listen on a free port.
"""

import argparse
import ipaddress
import os
import stat
import sys
import urllib.parse
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

from gpu_agent.cli.command import ExitCode, Failure
from gpu_agent.cli.output.streams import print_stderr
from gpu_agent.runtime.state_dir import (
    ENDPOINT_FILE,
    OPERATOR_TOKEN_FILE,
    UNIT_FOLDER,
    default_state_dir,
    read_endpoint_file,
)

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


def registry_listens(url: str, *, user: int) -> bool:
    """Say whether this user's registry listens at a URL of this machine: False while nobody does.

    Raises `Failure` where somebody else does.
    """
    users = _listening(url)
    if users is None:
        return True
    strangers = _other_users(users, user)
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
    return users is None or (bool(users) and not _other_users(users, user))


def _other_users(users: set[int], user: int) -> set[int]:
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
    return {user for address, listened, user in rows if listened == port and _accepts(address, meant=meant)}


def _rows(table: Path) -> Iterator[tuple[_IP, int, int]]:
    """Read who listens: address, port, user."""
    for line in table.read_text(encoding="ascii").splitlines()[1:]:
        if f" {_LISTENING} " in line:  # first of all: a registry has ten thousand other connections
            cells = line.split()
            address, _, port = cells[_ADDRESS].partition(":")
            yield _parse_address(address), int(port, 16), int(cells[_USER])


def _parse_address(text: str) -> _IP:
    """Read an address that is written in words of this machine's own order."""
    raw = bytes.fromhex(text)
    if sys.byteorder == "little":
        words = (raw[start : start + _WORD_BYTES] for start in range(0, len(raw), _WORD_BYTES))
        raw = b"".join(word[::-1] for word in words)
    address = ipaddress.ip_address(raw)
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return mapped or address


def _accepts(address: _IP, *, meant: set[_IP]) -> bool:
    return address.is_unspecified or address in meant


DEFAULT_API = "http://127.0.0.1:8081"
API_VARIABLE = "GPU_REGISTRY_API"
STATE_DIR_VARIABLE = "GPU_REGISTRY_STATE_DIR"


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A registry's operator API, and what a registry on this machine has left of it."""

    url: str
    left_in: Path | None = None
    """The state directory of this machine's registry that said so; None where the URL was named."""
    pin: str | None = None
    """Of the key that it has."""

    @property
    def left_file(self) -> Path | None:
        """The file that said so."""
        return None if self.left_in is None else self.left_in / ENDPOINT_FILE


def find_endpoint(arguments: argparse.Namespace) -> Endpoint:
    """Find the registry that a command's arguments lead to; raises `Failure`."""
    named = arguments.api if arguments.api is not None else os.environ.get(API_VARIABLE) or None
    url = None if named is None else check_url(named)
    places = [one for one in _local_endpoints() if url in (None, one.url)]
    if not places:
        return Endpoint(DEFAULT_API if url is None else url)
    return next((one for one in places if len(places) > 1 and _is_served(one)), places[0])


def _local_endpoints() -> Iterator[Endpoint]:
    """The places that registries on this machine have left; one that was killed has left its, too."""
    for folder in state_folders():
        left = read_endpoint_file(folder)
        if left is not None and _is_address(left.api):
            yield Endpoint(check_url(left.api), folder, left.pin)


def _is_served(place: Endpoint) -> bool:
    try:
        return place.left_file is not None and is_served(place.url, user=place.left_file.stat().st_uid)
    except OSError:
        return False  # taken back meanwhile


def _is_address(url: str) -> bool:
    """Say whether a URL has an address for its host, as one that a registry left has: a name may move."""
    try:
        ipaddress.ip_address(urllib.parse.urlsplit(url).hostname or "")
    except ValueError:
        return False
    return True


def state_folders() -> list[Path]:
    """Where a registry on this machine may keep its state."""
    stated = os.environ.get(STATE_DIR_VARIABLE)
    return [Path(stated).expanduser()] if stated else [default_state_dir(), UNIT_FOLDER]


def check_url(url: str) -> str:
    """Refuse what no registry can be reached at, before anything is asked of it."""
    try:
        parts = urllib.parse.urlsplit(url)
        fault = _url_fault(parts)
        _ = parts.port  # raises ValueError for what is no port
        (parts.hostname or "").encode("idna")
    except ValueError as error:
        fault = str(error)
    if any(letter.isspace() or not letter.isprintable() for letter in url):
        fault = "it holds spaces or control characters"
    if fault is None:
        return url.rstrip("/")
    raise Failure(
        f"{url!r}, of --api or ${API_VARIABLE}, is no URL of a registry ({fault}); "
        f"write it like {DEFAULT_API}",
        code=ExitCode.CONFIGURATION,
    )


def _url_fault(parts: urllib.parse.SplitResult) -> str | None:
    if parts.scheme not in ("http", "https"):
        return "it does not begin with http:// or https://"
    if not parts.hostname:
        return "it names no host"
    if parts.username is not None or parts.password is not None:
        return "no credentials go into a URL"
    if parts.query or parts.fragment:
        return "it has a query or a fragment"
    return None


VARIABLE = "GPU_REGISTRY_TOKEN"
_LONGEST = 4096
_PREFIX = "gpuo_"
_ANYBODY = 0o007


@dataclass(frozen=True, slots=True)
class OperatorToken:
    """A token, and where it came from, for a person who is told that it is refused."""

    text: str = field(repr=False)
    source: str
    left_by: int | None = None
    """The user whose registry left it on this machine; None where it was named."""


def add_token_options(parser: argparse.ArgumentParser) -> None:
    """Add `--token-file FILE` and `--insecure-http`."""
    parser.add_argument(
        "--token-file",
        metavar="FILE",
        type=Path,
        help=f"holds the operator token (default: ${VARIABLE}, else the one that a registry here has made)",
    )
    parser.add_argument(
        "--insecure-http",
        action="store_true",
        help="DANGER: send the token unencrypted to another machine: who listens on the way can act as you",
    )


def may_send(token: OperatorToken, url: str) -> bool:
    """Say whether a token may be shown at `url` at this moment; raises `Failure` with the next step.

    One that was named goes where it was sent, one that a registry left to that registry alone.
    """
    return token.left_by is None or registry_listens(url, user=token.left_by)


def find_token(
    url: str,
    *,
    token_file: Path | None = None,
    insecure_http: bool = False,
    left_in: Path | None = None,
) -> OperatorToken | None:
    """Return the token to show at `url`, None when there is none; raises `Failure` with the next step.

    `left_in`: where this machine's registry has left that URL: its token lies there.
    """
    parts = urllib.parse.urlsplit(url)
    here = _is_this_machine(parts.hostname or "")
    token = _given_token(token_file)
    if token is None and (here or left_in is not None):
        return _local_token(state_folders() if left_in is None else [left_in])
    if token is None or here or parts.scheme == "https" or insecure_http:
        return token
    raise Failure(
        f"{url} is not encrypted: whoever listens on the way could take the token from {token.source} and "
        "act as you. Use https://, or an SSH tunnel to 127.0.0.1; on a network where you trust every "
        "machine, add --insecure-http",
        code=ExitCode.CONFIGURATION,
    )


def _given_token(token_file: Path | None) -> OperatorToken | None:
    if token_file is not None:
        if token_file.name.startswith(_PREFIX):
            raise Failure(
                "a token stands where the name of its file should: put it into a file that only you may "
                "read. It was readable by everybody on this machine just now, so have it revoked",
                code=ExitCode.CONFIGURATION,
            )
        try:
            _warn_if_exposed(token_file)
            return _check_token(_read_token(token_file), str(token_file))
        except OSError as error:
            raise Failure(
                f"the token file {token_file} cannot be read ({error.strerror or error}): "
                "check its name, owner and permissions",
                code=ExitCode.CONFIGURATION,
            ) from None
    given = os.environ.get(VARIABLE, "").strip()
    return _check_token(given, f"${VARIABLE}") if given else None


def _local_token(folders: Iterable[Path]) -> OperatorToken | None:
    """Read what a registry on this machine has written for us, where we may read it."""
    for folder in folders:
        path = folder / OPERATOR_TOKEN_FILE
        try:
            return replace(_check_token(_read_token(path), str(path)), left_by=path.stat().st_uid)
        except OSError:
            continue  # another user's, or none: the registry says whether one is needed
    return None


def _warn_if_exposed(path: Path) -> None:
    """Tell of a token that everybody on this machine may read; behind a link it is a container's to judge."""
    mode = path.stat().st_mode
    if mode & _ANYBODY and os.name == "posix" and not path.is_symlink():
        print_stderr(
            f"everybody on this machine may read the token in {path} (mode {stat.S_IMODE(mode):04o}): "
            f"run `chmod 600 {path}`, and have it revoked if others use this machine"
        )


def _read_token(path: Path) -> str:
    with path.open("rb") as file:
        return file.read(_LONGEST).strip().decode("ascii", "replace")


def _check_token(text: str, source: str) -> OperatorToken:
    if not text or not text.isascii() or not text.isprintable() or " " in text:
        raise Failure(
            f"{source} holds no token: it should be one line that begins with {_PREFIX}",
            code=ExitCode.CONFIGURATION,
        )
    return OperatorToken(text, source)


def _is_this_machine(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"
