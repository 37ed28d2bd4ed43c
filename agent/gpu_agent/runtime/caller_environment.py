"""The environment as the caller of the command has it, for programs that the caller starts through us.

The packages' launcher (`packaging/files/gpu-agent`) points Python's variables at the package's libraries and
keeps the old values. The caller's own programs must not see ours.
"""

import json
from collections.abc import Mapping

CALLER_VARIABLES = "_GPU_AGENT_CALLERS_PYTHON"
"""The variable in which the launcher stores them; without it nothing was changed."""
_OF_PYTHON = "PYTHON"


def caller_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """Return the environment as it was before the launcher."""
    if CALLER_VARIABLES not in environ:
        return dict(environ)
    own = {
        name: value for name, value in environ.items() if not name.startswith((_OF_PYTHON, CALLER_VARIABLES))
    }
    return own | _read(environ[CALLER_VARIABLES])


def _read(stored: str) -> dict[str, str]:
    """Read what the launcher stored; empty where something else wrote there."""
    try:
        values = json.loads(stored)
    except (ValueError, RecursionError):
        return {}
    if not isinstance(values, dict):
        return {}
    return {
        name: value
        for name, value in values.items()
        if name.startswith(_OF_PYTHON) and isinstance(value, str)
    }
