"""Which operator token a command shows to a registry: a file's, the environment's, else this machine's own.

Never taken from the arguments, where everybody on the machine can read it, and never sent in the
clear to another machine unless the operator says so. The token that a registry left on this machine
goes to this machine's registry alone, and not to whoever else listens in its place.
"""

import argparse
import ipaddress
import os
import stat
import urllib.parse
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path

from gpu_agent.cli.asking.address import state_folders
from gpu_agent.cli.asking.own_registry import listens
from gpu_agent.cli.outcome import ExitCode, Failure
from gpu_agent.cli.streams import complain
from gpu_agent.runtime.state_dir import OPERATOR_TOKEN_FILE

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


def may_be_shown(token: OperatorToken, url: str) -> bool:
    """Say whether a token may be shown at `url` at this moment; raises `Failure` with the next step.

    One that was named goes where it was sent, one that a registry left to that registry alone.
    """
    return token.left_by is None or listens(url, user=token.left_by)


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
    token = _named(token_file)
    if token is None and (here or left_in is not None):
        return _left_here(state_folders() if left_in is None else [left_in])
    if token is None or here or parts.scheme == "https" or insecure_http:
        return token
    raise Failure(
        f"{url} is not encrypted: whoever listens on the way could take the token from {token.source} and "
        "act as you. Use https://, or an SSH tunnel to 127.0.0.1; on a network where you trust every "
        "machine, add --insecure-http",
        code=ExitCode.CONFIGURATION,
    )


def _named(token_file: Path | None) -> OperatorToken | None:
    if token_file is not None:
        if token_file.name.startswith(_PREFIX):
            raise Failure(
                "a token stands where the name of its file should: put it into a file that only you may "
                "read. It was readable by everybody on this machine just now, so have it revoked",
                code=ExitCode.CONFIGURATION,
            )
        try:
            _warn_if_exposed(token_file)
            return _checked(_read(token_file), str(token_file))
        except OSError as error:
            raise Failure(
                f"the token file {token_file} cannot be read ({error.strerror or error}): "
                "check its name, owner and permissions",
                code=ExitCode.CONFIGURATION,
            ) from None
    given = os.environ.get(VARIABLE, "").strip()
    return _checked(given, f"${VARIABLE}") if given else None


def _left_here(folders: Iterable[Path]) -> OperatorToken | None:
    """Read what a registry on this machine has written for us, where we may read it."""
    for folder in folders:
        path = folder / OPERATOR_TOKEN_FILE
        try:
            return replace(_checked(_read(path), str(path)), left_by=path.stat().st_uid)
        except OSError:
            continue  # another user's, or none: the registry says whether one is needed
    return None


def _warn_if_exposed(path: Path) -> None:
    """Tell of a token that everybody on this machine may read; behind a link it is a container's to judge."""
    mode = path.stat().st_mode
    if mode & _ANYBODY and os.name == "posix" and not path.is_symlink():
        complain(
            f"everybody on this machine may read the token in {path} (mode {stat.S_IMODE(mode):04o}): "
            f"run `chmod 600 {path}`, and have it revoked if others use this machine"
        )


def _read(path: Path) -> str:
    with path.open("rb") as file:
        return file.read(_LONGEST).strip().decode("ascii", "replace")


def _checked(text: str, source: str) -> OperatorToken:
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
