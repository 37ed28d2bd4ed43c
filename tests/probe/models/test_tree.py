import os
from pathlib import Path

import pytest

from gpu_agent.probe.models import tree as tree_module
from gpu_agent.probe.models.tree import MAX_DEPTH, Refused, Tree, below, mark_of, open_root, readable, reason


def names(tree: Tree, folder: Path) -> dict[str, str | None]:
    return {found.name: found.problem for found in tree.files(str(folder))}


def test_files_are_found_at_any_depth_with_their_sizes(tmp_path: Path) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "b" / "deep").write_bytes(b"123")
    (tmp_path / "top").write_bytes(b"1")
    (tmp_path / ".git").mkdir()
    (tmp_path / ".git" / "hidden").write_bytes(b"1")
    found = Tree(open_root(tmp_path)).files(str(tmp_path))
    assert {file.name: file.size for file in found} == {"a/b/deep": 3, "top": 1}


def test_each_kind_of_bad_link_has_its_own_reason(tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    (tmp_path / "outside").write_text("x")
    (root / "inside").write_text("x")
    (root / "chain").symlink_to("good")
    (root / "good").symlink_to("inside")
    (root / "loop").symlink_to("loop")
    (root / "gone").symlink_to("nothing")
    (root / "out").symlink_to("../outside")
    (root / "folder").symlink_to("..")
    problems = names(Tree(open_root(root)), root)
    assert problems["inside"] is problems["good"] is problems["chain"] is None
    assert problems["gone"] == "its link leads nowhere"
    assert problems["loop"] == "it is not a regular file"
    assert "leaves the cache" in str(problems["out"])
    assert "leaves the cache" in str(problems["folder"])


def test_a_folder_that_is_a_link_is_refused(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    with pytest.raises(Refused, match="it is a link"):
        Tree(open_root(tmp_path)).folder(str(tmp_path / "link"))


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs a second file system to look at")
def test_another_file_system_is_refused() -> None:
    with pytest.raises(Refused, match="another file system"):
        Tree(open_root(Path("/"))).folder("/proc")


def test_depth_and_number_of_entries_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    deep = tmp_path.joinpath(*["d"] * (MAX_DEPTH + 1))
    deep.mkdir(parents=True)
    with pytest.raises(Refused, match="deep"):
        list(Tree(open_root(tmp_path)).files(str(tmp_path)))
    monkeypatch.setattr(tree_module, "MAX_ENTRIES", 2)
    for name in "abc":
        (deep / name).touch()
    with pytest.raises(Refused, match="more than 2 entries"):
        Tree(open_root(tmp_path)).folder(str(deep))


def test_a_head_is_no_longer_than_asked_and_only_of_regular_files(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"0123456789")
    os.mkfifo(tmp_path / "pipe")
    tree = Tree(open_root(tmp_path))
    assert tree.head(str(tmp_path / "file"), 4) == b"0123"
    with pytest.raises(Refused, match="regular"):
        tree.head(str(tmp_path / "pipe"), 4)


def test_what_was_read_is_watched_and_what_failed_is_looked_at_again(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    tree = Tree(open_root(tmp_path), watch_files=True)
    list(tree.files(str(tmp_path)))
    with pytest.raises(NotADirectoryError):
        tree.folder(str(tmp_path / "file"))
    assert tree.watched == {str(tmp_path): mark_of(tmp_path.stat()), str(tmp_path / "file"): None}


def test_a_root_follows_its_own_links_and_must_be_a_folder(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    (tmp_path / "file").touch()
    assert open_root(tmp_path / "link").path == str((tmp_path / "real").resolve())
    with pytest.raises(NotADirectoryError):
        open_root(tmp_path / "file")
    with pytest.raises(FileNotFoundError):
        open_root(tmp_path / "none")


def test_reasons_and_names_hold_nothing_that_must_not_leave(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as caught:
        (tmp_path / "none").stat()
    assert reason(caught.value) == "no such file or directory"
    assert readable("a\n\udcffé") == "a\ufffd\ufffdé"
    assert below("/a", "b", "c") == str(Path("/a", "b", "c"))
