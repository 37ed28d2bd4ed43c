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
UNIT_SOCKET = Path("/run/gpu-agent") / SOCKET_NAME
"""Where the agent of the service listens, unless its settings name another place."""
_CONFIGURATION = Path("/etc/gpu-agent/agent.toml")
MAX_ADDRESS_BYTES = 107 if sys.platform == "linux" else 103
"""The longest address of a socket on this system."""


def socket_path(environ: Mapping[str, str] | None = None) -> Path:
    """Find where an agent of this machine listens, by the agent's own rule.

    The order: the variables of its settings, its configuration, the service's path, this user's path.
    """
    given = os.environ if environ is None else environ
    if given.get(VARIABLE):
        return _expand(given[VARIABLE])
    if given.get(_STATE_VARIABLE):
        return _expand(given[_STATE_VARIABLE]) / SOCKET_NAME
    configured = _read_configuration(_CONFIGURATION)
    if "socket" in configured:
        return _expand(configured["socket"])
    if _exists(UNIT_SOCKET):
        return UNIT_SOCKET
    state_dir = configured.get("state_dir")
    return (_state_dir(given) if state_dir is None else _expand(state_dir)) / SOCKET_NAME


def service_socket() -> Path:
    """Return where the agent of the service listens while it runs."""
    configured = _read_configuration(_CONFIGURATION)
    return _expand(configured["socket"]) if "socket" in configured else UNIT_SOCKET


@contextmanager
def address_of(path: Path) -> Iterator[str]:
    """Return the address of a socket, through its open folder where the path is too long."""
    if len(os.fsencode(path)) <= MAX_ADDRESS_BYTES or sys.platform != "linux":
        yield str(path)
        return
    folder = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{folder}/{path.name}"
    finally:
        os.close(folder)


def _expand(written: str) -> Path:
    """Expand `~` where there is a home; many containers have none, and jobs must run there too."""
    path = Path(written)
    try:
        return path.expanduser()
    except RuntimeError:
        return path


def _exists(path: Path) -> bool:
    """Whether the path exists; a folder that this user may not enter hides another user's agent."""
    try:
        path.lstat()
    except PermissionError:
        return True
    except OSError:
        return False
    return True


def _read_configuration(file: Path) -> dict[str, str]:
    """The paths in the agent's configuration; none where it cannot be read."""
    try:
        with file.open("rb") as opened:
            document = tomllib.load(opened)
    except (OSError, ValueError, RecursionError):
        return {}
    return {name: value for name, value in document.items() if isinstance(value, str)}


def _state_dir(environ: Mapping[str, str]) -> Path:
    """This user's state directory, as platformdirs returns it to the agent."""
    home = _expand("~")
    if not home.is_absolute():
        home = Path("/nonexistent")  # as the agent does for a user without a home
    if sys.platform == "darwin":
        return home / "Library" / "Application Support" / "gpu-agent"
    state_home = environ.get("XDG_STATE_HOME", "")
    return (Path(state_home) if state_home.strip() else home / ".local" / "state") / "gpu-agent"
