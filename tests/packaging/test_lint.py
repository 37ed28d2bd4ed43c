"""What the distributions' own examiners say of the packages: no error."""

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.packaging.contents import deb, rpm
from tests.system.packages import ROOT

pytestmark = pytest.mark.timeout(900)

HALVES = ("gpu-agent", "gpu-registry")


def test_lintian_finds_no_error_and_no_override_that_is_not_needed(
    packages: Path, need: Callable[[str, str], None]
) -> None:
    need("lintian", "lintian")
    words = ["lintian", "--allow-root", "--fail-on", "error", "--tag-display-limit", "0"]
    files = [deb(packages, component) for component in HALVES]
    done = subprocess.run([*words, *files], check=False, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "unused-override" not in done.stdout, done.stdout


def test_rpmlint_finds_no_error(packages: Path, need: Callable[[str, str], None]) -> None:
    need("rpmlint", "rpmlint")
    settings = ROOT / "packaging" / "rpmlint.toml"
    files = [rpm(packages, component) for component in HALVES]
    words = ["rpmlint", "--config", str(settings), *map(str, files)]
    done = subprocess.run(words, check=False, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    assert " 0 errors" in done.stdout, done.stdout
