"""What the tests on booted machines share: the roots, or the reason why there are none."""

from pathlib import Path

import pytest

from tests.system.roots import SUITES, NoRootError, debian, why_not


@pytest.fixture(scope="module", params=SUITES)
def suite(request: pytest.FixtureRequest) -> str:
    """The release under test."""
    return str(request.param)


@pytest.fixture(scope="module")
def root(suite: str) -> Path:
    """A pristine root of that release; whoever changes it works on a copy."""
    obstacle = why_not()
    if obstacle is not None:
        pytest.skip(obstacle)
    try:
        return debian(suite)
    except NoRootError as error:
        pytest.skip(str(error))
