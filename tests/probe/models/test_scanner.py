import os
import shutil
import subprocess
import sys
import textwrap
import time
from itertools import count
from pathlib import Path

import pytest

from gpu_agent.probe.models import declared
from gpu_agent.probe.models.declared import ModelDeclaration
from gpu_agent.probe.models.directory import ModelFolders
from gpu_agent.probe.models.huggingface import HubCache
from gpu_agent.probe.models.scanner import UNREADABLE, ModelScanner, Scan, mark_unreadable
from gpu_agent.probe.models.source import Listing, Reading, Root, Unit
from gpu_agent.probe.models.source_state import merge_models
from gpu_agent.wire.inventory import Model, ModelStatus
from tests.probe.models.caches import repository, revision, settle, whisper_files


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class SlowSource:
    """A source each of whose units costs one second of a clock that the test moves."""

    name = "slow"
    paths = ()

    def __init__(self, clock: Clock, count: int) -> None:
        self.clock = clock
        self.names = [f"u{number}" for number in range(count)]
        self.read_names: list[str] = []
        self.version = "1"

    def units(self) -> Listing:
        return Listing(tuple(Unit(Root("/slow", 0), f"/slow/{name}", name) for name in self.names))

    def read(self, unit: Unit) -> Reading:
        self.clock.now += 1
        self.read_names.append(unit.name)
        return Reading((Model(model_id=unit.name, version=self.version),))


class CountingHub(HubCache):
    """A hub cache that notes which of its repositories were read."""

    def __init__(self, hub: Path) -> None:
        super().__init__([hub])
        self.read_names: list[str] = []

    def read(self, unit: Unit) -> Reading:
        self.read_names.append(unit.name)
        return super().read(unit)


def statuses(scan: Scan) -> dict[str, ModelStatus]:
    return {model.model_id: model.status for model in scan.models}


def test_a_scan_ends_with_its_budget_and_the_next_begins_where_it_ended() -> None:
    clock = Clock()
    source = SlowSource(clock, 5)
    scanner = ModelScanner([source], monotonic=clock)
    first = scanner.scan(2)
    assert (source.read_names, first.complete) == (["u0", "u1"], False)
    assert scanner.scan(2).complete is False
    assert source.read_names[2:] == ["u2", "u3"]
    source.read_names.clear()
    last = scanner.scan(10)
    assert source.read_names[0] == "u4"
    assert last.complete is True
    assert [model.model_id for model in last.models] == source.names


def test_what_a_scan_does_not_reach_keeps_its_last_known_state() -> None:
    clock = Clock()
    source = SlowSource(clock, 3)
    scanner = ModelScanner([source], monotonic=clock)
    scanner.scan(10)
    source.version = "2"
    assert [model.version for model in scanner.scan(1).models] == ["2", "1", "1"]
    assert [model.version for model in scanner.scan(1).models] == ["2", "2", "1"]
    assert [model.version for model in scanner.scan(1).models] == ["2", "2", "2"]


def test_every_scan_gets_on_even_without_a_budget() -> None:
    clock = Clock()
    scanner = ModelScanner([SlowSource(clock, 3)], monotonic=clock)
    assert [len(scanner.scan(0).models) for _ in range(3)] == [1, 2, 3]


def test_an_unchanged_cache_is_not_read_again_and_a_changed_repository_is(tmp_path: Path) -> None:
    made = [repository(tmp_path, f"a/m{number}") for number in range(3)]
    for each in made:
        each.snapshot(revision(1), whisper_files())
    settle(tmp_path)
    source = CountingHub(tmp_path)
    scanner = ModelScanner([source])
    scanner.scan()
    source.read_names.clear()
    assert set(statuses(scanner.scan()).values()) == {ModelStatus.READY}
    assert source.read_names == []
    next((made[1].path / "blobs").iterdir()).unlink()
    assert statuses(scanner.scan())["a/m1"] is ModelStatus.ERROR
    assert source.read_names == ["models--a--m1"]


