import threading
from pathlib import Path

from gpu_agent.probe.models.directory import ModelFolders
from gpu_agent.probe.models.scanner import SourceState
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
