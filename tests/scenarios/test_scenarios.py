"""Plays every transcript again; `pytest tests/scenarios --record` records them."""

import re
from pathlib import Path

import pytest

from tests.scenarios.script import Scenario, UnknownDirectionError

SCENARIOS = sorted(Path(__file__).parent.glob("*.txt"))


@pytest.fixture(params=SCENARIOS, ids=lambda path: path.stem)
def file(request: pytest.FixtureRequest) -> Path:
    path = request.param
    assert isinstance(path, Path)
    return path


def _scenario(file: Path) -> Scenario:
    return Scenario(tuple(file.read_text(encoding="utf-8").splitlines()))


def test_scenario(file: Path, pytestconfig: pytest.Config) -> None:
    played = _scenario(file).played()
    if pytestconfig.getoption("--record", default=False):
        file.write_text(played, encoding="utf-8")
    assert played == file.read_text(encoding="utf-8"), "record it again, then review it as prose"


def test_file_is_named_by_its_claim(file: Path) -> None:
    claim = re.sub(r"([A-Z])-(\d+)", r"\1\2", _scenario(file).claim).lower()
    assert file.stem == "_".join(re.findall(r"[a-z0-9]+", claim))


def test_there_are_scenarios() -> None:
    assert len(SCENARIOS) >= 14


def test_an_unknown_direction_is_refused() -> None:
    with pytest.raises(UnknownDirectionError, match="exit, pursued by a bear"):
        Scenario(("# A claim", "> exit, pursued by a bear")).played()