def test_each_part_of_a_repository_that_changes_makes_it_read_again(tmp_path: Path) -> None:
    made = repository(tmp_path, "a/b")
    made.snapshot(revision(1), whisper_files())
    made.snapshot(revision(2), whisper_files(), ref=None)
    scanner = ModelScanner([HubCache([tmp_path])])

    changes = count()

    def versions() -> dict[str, ModelStatus]:
        settle(tmp_path, seconds_later=next(changes))
        return {model.version[:2]: model.status for model in scanner.scan().models}

    whole = {"01": ModelStatus.READY, "02": ModelStatus.READY}
    assert versions() == whole
    made.ref("main", revision(3))  # in place, as the hub does
    assert versions() == {**whole, "03": ModelStatus.ERROR}
    made.ref("main", revision(2))
    assert versions() == whole
    (made.path / "refs" / "pr").mkdir()
    made.ref("pr/1", revision(4))
    assert versions() == {**whole, "04": ModelStatus.ERROR}
    shutil.rmtree(made.path / "refs")
    assert versions() == whole
    shutil.rmtree(made.path / "snapshots" / revision(1))
    assert versions() == {"02": ModelStatus.READY}
    (made.path / "snapshots" / revision(2) / "config.json").unlink()
    (made.path / "snapshots" / revision(2) / "config.json").symlink_to("../../blobs/none")
    assert versions() == {"02": ModelStatus.ERROR}
    shutil.rmtree(made.path / "snapshots")
    assert versions() == {}


def test_a_repository_that_moves_away_and_leaves_a_link_is_in_error(tmp_path: Path) -> None:
    hub = tmp_path / "hub"
    made = repository(hub, "a/b")
    made.snapshot(revision(1), whisper_files())
    settle(tmp_path)
    scanner = ModelScanner([HubCache([hub])])
    assert statuses(scanner.scan()) == {"a/b": ModelStatus.READY}
    made.path.rename(tmp_path / "elsewhere")
    made.path.symlink_to(tmp_path / "elsewhere")
    (model,) = scanner.scan().models
    assert (model.status, model.detail) == (
        ModelStatus.ERROR,
        "it is a link; add the folder it leads to as a root of its own",
    )
    made.path.unlink()
    (tmp_path / "elsewhere").rename(made.path)
    assert statuses(scanner.scan()) == {"a/b": ModelStatus.READY}


def test_the_watched_paths_are_the_roots_the_units_and_their_parents(tmp_path: Path) -> None:
    made = repository(tmp_path / "hub", "a/b")
    snapshot = made.snapshot(revision(1), whisper_files())
    (tmp_path / "plain" / "deep" / "er").mkdir(parents=True)
    (tmp_path / "plain" / "deep" / "er" / "m.gguf").touch()
    roots = tmp_path / "hub", tmp_path / "plain", tmp_path / "none"
    scanner = ModelScanner([HubCache(roots[:1]), ModelFolders(roots[1:])])
    scanner.scan()
    paths = [path for state in scanner.states for path in state.watched_paths]
    folders = {path for path in paths if os.path.isdir(path)}  # noqa: PTH112  as they are reported
    hub = {roots[0], made.path, made.path / "blobs", made.path / "refs", snapshot.parent, snapshot}
    plain = {roots[1], roots[1] / "deep", roots[1] / "deep" / "er"}
    assert folders == {str(path) for path in hub | plain}


def test_the_watched_paths_are_the_same_object_until_other_places_are_watched(tmp_path: Path) -> None:
    made = repository(tmp_path, "a/b")
    made.snapshot(revision(1), whisper_files())
    scanner = ModelScanner([HubCache([tmp_path])])
    (state,) = scanner.states
    scanner.scan()
    paths = state.watched_paths
    scanner.scan()
    assert state.watched_paths is paths
    made.incomplete()
    scanner.scan()
    assert state.watched_paths is paths, "the same folders, one of which changed"
    made.ref("other", revision(1))
    scanner.scan()
    assert state.watched_paths is not paths


def test_a_unit_that_may_have_changed_within_one_time_stamp_is_read_again(tmp_path: Path) -> None:
    repository(tmp_path, "a/b").snapshot(revision(1), whisper_files())
    source = CountingHub(tmp_path)
    scanner = ModelScanner([source])
    scanner.scan()
    scanner.scan()
    assert source.read_names == ["models--a--b"] * 2
    later = time.time_ns() + 10_000_000_000
    patient = ModelScanner([source], wall_ns=lambda: later)
    source.read_names.clear()
    patient.scan()
    patient.scan()
    assert source.read_names == ["models--a--b"]


def test_each_step_of_a_download_shows_in_the_next_scan(tmp_path: Path) -> None:
    scanner = ModelScanner([HubCache([tmp_path])])
    assert statuses(scanner.scan()) == {}
    made = repository(tmp_path, "a/b")
    made.ref("main", revision(1))
    component = made.incomplete()
    assert statuses(scanner.scan()) == {"a/b": ModelStatus.DOWNLOADING}
    component.unlink()
    made.snapshot(revision(1), whisper_files())
    assert statuses(scanner.scan()) == {"a/b": ModelStatus.READY}
    shutil.rmtree(made.path)
    assert statuses(scanner.scan()) == {}


