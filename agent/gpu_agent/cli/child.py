"""A command of the user's, run as a child of one of ours: its environment, its signals, its exit code."""

import json
import os
import shutil
import subprocess
from collections.abc import Callable, Mapping, Sequence

from gpu_agent.cli.output.streams import print_stderr
from gpu_agent.cli.output.text import printable
from gpu_agent.cli.signals import SignalForwarder

NOT_FOUND, NOT_RUN, BY_SIGNAL = 127, 126, 128
"""The exit codes of shells: no such command, one that cannot be run, one that a signal ended."""
CALLER_VARIABLES = "_GPU_AGENT_CALLERS_PYTHON"
"""The variable in which the packages' launcher stores the caller's own variables of Python."""
_PYTHON = "PYTHON"

Child = subprocess.Popen[bytes]


def run_child(
    command: Sequence[str],
    *,
    variables: Mapping[str, str] | None = None,
    started: Callable[[Child], None] | None = None,
) -> int:
    """Run a command with these variables besides the caller's, forward signals, return its exit code."""
    with SignalForwarder() as forwarder:
        try:
            environment = caller_environment(os.environ) | dict(variables or {})
            running = subprocess.Popen(command, env=environment)  # noqa: S603 - the user asks for this
        except FileNotFoundError:
            print_stderr(_no_command(command[0]))
            return NOT_FOUND
        except (OSError, ValueError) as error:
            print_stderr(
                f"{printable(command[0])} cannot be run: {getattr(error, 'strerror', None) or error}"
            )
            return NOT_RUN
        forwarder.forward_to(running)
        if started is not None:
            started(running)
        code = running.wait()
    return code if code >= 0 else BY_SIGNAL - code


def find_command(name: str) -> int | None:
    """Check that there is a command before anything is done for it: None, or the exit code for a shell."""
    if shutil.which(name) is not None:
        return None
    if os.path.dirname(name) and os.path.exists(name):  # noqa: PTH110, PTH120 - as `which` reads it
        print_stderr(f"{printable(name)} cannot be run: it is no program that you may run")
        return NOT_RUN
    print_stderr(_no_command(name))
    return NOT_FOUND


def caller_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """Return the environment as the caller of the command has it, for a program of the caller's own.

    The launcher (`packaging/files/gpu-agent`) points Python's variables at the package's libraries. The
    caller's program must not see those.
    """
    if CALLER_VARIABLES not in environ:
        return dict(environ)
    own = {name: value for name, value in environ.items() if not name.startswith((_PYTHON, CALLER_VARIABLES))}
    return own | _stored_variables(environ[CALLER_VARIABLES])


def _no_command(name: str) -> str:
    return f"there is no command {printable(name)}; write its path, or correct PATH"


def _stored_variables(stored: str) -> dict[str, str]:
    """Read what the launcher stored; empty where something else wrote there."""
    try:
        values = json.loads(stored)
    except (ValueError, RecursionError):
        return {}
    if not isinstance(values, dict):
        return {}
    return {
        name: value for name, value in values.items() if name.startswith(_PYTHON) and isinstance(value, str)
    }
