"""What the commands under `service` work on: which half is meant, this machine, and the program that asks.

It finds out, and changes nothing.
"""

import argparse
import importlib.util
import os
import sys
import sysconfig
from pathlib import Path

from gpu_agent.cli.outcome import ExitCode, Failure
from gpu_agent.runtime.services.installing import Place, Program, RefusedError
from gpu_agent.runtime.services.unit_files import HALVES, UnwritablePathError, shipped
from gpu_agent.version import __version__

_ROOT = Path("/")
_OF_BOTH = ("gpu_agent", "pydantic", "websockets", "psutil", "pynvml")
_OF_THE_REGISTRY = ("fastapi", "uvicorn", "h11", "prometheus_client", "redis")


def add_half(parser: argparse.ArgumentParser) -> None:
    """Add which half is meant."""
    parser.add_argument(
        "half",
        metavar="HALF",
        nargs="?",
        default="agent",
        choices=tuple(HALVES),
        help="agent (default) or registry",
    )


def place() -> Place:
    """This machine, and who asks."""
    uid = os.geteuid() if hasattr(os, "geteuid") else -1
    return Place(_ROOT, shipped(), uid)


def program(half: str) -> Program:
    """This program, as a service is to start it; raises `Failure` where it has no command of its own."""
    path = command()
    if not path.is_file():
        raise Failure(
            f"there is no {path}: install this program with pip, which makes that command",
            ExitCode.CONFIGURATION,
        )
    names = _OF_BOTH + (_OF_THE_REGISTRY if half == "registry" else ())
    parts = [Path(sys.executable), Path(os.__file__)]
    for name in names:
        found = importlib.util.find_spec(name)
        if found is None or found.origin is None:
            raise Failure(
                f"the {half} needs the package {name}, which is not installed here: "
                f"`{path.with_name('pip')} install 'gpu-agent[registry]'`",
                ExitCode.CONFIGURATION,
            )
        parts.append(Path(found.origin))
    return Program(path, __version__, tuple(parts))


def command() -> Path:
    """Where pip puts this program's command."""
    return Path(sysconfig.get_path("scripts")) / "gpu-agent"


def refusal(error: RefusedError | UnwritablePathError) -> Failure:
    """How a command ends that this machine is not for."""
    return Failure(str(error), ExitCode.CONFIGURATION)
