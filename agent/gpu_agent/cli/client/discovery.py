"""Which registry a command uses, and which operator token it may send there.

The registry is that of `--server`, of the environment, else this machine's own. The token is that of a file,
of the environment, else the one that this machine's registry wrote; never from the arguments, where every
user can read it, and never unencrypted to another machine unless the operator says so. The token that a
registry wrote is sent only to a port that the same user, or root, listens on: any user may listen on a free
port.
"""

import ipaddress
import os
import stat
import sys
import urllib.parse
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import click

from gpu_agent.cli.command import Arguments, ExitCode, Failure
from gpu_agent.cli.declaration import option
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
"""Columns of `/proc/net/tcp`."""
_WORD_BYTES = 4
_ROOT, _OVERFLOW = 0, 65534
_OF_SERVICES = range(61184, 65520)
"""The user ids that systemd allocates to services with `DynamicUser=`; no person has one."""
_LOOPBACK = ("127.0.0.1", "::1")
_PORTS = {"http": 80, "https": 443}
_IP = ipaddress.IPv4Address | ipaddress.IPv6Address
DEFAULT_API = "http://127.0.0.1:8081"
SERVER_VARIABLE = "GPU_REGISTRY_SERVER"
STATE_DIR_VARIABLE = "GPU_REGISTRY_STATE_DIR"
VARIABLE = "GPU_REGISTRY_TOKEN"
_LONGEST = 4096
_PREFIX = "gpuo_"
_ANYBODY = 0o007


@dataclass(frozen=True, slots=True)
class RegistryEndpoint:
    """A registry's operator API, and what its endpoint file says where it is on this machine."""

    url: str
    state_dir: Path | None = None
    """That of the registry that wrote the endpoint file; None where the URL was named."""
    pin: str | None = None
    """The pin of its key."""

    @property
    def endpoint_file(self) -> Path | None:
        """The file that names the endpoint."""
        return None if self.state_dir is None else self.state_dir / ENDPOINT_FILE

    @property
    def missing_token_file(self) -> Path | None:
        """The file of the token that this registry wrote, where it has gone since."""
        file = None if self.state_dir is None else self.state_dir / OPERATOR_TOKEN_FILE
        return None if file is None or file.exists() else file


@dataclass(frozen=True, slots=True)
class OperatorToken:
    """A token and its source, which an error names."""

    text: str = field(repr=False)
    source: str
    written_by: int | None = None
    """The user whose registry wrote it on this machine; None where it was named."""


def token_options() -> list[click.Parameter]:
    """Return `--token-file FILE` and `--insecure-plaintext`."""
    return [
        option(
            "--token-file",
            metavar="FILE",
            type=Path,
            help=f"holds the operator token (default: ${VARIABLE}, else the one that a registry here wrote)",
        ),
        option(
            "--insecure-plaintext",
            help="DANGER: send the token unencrypted to another machine: who listens on the way can act as "
            "you",
            flag=True,
        ),
    ]


def find_endpoint(arguments: Arguments) -> RegistryEndpoint:
    """Find the registry that a command's arguments lead to; raises `Failure`."""
    named = arguments.server if arguments.server is not None else os.environ.get(SERVER_VARIABLE) or None
    url = None if named is None else check_url(named)
    found = [one for one in _local_endpoints() if url in (None, one.url)]
    if not found:
        return RegistryEndpoint(DEFAULT_API if url is None else url)
    return next((one for one in found if len(found) > 1 and _is_served(one)), found[0])


def find_token(
    url: str,
    *,
    token_file: Path | None = None,
    insecure_plaintext: bool = False,
    state_dir: Path | None = None,
) -> OperatorToken | None:
    """Return the token to send to `url`, None when there is none; raises `Failure` with the next step.

    `state_dir`: of this machine's registry at that URL: its token is there.
    """
    parts = urllib.parse.urlsplit(url)
    here = is_this_machine(parts.hostname or "")
    token = _given_token(token_file)
    if token is None and (here or state_dir is not None):
        return _local_token(state_folders() if state_dir is None else [state_dir])
    if token is None or here or parts.scheme == "https" or insecure_plaintext:
        return token
    raise Failure(
        f"{url} is not encrypted: who listens on the way could take the token from {token.source} and act "
        "as you. Use https://, or an SSH tunnel to 127.0.0.1; on a network where you trust every "
        "machine, add --insecure-plaintext",
        code=ExitCode.CONFIGURATION,
    )


def may_send(token: OperatorToken, url: str) -> bool:
    """Say whether a token may be sent to `url` at this moment; raises `Failure` with the next step.

    A token that was named goes to any URL, one that a registry wrote to that registry alone.
    """
    return token.written_by is None or registry_listens(url, user=token.written_by)


