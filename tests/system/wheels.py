"""This project's wheel and those that it needs, in one folder, for a machine that cannot reach an index."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
PYTHON_OF = {"bookworm": "3.11", "trixie": "3.13"}


def collect(into: Path, *, suite: str) -> Path:
    """Build our wheel, fetch the others for that release's Python; gives the folder back."""
    pip = [sys.executable, "-m", "pip", "--quiet"]
    subprocess.run([*pip, "wheel", "--no-deps", "--wheel-dir", str(into), str(ROOT)], check=True, timeout=120)
    ours = next(into.glob("gpu_agent-*.whl"))
    subprocess.run(
        [
            *(*pip, "download", "--dest", str(into), "--only-binary=:all:"),
            *("--python-version", PYTHON_OF[suite], f"{ours}[registry]"),
        ],
        check=True,
        timeout=300,
    )
    return into
