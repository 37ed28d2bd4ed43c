"""The scripts by which shells complete, and the environment in which they find the program under test."""

import os
import subprocess
from pathlib import Path

from tests.programs import COMMAND

WITH_THE_PROGRAM = {**os.environ, "PATH": f"{Path(COMMAND[0]).parent}:{os.environ['PATH']}"}


def script(shell: str) -> str:
    """Write the script of a shell, as a user does."""
    done = subprocess.run([*COMMAND, "completion", shell], capture_output=True, text=True, check=True)
    return done.stdout
