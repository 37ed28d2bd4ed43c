"""What the scanner relies on holds for every source."""

import re
import subprocess
import sys
from configparser import ConfigParser
from pathlib import Path

import pytest

from gpu_agent.probe import models
from gpu_agent.probe.models.all_sources import SOURCES as ROWS
from gpu_agent.probe.models.directory import ModelFolders
from gpu_agent.probe.models.huggingface import HubCache
from gpu_agent.probe.models.source import (
    LARGEST_SIZE_BYTES,
    LONGEST_FIELD,
    LazySource,
    Listing,
    ModelSource,
    Root,
    Unit,
    reportable_models,
)
from gpu_agent.wire.inventory import Model
from gpu_agent.wire.messages import InstalledModel
from tests.probe.models.caches import repository as caches_repository
from tests.probe.models.caches import revision, whisper_files
from tests.waiting import patience

ROOT = Path(__file__).parents[3]
SOURCES = pytest.mark.parametrize("kind", [HubCache, ModelFolders], ids=lambda kind: kind.name)


@SOURCES
def test_a_reading_watches_what_it_read_and_two_of_them_are_alike(
    tmp_path: Path, kind: type[HubCache | ModelFolders]
) -> None:
    caches_repository(tmp_path, "a/b").snapshot(revision(1), whisper_files())
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


def lazy(*roots: Path) -> LazySource:
    return LazySource("huggingface", lambda: HubCache, roots, cross_file_systems=False)


def repository(cache: Path) -> None:
    snapshot = cache / "models--org--name" / "snapshots" / ("a" * 40)
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text("{}")


def test_a_path_that_does_not_exist_loads_no_source(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path\n"
        "from gpu_agent.probe.snapshot import ProbeOptions, open_sources\n"
        "options = ProbeOptions(model_paths={'ollama': ()})\n"
        f"sources = open_sources(options, environ={{}}, home=Path({str(tmp_path)!r}))\n"
        "assert sources.scanner.scan(1.0).models == ()\n"
        "sys.exit('gpu_agent.probe.models.huggingface' in sys.modules)\n"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=patience(30), check=False).returncode == 0
    assert lazy(tmp_path / "nowhere", tmp_path / "x" / "y").units() == Listing()


def test_a_path_that_appears_is_read(tmp_path: Path) -> None:
    source = lazy(tmp_path / "hub")
    assert source.units() == Listing()
    repository(tmp_path / "hub")
    (unit,) = source.units().units
    assert [model.model_id for model in source.read(unit).models] == ["org/name"]


def test_a_path_that_disappears_has_no_models(tmp_path: Path) -> None:
    source = lazy(tmp_path / "hub")
    repository(tmp_path / "hub")
    assert len(source.units().units) == 1
    (tmp_path / "hub").rename(tmp_path / "gone")
    assert source.units() == Listing()


def test_a_path_that_cannot_be_read_is_a_problem_and_not_absent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    source = lazy(tmp_path / "hub")
    with monkeypatch.context() as refusing:
        refusing.setattr("os.lstat", refuse)
        refusing.setattr("os.stat", refuse)
        assert list(source.units().problems) == [str(tmp_path / "hub")]


def test_each_row_has_the_name_of_the_source_that_it_loads() -> None:
    for name, row in ROWS.items():
        source = row.load()([], cross_file_systems=False)
        assert (source.name, sys.modules[type(source).__module__].SOURCE) == (name, name)


def test_each_module_of_a_source_has_a_row_and_knows_no_other_source() -> None:
    """Of all modules with a `SOURCE`; `declared` has no class, because nothing is searched for it."""
    folder = Path(models.__file__).parent
    stating = {
        path.stem for path in folder.glob("*.py") if re.search(r"^SOURCE\b", path.read_text(), re.MULTILINE)
    }
    loaded = {type(row.load()([], cross_file_systems=False)).__module__ for row in ROWS.values()}
    assert {f"{models.__name__}.{name}" for name in stating - {"declared"}} == loaded
    contracts = ConfigParser()
    contracts.read(ROOT / ".importlinter")
    apart = contracts["importlinter:contract:model-sources"]["modules"].split()
    assert {f"{models.__name__}.{name}" for name in stating} == set(apart)


LONG = "x" * (LONGEST_FIELD + 1)


@pytest.mark.parametrize(
    ("model", "word"),
    [
        (Model(model_id="", version="1"), "name"),
        (Model(model_id="//", version="1"), "name"),
        (Model(model_id=" ", version="1"), "name"),
        (Model(model_id=LONG, version="1"), "id"),
        (Model(model_id="a/b", version=LONG), "version"),
    ],
    ids=["empty", "separators", "blank", "long id", "long version"],
)
def test_a_model_that_no_message_could_carry_is_a_problem_of_its_folder(model: Model, word: str) -> None:
    good = Model(model_id="good", version="1")
    models, problems = reportable_models([model, good], "folder")
    assert models == (good,)
    assert word in problems["folder"]
    assert len(problems["folder"]) < LONGEST_FIELD


def test_remarks_that_are_too_long_are_left_out_and_the_model_stays() -> None:
    model = Model(
        model_id="m",
        version="1",
        src_lang=LONG,
        tgt_lang=LONG,
        dialect=LONG,
        revision=LONG,
        size_bytes=LARGEST_SIZE_BYTES + 1,
    )
    assert reportable_models([model], "folder") == ((Model(model_id="m", version="1"),), {})


def test_fields_at_the_bounds_fit_the_message() -> None:
    edge = "x" * LONGEST_FIELD
    model = Model(
        model_id=edge, version=edge, src_lang=edge, dialect=edge, revision=edge, size_bytes=LARGEST_SIZE_BYTES
    )
    ((reported,), _) = reportable_models([model], "folder")
    assert reported == model
    InstalledModel(
        model_id=reported.model_id,
        version=reported.version,
        src_lang=reported.src_lang,
        dialect=reported.dialect,
        revision=reported.revision,
        size_bytes=reported.size_bytes,
    )
