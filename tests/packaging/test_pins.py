"""The versions that the packages hold are among those that pyproject.toml allows."""

import re
import tomllib
from importlib import metadata

import pytest

from tests.system.packages import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
BOUNDS = re.compile(r"([a-z0-9-]+)>=([0-9.]+),<([0-9.]+)")
PIN = re.compile(r"(?m)^([a-z0-9-]+)==([0-9.]+)")


def pinned(component: str) -> dict[str, str]:
    return dict(PIN.findall((ROOT / f"packaging/pins/{component}.txt").read_text(encoding="utf-8")))


def numbers(version: str) -> tuple[int, ...]:
    return tuple(int(number) for number in version.split("."))


@pytest.mark.parametrize(
    ("component", "wanted"),
    [("agent", PROJECT["dependencies"]), ("registry", PROJECT["optional-dependencies"]["registry"])],
)
def test_each_dependency_is_pinned_within_its_bounds(component: str, wanted: list[str]) -> None:
    pins = pinned(component)
    for dependency in wanted:
        found = BOUNDS.fullmatch(dependency.partition(";")[0])
        assert found is not None, dependency
        name, least, below = found.groups()
        assert name in pins, f"{name}: run `make pins`"
        assert numbers(least) <= numbers(pins[name]) < numbers(below), f"{name}: run `make pins`"


def needed_by(requirements: list[str]) -> set[str]:
    """Return the names of these and of all that they need, whatever the platform."""
    names, open_ends = set[str](), list(requirements)
    while open_ends:
        requirement = open_ends.pop()
        found = re.match(r"[A-Za-z0-9._-]+", requirement)
        assert found is not None, requirement
        name = re.sub(r"[._]", "-", found[0].lower())
        if name not in names and "extra ==" not in requirement:
            names.add(name)
            try:
                open_ends += metadata.requires(name) or []
            except metadata.PackageNotFoundError:
                continue  # needed on another platform
    return names


def test_nothing_is_pinned_that_no_dependency_needs() -> None:
    wanted = [*PROJECT["dependencies"], *PROJECT["optional-dependencies"]["registry"]]
    assert (pinned("agent").keys() | pinned("registry").keys()) - needed_by(wanted) == set()


def test_nothing_is_pinned_twice() -> None:
    """The registry's libraries lie beside the agent's: one name may be in one of them only."""
    assert pinned("agent").keys() & pinned("registry").keys() == set()


@pytest.mark.parametrize("component", ["agent", "registry"])
def test_each_pin_has_hashes(component: str) -> None:
    text = (ROOT / f"packaging/pins/{component}.txt").read_text(encoding="utf-8")
    for pin in re.split(r"(?m)^(?=[a-z0-9-]+==)", text)[1:]:
        assert "--hash=sha256:" in pin, pin
