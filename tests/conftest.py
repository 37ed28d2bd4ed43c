"""What every test shares: hypothesis' profiles, and the fixtures of more than one folder."""

import logging
import os
from collections.abc import Iterator

import pytest
from hypothesis import settings

settings.register_profile("dev", max_examples=50, deadline=None)
settings.register_profile("ci", max_examples=200, deadline=None, derandomize=True)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "dev"))


@pytest.fixture
def logging_restored() -> Iterator[None]:
    """Whatever the program under test configures, the next test logs as before."""
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    ours = logging.getLogger("gpu_agent").level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    logging.getLogger("gpu_agent").setLevel(ours)