def check_url(url: str) -> str:
    """Refuse what is no URL of a registry, before any request; returns it without a slash at its end."""
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
        f"{url!r}, of --server or ${SERVER_VARIABLE}, is no URL of a registry ({fault}); "
        f"write it like {DEFAULT_API}",
        code=ExitCode.CONFIGURATION,
    )


def registry_listens(url: str, *, user: int) -> bool:
    """Say whether this user's registry listens at a URL of this machine: False while no process does.

    Raises `Failure` where another user's does.
    """
    users = _listening(url)
    if users is None:
        return True
    strangers = _other_users(users, user)
    if strangers:
        raise Failure(
            f"another user of this machine (id {min(strangers)}) listens at {url}, not the registry of user "
            f"{user} that wrote its operator token here: the token was not sent. If that one is meant, name "
            "the file of a token for it with --token-file",
            code=ExitCode.CONFIGURATION,
        )
    return bool(users)


def _local_endpoints() -> Iterator[RegistryEndpoint]:
    """Yield what registries of this machine have written; a killed one has not removed it."""
    for folder in state_folders():
        written = read_endpoint_file(folder)
        if written is not None and _is_address(written.api):
            yield RegistryEndpoint(check_url(written.api), folder, written.pin)


def _is_served(endpoint: RegistryEndpoint) -> bool:
    try:
        return endpoint.endpoint_file is not None and is_served(
            endpoint.url, user=endpoint.endpoint_file.stat().st_uid
        )
    except OSError:
        return False  # removed meanwhile


def _is_address(url: str) -> bool:
    """Say whether a URL has an address for its host, as one in an endpoint file has: a name may move."""
    try:
        ipaddress.ip_address(urllib.parse.urlsplit(url).hostname or "")
    except ValueError:
        return False
    return True


def state_folders() -> list[Path]:
    """Return where a registry on this machine may have its state."""
    value = os.environ.get(STATE_DIR_VARIABLE)
    return [Path(value).expanduser()] if value else [default_state_dir(), UNIT_FOLDER]


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


def _given_token(token_file: Path | None) -> OperatorToken | None:
    if token_file is not None:
        if token_file.name.startswith(_PREFIX):
            raise Failure(
                "this is a token, and not the name of its file: put it into a file that only you may "
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
    """Read the token that a registry on this machine has written, where we may read it."""
    for folder in folders:
        path = folder / OPERATOR_TOKEN_FILE
        try:
            return replace(_check_token(_read_token(path), str(path)), written_by=path.stat().st_uid)
        except OSError:
            continue  # another user's, or none: the registry says whether one is needed
    return None


def _warn_if_exposed(path: Path) -> None:
    """Warn of a token that every user may read; a link is a container's secret, with modes of its own."""
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
    if not text.startswith(_PREFIX) or not text.isascii() or not text.isprintable() or " " in text:
        raise Failure(
            f"{source} holds no operator token: it should be one line that begins with {_PREFIX}",
            code=ExitCode.CONFIGURATION,
        )
    return OperatorToken(text, source)


def is_this_machine(host: str) -> bool:
    """Say whether a URL's host is this machine's loopback."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def is_served(url: str, *, user: int) -> bool:
    """Say whether only this user's registry listens at a URL, as far as the system says."""
    users = _listening(url)
    return users is None or (bool(users) and not _other_users(users, user))


def _other_users(users: set[int], user: int) -> set[int]:
    return {one for one in users if one not in (user, _ROOT) and not _is_behind(one, user)}


def _is_behind(listening: int, owner: int) -> bool:
    """Say whether a systemd service may own the file: on disk it may belong to the overflow user."""
    return owner == _OVERFLOW and listening in _OF_SERVICES


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
        if f" {_LISTENING} " in line:  # first, since a registry has ten thousand other connections
            cells = line.split()
            address, _, port = cells[_ADDRESS].partition(":")
            yield _parse_address(address), int(port, 16), int(cells[_USER])


def _parse_address(text: str) -> _IP:
    """Read an address that is written in words of this machine's byte order."""
    raw = bytes.fromhex(text)
    if sys.byteorder == "little":
        words = (raw[start : start + _WORD_BYTES] for start in range(0, len(raw), _WORD_BYTES))
        raw = b"".join(word[::-1] for word in words)
    address = ipaddress.ip_address(raw)
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return mapped or address


def _accepts(address: _IP, *, meant: set[_IP]) -> bool:
    return address.is_unspecified or address in meant
