"""What every test shares: hypothesis' profiles, limits of the process, fixtures of several folders."""

import logging
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

# Files that take a minute and more on two cores, the longest first. They begin before all others: one that
# begins last runs alone, while the other workers have nothing left.
LONG_FILES = (
    "simulation/test_seeds.py",
    "web/test_fleet_page.py",
    "system/test_three_machines.py",
    "system/test_pip_machine.py",
    "system/test_packages_recovery.py",
    "e2e/test_durability.py",
    "cli/test_demo.py",
    "e2e/test_auth.py",
    "histories/test_planted.py",
    "web/test_jobs_and_actions.py",
    "packaging/test_lint.py",
    "system/test_worker_image.py",
    "system/test_packages_upgrade.py",
    "e2e/test_alerts.py",
    "e2e/test_crashes.py",
    "e2e/test_instances.py",
    "probe/nvml/test_fault_table.py",
    "e2e/test_alerts_of_instances.py",
    "e2e/test_operating.py",
    "packaging/test_make_packages.py",
    "e2e/test_openapi_holds.py",
)

settings.register_profile("dev", max_examples=50, deadline=None)
settings.register_profile("ci", max_examples=100, deadline=None, derandomize=True)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "dev"))

os.umask(0o022)  # an ordinary user of Debian has 002: the agent refuses folders that a group may write to
if sys.platform != "win32":  # tests connect hundreds of nodes, and such a user has 1,024 files
    import resource

    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Long files first: `make test` gives files to its workers in this order (`--no-loadscope-reorder`)."""
    tests = Path(__file__).parent
    turn = {tests / name: number for number, name in enumerate(LONG_FILES)}
    items.sort(key=lambda item: turn.get(item.path, len(turn)))


@pytest.fixture(autouse=True)
def logging_restored() -> Iterator[None]:
    """Whatever the program under test configures, the next test logs as before."""
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    ours = logging.getLogger("gpu_agent").level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    logging.getLogger("gpu_agent").setLevel(ours)
