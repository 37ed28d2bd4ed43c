"""How it stands with what the agent keeps and presents: its state directory, its identity, its join token.

It looks as the user who asks, takes hold of nothing, mends nothing and writes nothing, so that it can
look at an agent that runs.
"""

import os
import stat
from collections.abc import Iterator
from pathlib import Path

from gpu_agent.node.credentials import held_in, sendable
from gpu_agent.node.identity import LOCK_FILE, Identity, default_state_dir, exposure, peek
from gpu_agent.node.rehearsal import Tokens
from gpu_agent.node.settings import AgentSettings
from gpu_agent.runtime.findings import Finding, fail, ok, skipped, warn
from gpu_agent.runtime.locking import holder_of

_STATE, _IDENTITY, _JOIN = "state directory", "identity", "join token"


def standing(settings: AgentSettings) -> Iterator[Finding]:
    """Yield a finding for the state directory, the identity in it, and the join token."""
    folder = settings.state_dir or default_state_dir()
    yield _folder(folder)
    yield _identity(folder)
    yield _join_token(settings)


def tokens(settings: AgentSettings) -> Tokens:
    """Gather what the agent could present; what cannot be read is none."""
    try:
        kept = peek(settings.state_dir or default_state_dir())
    except (OSError, ValueError):
        kept = Identity()
    return Tokens(node=kept.node_token, join=_join_of(settings))


def _folder(folder: Path) -> Finding:
    try:
        found = folder.stat()
        exposed = exposure(folder)
    except FileNotFoundError:
        return _to_be_made(folder)
    except OSError as error:
        mend = "run this as the agent's user, or name another directory with --state-dir"
        return fail(_STATE, f"{folder} cannot be looked at ({error.strerror})", mend)
    if not stat.S_ISDIR(found.st_mode):
        return fail(_STATE, f"{folder} is no directory", "move it away, or name another with --state-dir")
    if not os.access(folder, os.R_OK | os.W_OK | os.X_OK):
        mend = "run this as the agent's user, or give the directory to the one who runs it"
        return fail(_STATE, f"{folder} belongs to user {found.st_uid}, and we may not write there", mend)
    if exposed is not None:
        return warn(_STATE, f"{folder}: {exposed}", f"run `chmod 700 {folder}`, as its owner")
    return ok(_STATE, f"{folder}, mode {stat.S_IMODE(found.st_mode):04o}{_holder(folder)}")


def _to_be_made(folder: Path) -> Finding:
    """The agent makes it; whether it may is its parent's to say."""
    parent = next((above for above in folder.parents if above.exists()), folder)
    if os.access(parent, os.W_OK | os.X_OK):
        return ok(_STATE, f"{folder} is not there yet; the agent makes it")
    mend = "make it for the agent's user, or name another with --state-dir"
    return fail(_STATE, f"{folder} is not there, and we may not make it in {parent}", mend)


def _holder(folder: Path) -> str:
    try:
        process = holder_of(folder / LOCK_FILE)
    except OSError:  # never used, or a platform that does not tell
        return ""
    return "; no agent runs on it" if process is None else f"; an agent runs on it (process {process or '?'})"


def _identity(folder: Path) -> Finding:
    try:
        kept = peek(folder)
    except FileNotFoundError:
        return skipped(_IDENTITY, "none yet: the registry gives one at the first registration")
    except OSError as error:
        mend = "run this as the agent's user"
        return fail(_IDENTITY, f"it cannot be read ({error.strerror or error})", mend)
    except ValueError as error:
        mend = (
            "nothing: the agent keeps it aside and registers anew; restore it from a backup if there is one"
        )
        return warn(_IDENTITY, f"the file cannot be understood: {error}", mend)
    proof = "with a token of its own" if kept.node_token is not None else "without a token of its own"
    return ok(_IDENTITY, f"{kept.node_id or 'no id'}, {proof}")


def _join_token(settings: AgentSettings) -> Finding:
    file = settings.join_token_file
    if file is not None:
        held = held_in(file)
        if held.token is None:
            mend = "name the file that holds the join token, readable by the agent's user"
            return fail(_JOIN, f"{file}: {held.problem}", mend)
        if held.exposed_mode is not None:
            mend = f"run `chmod 600 {file}`, and have the token replaced if others may have read it"
            return warn(_JOIN, f"everybody on this machine may read {file} (mode {held.exposed_mode})", mend)
        return ok(_JOIN, f"in {file}")
    if settings.join_token is None:
        return skipped(_JOIN, "none given")
    if _join_of(settings) is None:
        return fail(_JOIN, "the one in the settings is no token", "set GPU_AGENT_JOIN_TOKEN, or name a file")
    return ok(_JOIN, "in the settings")


def _join_of(settings: AgentSettings) -> str | None:
    if settings.join_token_file is not None:
        return held_in(settings.join_token_file).token
    return None if settings.join_token is None else sendable(settings.join_token.get_secret_value())
