"""What the tests on booted machines share: the roots, or the reason why there are none."""

from pathlib import Path

import pytest

from tests.system.cgroups import end_leftovers
from tests.system.roots import SUITES, NoRootError, debian, why_not


@pytest.fixture(scope="session")
def obstacle() -> str | None:
    """Why this machine boots no Debian; where it does, nothing of a killed run is left from now on."""
    found = why_not()
    if found is None:
        end_leftovers()
    return found


@pytest.fixture(scope="module", params=SUITES)
def suite(request: pytest.FixtureRequest) -> str:
    """The release under test."""
    return str(request.param)


@pytest.fixture(scope="module")
def root(suite: str, obstacle: str | None) -> Path:
    """A pristine root of that release; a test that changes it works on a copy."""
    if obstacle is not None:
        pytest.skip(obstacle)
    try:
        return debian(suite)
    except NoRootError as error:
        pytest.skip(str(error))
