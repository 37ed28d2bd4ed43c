"""Where the agent of this machine listens, and how to address a socket whose path is long."""

import os
import sys
import tomllib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

SOCKET_NAME = "agent.sock"
VARIABLE = "GPU_AGENT_SOCKET"
_STATE_VARIABLE = "GPU_AGENT_STATE_DIR"
_UNIT_PATH = Path("/run/gpu-agent") / SOCKET_NAME
_CONFIGURATION = Path("/etc/gpu-agent/agent.toml")
MAX_ADDRESS_BYTES = 107 if sys.platform == "linux" else 103
"""What the system takes for the address of a socket."""


def socket_path(environ: Mapping[str, str] | None = None) -> Path:
    """Find where an agent of this machine listens, by the rule by which it chooses the place.

    The variables of its settings, then its configuration, then the service's place, then this user's.
    """
    given = os.environ if environ is None else environ
    if given.get(VARIABLE):
        return _expanded(given[VARIABLE])
    if given.get(_STATE_VARIABLE):
        return _expanded(given[_STATE_VARIABLE]) / SOCKET_NAME
    configured = _configured(_CONFIGURATION)
    if "socket" in configured:
        return _expanded(configured["socket"])
    if _seen(_UNIT_PATH):
        return _UNIT_PATH
    state_dir = configured.get("state_dir")
    return (_state_dir(given) if state_dir is None else _expanded(state_dir)) / SOCKET_NAME


@contextmanager
def address_of(path: Path) -> Iterator[str]:
    """Give the address of a socket, by way of its open folder where the path is too long for one."""
    if len(os.fsencode(path)) <= MAX_ADDRESS_BYTES or sys.platform != "linux":
        yield str(path)
        return
    folder = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{folder}/{path.name}"
    finally:
        os.close(folder)


def _expanded(written: str) -> Path:
    """Read `~` as a home where there is one: in many containers there is none, and jobs run all the same."""
    path = Path(written)
    try:
        return path.expanduser()
    except RuntimeError:
        return path


def _seen(path: Path) -> bool:
    """Whether something is there; a folder that is closed to us hides an agent that is not ours."""
    try:
        path.lstat()
    except PermissionError:
        return True
    except OSError:
        return False
    return True


def _configured(file: Path) -> dict[str, str]:
    """What the agent's configuration says of places; nothing where it cannot be read."""
    try:
        with file.open("rb") as opened:
            document = tomllib.load(opened)
    except (OSError, ValueError, RecursionError):
        return {}
    return {name: value for name, value in document.items() if isinstance(value, str)}


def _state_dir(environ: Mapping[str, str]) -> Path:
    """This user's place for the agent's state, as platformdirs gives it to the agent."""
    home = _expanded("~")
    if not home.is_absolute():
        home = Path("/nonexistent")  # as the agent has it for who has no home
    if sys.platform == "darwin":
        return home / "Library" / "Application Support" / "gpu-agent"
    kept = environ.get("XDG_STATE_HOME", "")
    return (Path(kept) if kept.strip() else home / ".local" / "state") / "gpu-agent"
