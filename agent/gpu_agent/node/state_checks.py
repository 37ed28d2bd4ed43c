"""Checks of what the agent stores and presents: its state directory, its identity, its join token.

They run as the user who asks, take no lock and write nothing, so that they can check a running agent.
"""

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from gpu_agent.node.connection.check import Tokens
from gpu_agent.node.credentials import JOIN_PREFIX, NOT_OURS, TokenFile, parse_token, read_token_file
from gpu_agent.node.identity import (
    LOCK_FILE,
    Identity,
    default_state_dir,
    find_disk_fault,
    find_exposure,
    read_identity,
)
from gpu_agent.node.settings import AgentSettings
from gpu_agent.runtime.check_results import CheckResult, fail, ok, skipped, warn
from gpu_agent.runtime.files import lock_holder

_STATE, _IDENTITY, _JOIN = "state directory", "identity", "join token"


@dataclass(frozen=True, slots=True)
class Credential:
    """The join token's file that systemd hands to the service; only root may read it."""

    file: Path
    found: TokenFile


def check_state(
    settings: AgentSettings, credential: Credential | None = None, *, made_at_start: bool = False
) -> Iterator[CheckResult]:
    """Yield a result for the state directory, for the identity in it, and for the join token.

    `credential` counts where the settings state no join token. `made_at_start`: systemd makes the directory.
    """
    folder = settings.state_dir or default_state_dir()
    if made_at_start and not folder.exists():
        yield ok(_STATE, f"{folder} is missing; systemd makes it when the service starts")
    else:
        yield _folder(folder)
    yield _identity(folder)
    yield _join_token(settings, credential)


def available_tokens(settings: AgentSettings, credential: Credential | None = None) -> Tokens:
    """Return the tokens that the agent could present, as far as they can be read."""
    try:
        identity = read_identity(settings.state_dir or default_state_dir())
    except (OSError, ValueError):
        identity = Identity()
    return Tokens(node=identity.node_token, join=_join_of(settings, credential), node_id=identity.node_id)


def _folder(folder: Path) -> CheckResult:
    try:
        found = folder.stat()
        exposed = find_exposure(folder)
    except FileNotFoundError:
        return _missing_folder(folder)
    except OSError as error:
        fix = "run this as the agent's user, or name another directory with --state-dir"
        return fail(_STATE, f"{folder} cannot be read ({error.strerror})", fix)
    if not stat.S_ISDIR(found.st_mode):
        return fail(_STATE, f"{folder} is no directory", "move it away, or name another with --state-dir")
    fault = find_disk_fault(folder)
    if fault is not None and os.access(folder, os.R_OK | os.X_OK):
        what, _, fix = fault.rpartition(": ")
        return fail(_STATE, what, fix)
    if not os.access(folder, os.R_OK | os.W_OK | os.X_OK):
        fix = "run this as the agent's user, or give the directory to that user"
        return fail(
            _STATE, f"{folder} belongs to user {found.st_uid}, and this user may not write there", fix
        )
    if exposed is not None:
        return warn(_STATE, f"{folder}: {exposed}", f"run `chmod 700 {folder}`, as its owner")
    return ok(_STATE, f"{folder}, mode {stat.S_IMODE(found.st_mode):04o}{_running_agent(folder)}")


def _missing_folder(folder: Path) -> CheckResult:
    """The agent creates it, if its user may write to the parent directory."""
    parent = next((above for above in folder.parents if above.exists()), folder)
    if os.access(parent, os.W_OK | os.X_OK):
        return ok(_STATE, f"{folder} is missing; the agent creates it")
    fix = "create it for the agent's user, or name another with --state-dir"
    return fail(_STATE, f"{folder} is missing, and this user may not create it in {parent}", fix)


def _running_agent(folder: Path) -> str:
    try:
        process = lock_holder(folder / LOCK_FILE)
    except OSError:  # never used, or a platform without that information
        return ""
    return "; no agent runs on it" if process is None else f"; an agent runs on it (process {process or '?'})"


def _identity(folder: Path) -> CheckResult:
    try:
        identity = read_identity(folder)
    except FileNotFoundError:
        return skipped(_IDENTITY, "none yet: the registry issues one at the first registration")
    except OSError as error:
        fix = "run this as the agent's user"
        return fail(_IDENTITY, f"it cannot be read ({error.strerror or error})", fix)
    except ValueError as error:
        fix = (
            "nothing: the agent moves it aside and registers again; restore it from a backup if there is one"
        )
        return warn(_IDENTITY, f"the file cannot be parsed: {error}", fix)
    proof = "with a token of its own" if identity.node_token is not None else "without a token of its own"
    return ok(_IDENTITY, f"{identity.node_id or 'no id'}, {proof}")


def _join_token(settings: AgentSettings, credential: Credential | None) -> CheckResult:
    given = _join_file(settings, credential)
    if given is not None:
        file, found = given.file, given.found
        if found.token is None:
            fix = "name the file that holds the join token, readable by the agent's user"
            return fail(_JOIN, f"{file}: {found.problem}", fix)
        if found.exposed_mode is not None:
            fix = f"run `chmod 600 {file}`, and have the token replaced if others may have read it"
            return warn(_JOIN, f"everybody on this machine may read {file} (mode {found.exposed_mode})", fix)
        if not found.token.startswith(JOIN_PREFIX):
            what, _, fix = f"{file} {NOT_OURS}".rpartition(": ")
            return warn(_JOIN, what, f"put one there: {fix}")
        return ok(_JOIN, f"in {file}")
    if settings.join_token is None:
        return skipped(_JOIN, "none given")
    if _join_of(settings) is None:
        return fail(_JOIN, "the one in the settings is no token", "set GPU_AGENT_JOIN_TOKEN, or name a file")
    return ok(_JOIN, "in the settings")


def _join_file(settings: AgentSettings, credential: Credential | None) -> Credential | None:
    """Return the file that states the join token, read; None where none does."""
    if settings.join_token_file is not None:
        return Credential(settings.join_token_file, read_token_file(settings.join_token_file))
    return credential if settings.join_token is None else None


def _join_of(settings: AgentSettings, credential: Credential | None = None) -> str | None:
    if (file := _join_file(settings, credential)) is not None:
        return file.found.token
    return None if settings.join_token is None else parse_token(settings.join_token.get_secret_value())