def test_a_file_that_grows_in_place_is_measured_again(tmp_path: Path) -> None:
    weights = tmp_path / "m" / "m.gguf"
    weights.parent.mkdir()
    weights.write_bytes(b"1")
    settle(tmp_path)
    scanner = ModelScanner([ModelFolders([tmp_path])])
    assert scanner.scan().models[0].size_bytes == 1
    with weights.open("ab") as file:
        file.write(b"23")
    assert scanner.scan().models[0].size_bytes == 3


def test_a_model_found_twice_counts_once_and_the_ready_one_wins(tmp_path: Path) -> None:
    broken = repository(tmp_path / "one", "a/b").snapshot(revision(1), whisper_files())
    (broken / "model.safetensors").resolve().unlink()
    repository(tmp_path / "two", "a/b").snapshot(revision(1), whisper_files())
    scan = ModelScanner([HubCache([tmp_path / "one", tmp_path / "two"])]).scan()
    assert statuses(scan) == {"a/b": ModelStatus.READY}
    assert len(scan.models) == 1


def test_a_declaration_overrides_what_is_found(tmp_path: Path) -> None:
    repository(tmp_path, "a/b").snapshot(revision(1), whisper_files())
    repository(tmp_path, "c/d").snapshot(revision(1), whisper_files())
    declarations = [
        ModelDeclaration(model_id="a/b", hidden=True),
        ModelDeclaration(model_id="c/d", kind="vad"),
    ]
    (model,) = ModelScanner([HubCache([tmp_path])], declarations).scan().models
    assert (model.model_id, model.kind, model.source) == ("c/d", "vad", "declared")


def test_problems_of_roots_and_folders_come_with_the_scan(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "link").symlink_to("/")
    scan = ModelScanner([ModelFolders([tmp_path / "file", tmp_path / "root"])]).scan()
    assert set(scan.problems) == {str(tmp_path / "file"), "link"}


WRITER = """
    import os, shutil, sys
    from pathlib import Path
    sys.path[:0] = sys.argv[2:]
    from tests.probe.models.caches import repository, revision, whisper_files
    hub = Path(sys.argv[1])
    print("ready", flush=True)
    for number in range(60):
        made = repository(hub, f"a/m{number % 3}")
        made.ref("main", revision(number))
        half = made.incomplete()
        made.snapshot(revision(number), whisper_files())
        os.rename(half, made.path / "blobs" / "whole")
        shutil.rmtree(made.path)
"""


def test_a_writer_at_work_never_makes_a_scan_raise(tmp_path: Path) -> None:
    scanner = ModelScanner([HubCache([tmp_path]), ModelFolders([tmp_path])])
    command = [sys.executable, "-c", textwrap.dedent(WRITER), str(tmp_path), *sys.path]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as writer:
        assert writer.stdout
        assert writer.stdout.readline() == b"ready\n"
        scans = 0
        while writer.poll() is None:
            scanner.scan()
            scans += 1
    assert writer.returncode == 0
    assert scans > 0
    assert scanner.scan().models == ()
    assert os.listdir(tmp_path) == []  # noqa: PTH208  nothing was left behind


BROKEN = Model(model_id="a", version="1", status=ModelStatus.ERROR, source="one")
WHOLE = Model(model_id="a", version="1", source="two")
OTHER = Model(model_id="a", version="2", source="two")


def test_of_a_model_found_twice_the_one_that_can_serve_counts_and_versions_are_apart() -> None:
    assert list(merge_models([[BROKEN], [WHOLE, OTHER]]).values()) == [WHOLE, OTHER]


def test_where_both_are_alike_the_first_counts() -> None:
    again = Model(model_id="a", version="1", source="three")
    assert list(merge_models([[WHOLE], [again]]).values()) == [WHOLE]


@pytest.mark.parametrize("status", [ModelStatus.READY, ModelStatus.DOWNLOADING])
def test_a_found_model_is_in_error_with_the_reason(status: ModelStatus) -> None:
    model = Model(model_id="a/b", version="1", source="ollama", status=status, size_bytes=7)
    (marked,) = mark_unreadable([model])
    assert (marked.status, marked.detail, marked.size_bytes) == (ModelStatus.ERROR, UNREADABLE, 7)


@pytest.mark.parametrize(
    "model",
    [
        Model(model_id="a/b", version="1", source=declared.SOURCE),
        Model(model_id="a/b", version="1", source="ollama", status=ModelStatus.ERROR, detail="a part lacks"),
        Model(model_id="a/b", version="1", source="ollama", status=ModelStatus.NOT_INSTALLED),
    ],
    ids=["declared", "in error", "not installed"],
)
def test_what_is_declared_and_what_could_not_serve_stays(model: Model) -> None:
    assert mark_unreadable([model]) == (model,)
