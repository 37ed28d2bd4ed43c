import errno
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from gpu_agent.probe.models import files as tree_module
from gpu_agent.probe.models.files import (
    MAX_DEPTH,
    MAX_ENTRIES,
    FolderReader,
    OutOfBoundsError,
    file_system_at,
    join_path,
    list_root,
    list_units,
    mark_of,
    open_root,
    readable,
    reason,
)
from gpu_agent.probe.models.source import Root, Unit
from tests.probe.models.caches import open_folder, unprivileged
from tests.waiting import patience


@pytest.fixture
def mounted(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own, mounted in a folder of the root."""
    folder = tmp_path / "mounted"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    try:
        mounting = subprocess.run(command, capture_output=True, check=False)
    except FileNotFoundError:
        pytest.skip("there is no mount here")
    if mounting.returncode:
        pytest.skip(f"this test needs the right to mount: {mounting.stderr.decode().strip()}")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def names(tree: FolderReader, folder: Path) -> dict[str, str | None]:
    return {found.name: found.problem for found in tree.find_files(str(folder))}


def test_files_are_found_at_any_depth_with_their_sizes(tmp_path: Path) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "b" / "deep").write_bytes(b"123")
    (tmp_path / "top").write_bytes(b"1")
    (tmp_path / ".git").mkdir()
    (tmp_path / ".git" / "hidden").write_bytes(b"1")
    tree = FolderReader(open_root(tmp_path))
    assert {file.name: tree.size_of(file) for file in tree.find_files(str(tmp_path))} == {
        "a/b/deep": 3,
        "top": 1,
    }


def test_a_folder_that_opens_and_has_no_status_is_closed_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stale(_descriptor: int) -> os.stat_result:
        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))

    tree = FolderReader(open_root(tmp_path))
    monkeypatch.setattr(os, "fstat", stale)
    with pytest.raises(OSError, match=r"[Ss]tale"):
        tree.find_files(str(tmp_path))
    monkeypatch.undo()
    descriptors = [entry for entry in tuple(Path("/proc/self/fd").iterdir()) if entry.is_symlink()]
    assert str(tmp_path) not in {str(entry.readlink()) for entry in descriptors}


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
    problems = names(FolderReader(open_root(root)), root)
    assert problems["inside"] is problems["good"] is problems["chain"] is None
    assert problems["gone"] == "its link leads nowhere"
    assert problems["loop"] == "its link leads back to itself"
    assert "leaves the cache" in str(problems["out"])
    assert "leaves the cache" in str(problems["folder"])


def test_a_folder_that_is_a_link_is_refused(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    with pytest.raises(OutOfBoundsError, match="it is a link"):
        FolderReader(open_root(tmp_path)).list_folder(str(tmp_path / "link"))


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs a second file system to look at")
def test_another_file_system_is_refused() -> None:
    with pytest.raises(OutOfBoundsError, match="another file system"):
        FolderReader(open_root(Path("/"))).list_folder("/proc")


def test_depth_and_number_of_entries_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    deep = tmp_path.joinpath(*["d"] * (MAX_DEPTH + 1))
    deep.mkdir(parents=True)
    with pytest.raises(OutOfBoundsError, match="deep"):
        list(FolderReader(open_root(tmp_path)).find_files(str(tmp_path)))
    monkeypatch.setattr(tree_module, "MAX_ENTRIES", 2)
    for name in "abc":
        (deep / name).touch()
    with pytest.raises(OutOfBoundsError, match="more than 2 entries"):
        FolderReader(open_root(tmp_path)).list_folder(str(deep))


def test_a_head_is_no_longer_than_requested_and_only_of_regular_files(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"0123456789")
    os.mkfifo(tmp_path / "pipe")
    tree = FolderReader(open_root(tmp_path))
    assert tree.read_head(str(tmp_path / "file"), 4) == b"0123"
    with pytest.raises(OutOfBoundsError, match="regular"):
        tree.read_head(str(tmp_path / "pipe"), 4)


def test_a_file_that_became_something_else_since_it_was_listed_is_not_read(tmp_path: Path) -> None:
    tree = FolderReader(open_root(tmp_path))
    place = tmp_path / "file"
    place.write_bytes(b"0123456789")
    (found,) = tree.find_files(str(tmp_path))
    assert tree.read_start(found, 4) == (b"0123", 10)
    assert tree.read_start(found, 99) == (b"0123456789", 10)
    place.rename(tmp_path / "other")
    place.symlink_to("other")
    with pytest.raises(OSError, match="symbolic links"):
        tree.read_start(found, 4)
    place.unlink()
    place.mkdir()
    with pytest.raises(OSError, match=r"directory|Invalid argument"):  # the latter on tmpfs
        tree.read_start(found, 4)
    place.rmdir()
    os.mkfifo(place)
    with pytest.raises(OSError, match="seek"):
        tree.read_start(found, 4)


def test_what_was_read_is_watched_and_what_failed_is_read_again(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    tree = FolderReader(open_root(tmp_path), watch_files=True)
    list(tree.find_files(str(tmp_path)))
    with pytest.raises(NotADirectoryError):
        tree.list_folder(str(tmp_path / "file"))
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


def test_reasons_hold_nothing_that_must_not_leave(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as caught:
        (tmp_path / "none").stat()
    assert reason(caught.value) == "no such file or directory"


@pytest.fixture(params=[True, False], ids=["by descriptor", "by path"])
def ways(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both ways to ask: platforms that cannot ask by descriptor go the other one."""
    monkeypatch.setattr(tree_module, "_BY_DESCRIPTOR", request.param and tree_module._BY_DESCRIPTOR)


@pytest.mark.usefixtures("ways")
def test_links_into_a_shared_folder_are_what_they_are_without_it(tmp_path: Path) -> None:
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots" / "1"
    (snapshot / "deeper").mkdir(parents=True)
    blobs.mkdir()
    (blobs / "whole").write_bytes(b"123")
    (blobs / "folder").mkdir()
    (blobs / "link").symlink_to("whole")
    (blobs / "gone").symlink_to("nothing")
    os.mkfifo(blobs / "pipe")
    for name in ("whole", "folder", "link", "gone", "pipe", "none", "../blobs/whole", ".", ""):
        (snapshot / f"to {name or 'nothing'}".replace("/", " ")).symlink_to(f"../../blobs/{name}")
    (snapshot / "deeper" / "whole").symlink_to("../../../blobs/whole")
    (snapshot / "absolute").symlink_to(blobs / "whole")
    (snapshot / "shallow").symlink_to("../blobs/whole")
    root = open_root(tmp_path)
    alone, sharing = FolderReader(root), FolderReader(root)
    assert set(sharing.list_shared(str(blobs))) == {"whole", "folder", "link", "gone", "pipe"}
    found = [(*each[:2], sharing.size_of(each), each.problem) for each in sharing.find_files(str(snapshot))]
    by_itself = alone.find_files(str(snapshot))
    assert found == [(*each[:2], alone.size_of(each), each.problem) for each in by_itself]
    whole = {name for name, _, size, problem in found if (size, problem) == (3, None)}
    assert whole == {"to whole", "to link", "to .. blobs whole", "deeper/whole", "absolute"}


@pytest.mark.usefixtures("ways")
def test_a_folder_that_is_no_folder_of_this_root_is_refused_whichever_way(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to(tmp_path)
    tree = FolderReader(open_root(tmp_path))
    with pytest.raises(OutOfBoundsError, match="it is a link"):
        tree.find_files(str(tmp_path / "link"))
    with pytest.raises(NotADirectoryError):
        tree.find_files(str(tmp_path / "file"))
    with pytest.raises(FileNotFoundError):
        tree.find_files(str(tmp_path / "none"))
    assert set(tree.watched.values()) == {None}


def test_a_folder_whose_parts_are_watched_is_entered_and_not_watched_itself(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path)
    tree = FolderReader(open_root(tmp_path))
    tree.check_folder(str(tmp_path))
    assert tree.watched == {}
    with pytest.raises(OutOfBoundsError, match="it is a link"):
        tree.check_folder(str(tmp_path / "link"))
    assert tree.watched == {str(tmp_path / "link"): None}


@pytest.mark.usefixtures("ways")
def test_file_systems_mounted_below_a_root_count_only_where_configured(mounted: Path) -> None:
    root, other = mounted.parent, str(mounted)
    (mounted / "weights").write_bytes(b"123")
    (root / "link").symlink_to(mounted / "weights")
    with pytest.raises(OutOfBoundsError, match="another file system"):
        FolderReader(open_root(root)).find_files(other)
    with pytest.raises(OutOfBoundsError, match="another file system"):
        FolderReader(open_root(root)).read_head(str(mounted / "weights"), 3)
    linked = FolderReader(open_root(root)).find_file(str(root / "link"), "link")
    assert linked is not None
    assert "another file system" in str(linked.problem)
    reader = FolderReader(open_root(root, cross_file_systems=True))
    assert [file.name for file in reader.find_files(str(root))] == ["link", "mounted/weights"]
    assert reader.read_head(str(mounted / "weights"), 3) == b"123"


def every_entry(root: Root) -> Iterator[Unit]:
    for entry in list_root(root).shown:
        yield Unit(root, entry.path, entry.name)


def all_and_check(root: Root) -> Iterator[Unit]:
    yield from every_entry(root)
    list_root(root).check()


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


def test_a_root_that_may_not_be_read_is_a_problem() -> None:
    with open_folder() as folder:
        closed = folder / "closed"
        closed.mkdir(mode=0)
        with unprivileged():
            problems = list_units([closed], every_entry).problems
    assert problems == {str(closed): "permission denied"}


def test_entries_are_sorted_and_shown(tmp_path: Path) -> None:
    for name in ("b", "a", ".hidden"):
        (tmp_path / name).touch()
    entries = list_root(open_root(tmp_path))
    assert [entry.name for entry in entries.shown] == ["a", "b"]
    entries.check()


def test_a_folder_of_a_hundred_thousand_entries_is_read_up_to_the_bound(tmp_path: Path) -> None:
    for number in range(100_000):
        os.symlink("nothing", f"{tmp_path}/{number}")  # noqa: PTH211  as many Paths would take longest
    listing = list_units([tmp_path], all_and_check)
    assert len(listing.units) == MAX_ENTRIES
    assert listing.problems == {
        str(tmp_path): "it has more than 20000 entries; the rest was not looked at",
    }


LISTED = """\
24 30 0:22 / /proc rw,nosuid - proc proc rw
30 1 0:45 / / rw,relatime shared:1 - overlay overlay rw,lowerdir=/a:/b,upperdir=/c
31 30 254:1 / /srv/the\\040disk rw,relatime - xfs /dev/vda1 rw
33 31 0:51 / /srv/the\\040disk/models/shared rw,relatime - nfs4 server:/models rw
32 30 254:1 / /srv/the\\040disk rw,relatime - ext4 /dev/vda1 rw
half a line
"""

OVERLAID = """\
import subprocess, sys
from pathlib import Path
from gpu_agent.probe.models.files import FolderReader, open_root
base = Path(sys.argv[1])
def mount(*words):
    subprocess.run(["mount", *words], check=True)
mount("-t", "tmpfs", "none", str(base))
for name in ("lower", "upper", "seen"):
    (base / name).mkdir()
for name in ("lower", "upper"):
    mount("-t", "tmpfs", "none", str(base / name))
(base / "lower" / "from-image").write_text("1")
(base / "upper" / "own").mkdir()
(base / "upper" / "work").mkdir()
layers = f"lowerdir={base}/lower,upperdir={base}/upper/own,workdir={base}/upper/work,xino=off"
mount("-t", "overlay", "none", "-o", layers, str(base / "seen"))
(base / "seen" / "written").write_text("2")
(base / "seen" / "mounted").mkdir()
mount("-t", "tmpfs", "none", str(base / "seen" / "mounted"))
tree = FolderReader(open_root(base / "seen"))
for name in ("from-image", "written"):
    found = tree.find_file(str(base / "seen" / name), name)
    print(name, found.problem, tree.read_head(found.path, 9).decode())
try:
    tree.list_folder(str(base / "seen" / "mounted"))
except OSError as error:
    print("mounted", error)
"""


@pytest.fixture
def mounts(tmp_path: Path) -> Path:
    path = tmp_path / "mountinfo"
    path.write_text(LISTED)
    return path


@pytest.mark.parametrize(
    ("path", "file_system"),
    [
        ("/", "overlay"),
        ("/proc", "proc"),
        ("/process", "overlay"),
        ("/srv/the disk/models", "ext4"),
        ("/srv/the disk/models/shared", "nfs4"),
        ("/srv/the disk", "ext4"),
        ("/srv", "overlay"),
    ],
)
def test_a_folder_is_on_the_file_system_that_was_mounted_last_at_the_longest_path_above_it(
    mounts: Path, path: str, file_system: str
) -> None:
    assert file_system_at(path, mounts) == file_system


def test_where_no_mounts_are_listed_no_file_system_is_known(tmp_path: Path) -> None:
    assert file_system_at("/", tmp_path / "nothing") is None


def test_a_root_is_local_where_no_other_machine_can_change_it(mounts: Path) -> None:
    places = {"/proc": False, "/sys": False, "/dev/shm": True}  # noqa: S108  nothing is written there
    local = {path: open_root(Path(path)).local for path in places if Path(path).is_dir()}
    assert local == {path: places[path] for path in local}
    assert not open_root(mounts.parent, cross_file_systems=True).local


def test_files_of_all_layers_are_read_and_what_is_mounted_between_them_is_not(tmp_path: Path) -> None:
    if os.name != "posix" or os.geteuid() != 0 or not Path("/proc/filesystems").exists():
        pytest.skip("only root on Linux can lay file systems over each other")
    apart = ["unshare", "--mount", "--propagation", "private"]
    if (
        subprocess.run([*apart, "true"], check=False, capture_output=True, timeout=patience(30)).returncode
        != 0
    ):
        pytest.skip("mounts of its own are not allowed to this process")
    words = [*apart, sys.executable, "-c", OVERLAID, str(tmp_path)]
    done = subprocess.run(words, check=False, capture_output=True, text=True, timeout=patience(60))
    if "unknown filesystem type" in done.stderr:
        pytest.skip("this kernel has no overlay file system")
    assert done.stdout.splitlines() == [
        "from-image None 1",
        "written None 2",
        "mounted it is on another file system; add that as a root of its own",
    ], done.stderr


def test_a_path_is_put_together_from_names() -> None:
    assert join_path("/a", "b", "c") == str(Path("/a", "b", "c"))


def test_what_is_no_printable_text_becomes_a_mark() -> None:
    assert readable("a\n\udcffé") == "a\ufffd\ufffdé"
