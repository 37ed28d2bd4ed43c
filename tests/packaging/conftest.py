"""The packages that these tests look at, built once for all of them."""

import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.system.packages import built


@pytest.fixture(scope="session")
def packages() -> Path:
    """The folder with the packages of this checkout."""
    if not sys.platform.startswith("linux"):
        pytest.skip("packages are built on Linux only")
    if shutil.which("make") is None:
        pytest.skip("no make here, which builds the packages: apt-get install -y make")
    return built()


@pytest.fixture(scope="session")
def need() -> Callable[[str, str], None]:
    """Skips a test, and says so, where a program is missing that Debian has in some package."""

    def needed(program: str, package: str) -> None:
        if shutil.which(program) is None:
            pytest.skip(f"no {program} here: apt-get install -y {package}")

    return needed
