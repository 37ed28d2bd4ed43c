"""The agent's disk: its identity read, saved and forgotten, each with an end to the waiting.

A disk that fails or hangs is told of and costs only what it was to keep: the session goes on without.
"""

from collections.abc import Callable
from typing import TypeVar

from gpu_agent.node.identity import IdentityError, IdentityFile
from gpu_agent.runtime.logs import EventLog
from gpu_agent.runtime.tasks import in_thread
from gpu_agent.session.actions import ForgetIdentity, SaveIdentity

DISK_SECONDS = 1.5
"""How long the state directory may hold the agent up."""

_T = TypeVar("_T")
_LOG = EventLog("node")


def load(identity: IdentityFile) -> None:
    """Read what is remembered, and tell of what is wrong with it."""
    if (exposed := identity.exposed) is not None:
        mend = f"run `chmod 700 {identity.folder}`, as its owner"
        _LOG.warning("state_directory_exposed", state_dir=str(identity.folder), reason=exposed, mend=mend)
    loaded = identity.load()
    if loaded.kept_aside is not None:
        _LOG.warning("identity_corrupt", kept_aside=str(loaded.kept_aside), reason=loaded.why)


async def keep(identity: IdentityFile, action: SaveIdentity | ForgetIdentity) -> None:
    """Bring the identity to the disk. If that fails the session goes on; a restart will miss it."""
    if isinstance(action, SaveIdentity):
        node_id, node_token = action.node_id, action.node_token
        await bounded("identity", lambda: identity.save(node_id, node_token))
        return
    copy = await bounded("identity", identity.forget_id)
    _LOG.warning("identity_forgotten", node_id=action.node_id, kept_as=None if copy is None else str(copy))


async def bounded(name: str, work: Callable[[], _T]) -> _T | None:
    """Do what touches the disk, for so long; None, and a line in the log, when it fails."""
    try:
        return await in_thread(name, work, deadline_seconds=DISK_SECONDS)
    except IdentityError as error:
        _LOG.error("disk_failed", what=name, problem=str(error))
    except TimeoutError:
        _LOG.error("disk_failed", what=name, problem=f"no answer within {DISK_SECONDS:g} s")
    return None
