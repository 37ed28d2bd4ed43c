"""The environment as whoever called the command has it, for programs of the caller's own.

The launcher of the packages (`packaging/files/gpu-agent`) turns the variables of Python to the package's
libraries, for the Pythons that this program starts of itself, and keeps those that were there. A program of
the caller's has libraries of its own, and must see none of that. It changes nothing, and starts nothing.
"""

import json
from collections.abc import Mapping

KEPT = "_GPU_AGENT_CALLERS_PYTHON"
"""Where the launcher keeps them; without it no launcher has changed anything."""
_OF_PYTHON = "PYTHON"


def callers_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """Give the environment back as it was before the launcher."""
    if KEPT not in environ:
        return dict(environ)
    own = {name: value for name, value in environ.items() if not name.startswith((_OF_PYTHON, KEPT))}
    return own | _read(environ[KEPT])


def _read(kept: str) -> dict[str, str]:
    """What the launcher kept; nothing where somebody else wrote there."""
    try:
        told = json.loads(kept)
    except (ValueError, RecursionError):
        return {}
    if not isinstance(told, dict):
        return {}
    return {
        name: value for name, value in told.items() if name.startswith(_OF_PYTHON) and isinstance(value, str)
    }
