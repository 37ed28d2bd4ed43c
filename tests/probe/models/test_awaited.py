import subprocess
import sys
from pathlib import Path

import pytest

from gpu_agent.probe.models import directory, huggingface, ollama
from gpu_agent.probe.models.awaited import Awaited
from gpu_agent.probe.models.source import Listing

HUB = "huggingface:HubCache"


def awaited(*roots: Path) -> Awaited:
    return Awaited("huggingface", HUB, roots, cross_file_systems=False)


def repository(cache: Path) -> None:
    snapshot = cache / "models--org--name" / "snapshots" / ("a" * 40)
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text("{}")


def test_a_place_that_is_not_there_holds_nothing_and_loads_nothing(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from gpu_agent.probe.options import ProbeOptions, sources_of\n"
        f"sources = sources_of(ProbeOptions(ollama_roots=()), environ={{}}, home=Path({str(tmp_path)!r}))\n"
        "assert sources.catalogue.scan(1.0).models == ()\n"
        "sys.exit('gpu_agent.probe.models.huggingface' in sys.modules)\n"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=30, check=False).returncode == 0
    assert awaited(tmp_path / "nowhere", tmp_path / "x" / "y").units() == Listing()


def test_a_place_that_comes_is_read(tmp_path: Path) -> None:
    source = awaited(tmp_path / "hub")
    assert source.units() == Listing()
    repository(tmp_path / "hub")
    (unit,) = source.units().units
    assert [model.model_id for model in source.read(unit).models] == ["org/name"]


def test_a_place_that_goes_again_holds_nothing(tmp_path: Path) -> None:
    source = awaited(tmp_path / "hub")
    repository(tmp_path / "hub")
    assert len(source.units().units) == 1
    (tmp_path / "hub").rename(tmp_path / "gone")
    assert source.units() == Listing()


def test_a_place_that_cannot_be_looked_at_is_a_problem_and_not_absent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    source = awaited(tmp_path / "hub")
    with monkeypatch.context() as refusing:
        refusing.setattr("os.lstat", refuse)
        refusing.setattr("os.stat", refuse)
        assert list(source.units().problems) == [str(tmp_path / "hub")]


@pytest.mark.parametrize(
    ("kind", "made", "name"),
    [
        (HUB, huggingface.HubCache, huggingface.SOURCE),
        ("ollama:OllamaStore", ollama.OllamaStore, ollama.SOURCE),
        ("directory:ModelFolders", directory.ModelFolders, directory.ModelFolders.name),
    ],
)
def test_each_kind_is_the_one_that_it_stands_for(kind: str, made: type, name: str, tmp_path: Path) -> None:
    source = Awaited(name, kind, [tmp_path], cross_file_systems=True)
    source.units()
    loaded = source._source
    assert loaded is not None
    assert type(loaded) is made
    assert (loaded.name, source.name) == (name, name)
