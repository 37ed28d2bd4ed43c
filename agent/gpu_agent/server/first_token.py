"""The admin token of a registry's first start: without one nobody could ever make another.

Made whenever no admin's token lives, and left in the state directory for whoever runs the registry.
It is put down before it is kept: a crash in between leaves a file that opens nothing and that the next
start replaces, never a token that nobody has. A file whose token lives is never overwritten.
"""

import contextlib
import os
import secrets
from pathlib import Path

from gpu_agent.registry.actions import Refusal
from gpu_agent.registry.credentials import CredentialKind, Role
from gpu_agent.registry.tokens import TokenState
from gpu_agent.runtime.logs import EventLog
from gpu_agent.runtime.state_dir import OPERATOR_TOKEN_FILE, StateDirectoryError
from gpu_agent.server.minting import LONGEST_TOKEN, mint
from gpu_agent.server.tokens import TokenDesk

NAME = "first start"
_MODE = 0o600
_LOG = EventLog("registry")


async def leave_admin_token(desk: TokenDesk, folder: Path) -> None:
    """Make an admin token and leave it in the directory, where none lives; raises `StateDirectoryError`."""
    if any(token.role is Role.ADMIN and token.state is TokenState.LIVE for token in desk.listed()):
        return
    path = folder / OPERATOR_TOKEN_FILE
    if desk.authenticate(_read(path)) is not None:
        raise StateDirectoryError(
            f"{path} holds a token that lives but is no admin's, and no admin's token lives: "
            "move that file away and start again to be given one"
        )
    minted = mint(CredentialKind.OPERATOR)
    _write(path, minted.text)
    made = await desk.create_operator(Role.ADMIN, name=NAME, minted=minted)
    if isinstance(made, Refusal):
        raise StateDirectoryError(f"the first operator token could not be kept: {made.message}")
    _LOG.warning("operator_token_written", file=str(path))


def _read(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return file.read(LONGEST_TOKEN + 1).strip().decode("ascii", "replace")
    except OSError:
        return ""


def _write(path: Path, text: str) -> None:
    """Write beside, flush to the disk, then put in place: for its owner alone, and never through a link."""
    beside = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0)
    try:
        with os.fdopen(os.open(beside, flags, _MODE), "w", encoding="ascii") as file:
            file.write(f"{text}\n")
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            beside.unlink()
        raise StateDirectoryError(
            f"{path} cannot be written ({error.strerror or error}); make room on that disk or check its "
            "owner and permissions, or name another directory with --state-dir"
        ) from error
