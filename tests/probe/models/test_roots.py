import os
from collections.abc import Iterator
from pathlib import Path

from gpu_agent.probe.models.roots import entries_of, list_units
from gpu_agent.probe.models.source import Root, Unit
from gpu_agent.probe.models.tree import MAX_ENTRIES, open_root
from tests.probe.models.caches import open_folder, unprivileged


def every_entry(root: Root) -> Iterator[Unit]:
    for entry in entries_of(root).shown:
        yield Unit(root, entry.path, entry.name)


def all_and_check(root: Root) -> Iterator[Unit]:
    yield from every_entry(root)
    entries_of(root).check()


def test_a_root_named_twice_also_through_a_link_is_listed_once(tmp_path: Path) -> None:
    (tmp_path / "real" / "unit").mkdir(parents=True)
    (tmp_path / "link").symlink_to("real")
    listing = list_units([tmp_path / "real", tmp_path / "link", tmp_path / "real"], every_entry)
    assert [unit.name for unit in listing.units] == ["unit"]
    assert listing.problems == {}


def test_a_root_that_is_not_there_is_no_problem_and_one_that_is_no_folder_is(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "good" / "unit").mkdir(parents=True)
    listing = list_units([tmp_path / "none", tmp_path / "file", tmp_path / "good"], every_entry)
    assert listing.problems == {str(tmp_path / "file"): "it is not a folder"}
    assert [unit.name for unit in listing.units] == ["unit"]


def test_a_root_that_may_not_be_looked_at_is_a_problem() -> None:
    with open_folder() as folder:
        closed = folder / "closed"
        closed.mkdir(mode=0)
        with unprivileged():
            problems = list_units([closed], every_entry).problems
    assert problems == {str(closed): "permission denied"}


def test_entries_are_sorted_and_shown(tmp_path: Path) -> None:
    for name in ("b", "a", ".hidden"):
        (tmp_path / name).touch()
    entries = entries_of(open_root(tmp_path))
    assert [entry.name for entry in entries.shown] == ["a", "b"]
    entries.check()


def test_of_a_hundred_thousand_entries_the_bound_is_kept_and_the_rest_is_told_of(tmp_path: Path) -> None:
    for number in range(100_000):
        os.symlink("nothing", f"{tmp_path}/{number}")  # noqa: PTH211  as many Paths would take longest
    listing = list_units([tmp_path], all_and_check)
    assert len(listing.units) == MAX_ENTRIES
    assert listing.problems == {
        str(tmp_path): "it has more than 20000 entries; the rest was not looked at",
    }
