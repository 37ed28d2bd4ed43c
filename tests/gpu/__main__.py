"""Compares the probe with `nvidia-smi` on a machine with NVIDIA GPUs, and prints a table.

    python3 -m tests.gpu [--minutes 10] [--record NAME] [--wheels FOLDER]

It needs Python and the driver. Where gpu-agent is not installed, it is installed from this checkout into a
virtual environment in a temporary folder: from PyPI, or without a network from a folder of wheels
(`pip download --dest FOLDER .` fills one on a like machine).

Three parts: GPUs as they are; one GPU after the other under load (through `libcuda`, where it is); and the
daemon's long-running child for so many minutes. `--record` writes what the probe reported, without serials,
as data of the tests. Exit code 1 where the two disagree.
"""

import argparse
import importlib.util
import os
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
MINUTES = 10.0
_NEEDED = "gpu_agent"


def main() -> int:
    """Install where needed, then compare."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=MINUTES, help="of the long run (10)")
    parser.add_argument("--record", metavar="NAME", help="write tests/gpu/data/NAME.json")
    parser.add_argument("--wheels", type=Path, metavar="FOLDER", help="install from here, without a network")
    arguments = parser.parse_args()
    if importlib.util.find_spec(_NEEDED) is None:
        return _in_new_environment(arguments.wheels)
    from tests.gpu.run import run  # noqa: PLC0415 - it needs what is installed only now

    return run(minutes=arguments.minutes, record=arguments.record)


def _in_new_environment(wheels: Path | None) -> int:
    with tempfile.TemporaryDirectory(prefix="gpu-agent-") as folder:
        venv.create(folder, with_pip=True)
        python = Path(folder) / "bin" / "python"
        source = () if wheels is None else ("--no-index", "--find-links", str(wheels))
        install = (str(python), "-m", "pip", "install", "--quiet", *source, str(REPOSITORY))
        subprocess.run(install, check=True)
        command = (str(python), "-m", "tests.gpu", *sys.argv[1:])
        path = os.pathsep.join([str(python.parent), os.environ.get("PATH", "")])
        return subprocess.run(
            command, cwd=REPOSITORY, env={**os.environ, "PATH": path}, check=False
        ).returncode


if __name__ == "__main__":
    sys.exit(main())
