import os
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from gpu_agent.probe.models.directory import ModelFolders
from gpu_agent.probe.models.files import MAX_DEPTH, open_root
from gpu_agent.probe.models.inotify import InotifyWatcher
from gpu_agent.probe.models.ollama import OllamaStore
from gpu_agent.probe.models.source import ModelSource
from gpu_agent.probe.models.source_state import LOOK_EVERY_SECONDS, SourceState
from tests.probe.models.caches import GGUF
from tests.probe.models.random_trees import in_ten_seconds
from tests.probe.models.stuck_source import StuckSource
from tests.waiting import patience


def look(
    state: SourceState, claims: dict[tuple[str, str], SourceState] | None = None, *, scan: float = 1
) -> None:
    with state.acquire() as mine:
        assert mine
        state.list_units({} if claims is None else claims)
        state.read(scan, lambda: True)


def test_the_last_contents_are_known_while_a_thread_reads() -> None:
    state = SourceState(StuckSource("/held"))
    look(state)
    with state.acquire():
        assert state.busy
        assert list(state.contents.models) == [("found", "1")]
    assert not state.busy


def test_a_source_is_read_by_one_thread_at_a_time_and_no_other_waits() -> None:
    state = SourceState(StuckSource("/held"))
    others: list[bool] = []

    def other() -> None:
        with state.acquire() as mine:
            others.append(mine)

    with state.acquire() as mine:
        assert mine
        thread = threading.Thread(target=other)
        thread.start()
        thread.join(patience(10))
    assert others == [False]
    look(state)


def test_a_read_that_ends_early_is_incomplete_and_the_next_begins_there() -> None:
    source = StuckSource("/held", "a", "b", "c")
    state = SourceState(source)
    more = iter((True, False))
    state.list_units({})
    state.read(1, lambda: next(more))
    assert (list(state.contents.models), state.contents.complete, state.scanned_since) == (
        [("a", "1")],
        False,
        0,
    )
    look(state, scan=2)
    assert source.read_names == ["a", "b", "c", "a"]
    assert (state.contents.complete, state.scanned_since) == (True, 2)


def test_what_was_found_is_the_same_object_until_it_changes(tmp_path: Path) -> None:
    (tmp_path / "a.gguf").touch()
    state = SourceState(ModelFolders([tmp_path]))
    look(state)
    found = state.contents.models
    look(state)
    assert state.contents.models is found
    (tmp_path / "b.gguf").touch()
    look(state)
    assert {model_id for model_id, _ in state.contents.models} == {"a", "b"}


def test_a_root_of_two_sources_is_read_by_one_of_them(
    tmp_path: Path,
) -> None:
    real, link = tmp_path / "real", tmp_path / "link"
    real.mkdir()
    (real / "a.gguf").touch()
    link.symlink_to(real)
    by_link, by_path = SourceState(ModelFolders([link])), SourceState(ModelFolders([real]))
    claims: dict[tuple[str, str], SourceState] = {}
    look(by_link, claims)
    look(by_path, claims)
    assert (len(by_link.contents.models), len(by_path.contents.models)) == (1, 0)
    assert (len(by_link.watched_paths) > 0, len(by_path.watched_paths)) == (True, 0)
    link.unlink()
    look(by_link, claims)
    look(by_path, claims)
    assert (len(by_link.contents.models), len(by_path.contents.models)) == (0, 1)


def test_a_root_that_one_source_hangs_on_is_taken_over_by_another(tmp_path: Path) -> None:
    (tmp_path / "a.gguf").touch()
    one, other = SourceState(ModelFolders([tmp_path])), SourceState(ModelFolders([tmp_path]))
    claims: dict[tuple[str, str], SourceState] = {}
    look(one, claims)
    with one.acquire():
        look(other, claims)
    assert len(other.contents.models) == 1


def test_the_space_on_its_disk_is_known_or_has_a_reason(tmp_path: Path) -> None:
    state = SourceState(ModelFolders([tmp_path, tmp_path / ("x" * 5000)]))
    look(state)
    assert [room.disk.path for room in state.contents.disks] == [str(tmp_path)]
    assert list(state.contents.disk_unknowns) == ["x" * 5000]


