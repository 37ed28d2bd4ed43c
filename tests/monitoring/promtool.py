"""What the tests of rules and of dashboards share: promtool, and the metrics that an expression names."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

PROMTOOL = shutil.which("promtool")
SUFFIXES = re.compile(r"_(?:bucket|count|sum)$")
"""What a histogram's series end in."""

needs_promtool = pytest.mark.skipif(
    PROMTOOL is None, reason="promtool is missing: apt-get install -y --no-install-recommends prometheus"
)


def promtool(*words: str | Path) -> str:
    """Run it; what it prints. Fails where it does."""
    done = subprocess.run([str(PROMTOOL), *words], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def without_labels(expr: str) -> str:
    """The expression without its labels' names and values."""
    return re.sub(r"\{[^}]*\}|\b(?:by|on) \([^)]*\)", "", expr)
