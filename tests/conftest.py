"""What every test shares: hypothesis' profiles, limits of the process, fixtures of several folders."""

import logging
import os
import sys
from collections.abc import Iterator

import pytest
from hypothesis import settings

settings.register_profile("dev", max_examples=50, deadline=None)
settings.register_profile("ci", max_examples=200, deadline=None, derandomize=True)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "dev"))

os.umask(0o022)  # an ordinary user of Debian has 002: the agent refuses folders that a group may write to
if sys.platform != "win32":  # tests connect hundreds of nodes, and such a user has 1,024 files
    import resource

    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


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