def test_a_root_that_was_taken_over_is_given_up_by_neither_until_the_other_holds_all_of_it(
    tmp_path: Path,
) -> None:
    for name in "abc":
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.gguf").touch()
    one, other = SourceState(ModelFolders([tmp_path])), SourceState(ModelFolders([tmp_path]))
    claims: dict[tuple[str, str], SourceState] = {}
    look(one, claims)
    with one.acquire():
        other.list_units(claims)
        other.read(2, lambda: False)
    one.list_units(claims)
    one.read(3, lambda: False)
    look(other, claims, scan=3)
    assert (len(one.contents.models), len(other.contents.models)) == (3, 3)
    look(one, claims, scan=4)
    look(other, claims, scan=4)
    assert (len(one.contents.models), len(other.contents.models)) == (3, 0)


class Machine:
    """A source whose folders the kernel watches, as the agent has it."""

    def __init__(self, source: ModelSource, *, wall_ns: Callable[[], int] = time.time_ns) -> None:
        watcher = InotifyWatcher.open()
        assert watcher is not None
        self.watcher = watcher
        self.state = SourceState(source, wall_ns=wall_ns)
        self.state.quiet_since = watcher.quiet_since
        self.claims: dict[tuple[str, str], SourceState] = {}

    def look(self) -> set[str]:
        """Look, and watch what was found; the models."""
        self.watcher.drain()
        look(self.state, self.claims)
        self.watcher.follow(self.state.watched_paths)
        return {model_id for model_id, _ in self.state.contents.models}

    def rests(self) -> bool:
        """Whether another look reads nothing from the disk but what holds its roots."""
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(os, "scandir", _refuse)
            patch.setattr(os, "lstat", _refuse)
            try:
                look(self.state, self.claims)
            except _DiskReadError:
                return False
        return True


class _DiskReadError(Exception):
    pass


def _refuse(*_: object, **__: object) -> None:
    raise _DiskReadError


@pytest.fixture
def cache() -> Iterator[Path]:
    """A folder on a file system that this machine alone changes, which pytest's own may not be."""
    if InotifyWatcher.open() is None:
        pytest.skip("only Linux has inotify")
    shared_memory = Path("/dev/shm")  # noqa: S108  a folder of its own is made in it
    with tempfile.TemporaryDirectory(dir=shared_memory if shared_memory.is_dir() else None) as folder:
        if not open_root(Path(folder)).local:
            pytest.skip("no local file system is known here")
        yield Path(folder)


CHANGES: dict[str, Callable[[Path], object]] = {
    "a model comes": lambda root: (root / "new.gguf").write_bytes(GGUF),
    "a model comes in a folder": lambda root: shutil.copytree(root / "m", root / "other"),
    "a model goes": lambda root: shutil.rmtree(root / "m"),
    "a file is written in place": lambda root: (root / "m" / "a.gguf").write_bytes(GGUF + b"more"),
    "a file moves away": lambda root: (root / "m" / "a.gguf").rename(root.parent / "elsewhere.gguf"),
    "a file becomes a folder": lambda root: _in_place_of(root / "m" / "a.gguf", Path.mkdir),
    "a file of a model becomes a folder": lambda root: _in_place_of(root / "m" / "notes", Path.mkdir),
    "a folder comes in the place of another": lambda root: _swapped(root / "m", root / "other"),
}


def _in_place_of(path: Path, make: Callable[[Path], object]) -> None:
    path.unlink()
    make(path)


def _swapped(one: Path, other: Path) -> None:
    shutil.copytree(one, other)
    one.rename(one.parent / ".away")
    other.rename(one)


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_watched_source_rests_until_something_changes_and_again_after_it(
    cache: Path, change: Callable[[Path], object]
) -> None:
    root = cache / "root"
    (root / "m").mkdir(parents=True)
    (root / "m" / "a.gguf").write_bytes(GGUF)
    (root / "m" / "notes").touch()
    machine = Machine(ModelFolders([root]), wall_ns=in_ten_seconds)
    machine.look()
    assert not machine.rests(), "nothing was seen to be unchanged yet"
    machine.look()
    assert machine.rests()
    change(root)
    assert not machine.rests(), "the kernel reports something"
    machine.watcher.drain()
    assert not machine.rests(), "it reported something"
    for _ in range(3):
        machine.look()
    assert machine.rests()
    deepest = max(
        (path for path in (root, *root.rglob("*")) if path.is_dir()), key=lambda path: len(str(path))
    )
    (deepest / "later").touch()
    assert not machine.rests(), "what came is watched too"


