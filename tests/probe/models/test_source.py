"""What the catalogue relies on holds for every source."""

from pathlib import Path

import pytest

from gpu_agent.probe.models.directory import ModelFolders
from gpu_agent.probe.models.huggingface import HubCache
from gpu_agent.probe.models.source import ModelSource, Root, Unit
from tests.probe.models.caches import repository, revision, whisper_files

SOURCES = pytest.mark.parametrize("kind", [HubCache, ModelFolders], ids=lambda kind: kind.name)


@SOURCES
def test_a_reading_watches_what_it_read_and_two_of_them_are_alike(
    tmp_path: Path, kind: type[HubCache | ModelFolders]
) -> None:
    repository(tmp_path, "a/b").snapshot(revision(1), whisper_files())
    source: ModelSource = kind([tmp_path])
    for unit in source.units().units:
        reading = source.read(unit)
        assert any(path.startswith(unit.path) for path in reading.watched)
        assert reading == source.read(unit)
        assert {model.source for model in reading.models} <= {source.name}


@SOURCES
def test_a_unit_that_went_away_holds_no_models_and_is_no_problem(
    tmp_path: Path, kind: type[HubCache | ModelFolders]
) -> None:
    gone = Unit(Root(str(tmp_path), tmp_path.stat().st_dev), str(tmp_path / "models--a--b"), "models--a--b")
    reading = kind([tmp_path]).read(gone)
    assert (reading.models, reading.problems) == ((), {})
