"""The tests' tree is the source's tree again: each module has its own test file."""

from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SOURCE = ROOT / "agent" / "gpu_agent"
TESTS = ROOT / "tests"
OUTSIDE_THE_MIRROR = {"e2e", "simulation", "system", "packaging", "gpu", "scenarios", "golden", "nvml_fake"}

MODULES = sorted(
    path.relative_to(SOURCE)
    for path in SOURCE.rglob("*.py")
    if path.name not in ("__init__.py", "version.py")
)
TEST_FILES = sorted(
    path.relative_to(TESTS)
    for path in TESTS.rglob("test_*.py")
    if path.parent != TESTS and path.relative_to(TESTS).parts[0] not in OUTSIDE_THE_MIRROR
)
WITHOUT_BEHAVIOUR = {
    "session/types.py",
    "node/snapshot.py",
    "registry/events.py",
    "registry/actions.py",
    "registry/node.py",
    "registry/job.py",
    "registry/settings.py",
    "registry/dispatch/refusals.py",
    "server/node_connection.py",
    "server/limits.py",
    "server/service.py",
    "server/views.py",
    "store/base.py",
}
"""Grammar only: dataclasses that the machines' tests exercise."""


@pytest.mark.parametrize("module", MODULES, ids=str)
def test_each_module_has_its_own_test_file(module: Path) -> None:
    if module.as_posix() in WITHOUT_BEHAVIOUR:
        return
    assert (TESTS / module.parent / f"test_{module.name}").exists()


@pytest.mark.parametrize("test_file", TEST_FILES, ids=str)
def test_each_test_file_belongs_to_a_module(test_file: Path) -> None:
    """Where one file would be too long, a second one says after `__` what it tests of the module."""
    name = test_file.stem.removeprefix("test_")
    modules = {name, name.rpartition("__")[0]}
    assert any((SOURCE / test_file.parent / f"{module}.py").exists() for module in modules)


def test_no_module_has_two_subjects() -> None:
    long = [path for path in SOURCE.rglob("*.py") if len(path.read_text().splitlines()) > 300]
    assert long == []
