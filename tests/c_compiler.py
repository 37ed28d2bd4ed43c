"""Finds a C compiler for the small libraries that stand under a program in tests."""

import importlib.util
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from tests.waiting import patience

_FLAGS = ("-shared", "-fPIC", "-O1", "-Wall", "-Wextra", "-Wno-deprecated-declarations", "-Werror")


class CannotBuildError(Exception):
    """The machine lacks what the fake is made from; the message names the next step."""


def shared_library(sources: Sequence[Path], made: Path, *more: str) -> None:
    """Compile C files into a shared library; raises `CannotBuildError`."""
    made.parent.mkdir(parents=True, exist_ok=True)
    command: Sequence[str] = [*_compiler(), *_FLAGS, *more, "-o", str(made), *map(str, sources)]
    result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=patience(60))
    if result.returncode != 0:
        raise CannotBuildError(f"{' '.join(command)} failed:\n{result.stderr}")


def _compiler() -> list[str]:
    for name in ("cc", "gcc", "clang"):
        found = shutil.which(name)
        if found:
            return [found]
    if importlib.util.find_spec("ziglang"):
        return [sys.executable, "-m", "ziglang", "cc"]
    raise CannotBuildError(
        "No C compiler was found: install one (`apt install gcc`), or `pip install ziglang` into this venv."
    )