def test_what_was_found_stays_while_a_source_rests(cache: Path) -> None:
    (cache / "a.gguf").write_bytes(GGUF)
    (cache / "deep").joinpath(*"x" * MAX_DEPTH, "y").mkdir(parents=True)
    machine = Machine(ModelFolders([cache]), wall_ns=in_ten_seconds)
    assert machine.look() == {"a"}
    found = [machine.state.contents]
    for scan in range(2, 5):
        look(machine.state, machine.claims, scan=scan)
        found.append(machine.state.contents)
        assert machine.state.scanned_since == scan
    assert machine.rests()
    assert all(each.models is found[0].models and each.complete for each in found)
    assert [list(each.problems) for each in found] == [["deep" + "/x" * MAX_DEPTH]] * 4


def test_a_watched_source_is_looked_through_every_ten_minutes_even_so(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = Machine(ModelFolders([cache]), wall_ns=in_ten_seconds)
    machine.look()
    machine.look()
    assert machine.rests()
    began = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: began + LOOK_EVERY_SECONDS - 10)
    assert machine.rests()
    monkeypatch.setattr(time, "monotonic", lambda: began + LOOK_EVERY_SECONDS + 10)
    assert not machine.rests()


def test_the_first_model_in_folders_that_hold_none_is_noticed(cache: Path) -> None:
    library = cache / "manifests" / "registry.ollama.ai" / "library"
    library.mkdir(parents=True)
    machine = Machine(OllamaStore([cache]), wall_ns=in_ten_seconds)
    assert machine.look() == set()
    machine.look()
    assert machine.rests()
    (library / "llama3").mkdir()
    (library / "llama3" / "8b").write_text("{}")
    assert machine.look() == {"llama3:8b"}


def test_a_source_without_a_watcher_or_with_files_that_just_changed_never_rests(cache: Path) -> None:
    (cache / "a.gguf").write_bytes(GGUF)
    young = Machine(ModelFolders([cache]))
    unwatched = Machine(ModelFolders([cache]), wall_ns=in_ten_seconds)
    unwatched.state.quiet_since = None
    for _ in range(3):
        young.look()
        unwatched.look()
    assert not young.rests()
    assert not unwatched.rests()


def test_a_source_that_other_machines_may_change_never_rests(cache: Path) -> None:
    machine = Machine(ModelFolders([cache], cross_file_systems=True), wall_ns=in_ten_seconds)
    for _ in range(3):
        machine.look()
    assert not machine.rests(), "who knows what is mounted below it"


def test_a_source_whose_path_leads_elsewhere_is_looked_at(cache: Path) -> None:
    for name in "ab":
        (cache / name).mkdir()
        (cache / name / f"{name}.gguf").write_bytes(GGUF)
    (cache / "link").symlink_to("a")
    machine = Machine(ModelFolders([cache / "link"]), wall_ns=in_ten_seconds)
    machine.look()
    machine.look()
    assert machine.rests()
    (cache / "link").unlink()
    (cache / "link").symlink_to("b")
    assert machine.look() == {"b"}
    machine.look()
    machine.look()
    assert machine.rests()
    (cache / "a").rename(cache / "c")
    (cache / "b").rename(cache / "a")
    (cache / "c").rename(cache / "b")
    assert machine.look() == {"a"}
    machine.look()
    machine.look()
    assert machine.rests()
    (cache / "b" / "new.gguf").write_bytes(GGUF)
    assert machine.look() == {"a", "new"}


def test_a_source_that_has_a_root_of_another_one_does_not_rest(cache: Path) -> None:
    (cache / "a.gguf").write_bytes(GGUF)
    claims: dict[tuple[str, str], SourceState] = {}
    machine = Machine(ModelFolders([cache]), wall_ns=in_ten_seconds)
    for _ in range(3):
        machine.look()
    assert machine.rests()
    other = SourceState(ModelFolders([cache]))
    look(other, claims)
    look(machine.state, claims)
    assert not machine.state.contents.models
