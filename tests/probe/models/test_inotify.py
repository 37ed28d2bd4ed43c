import os
import select
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from gpu_agent.probe.models import inotify as notices_module
from gpu_agent.probe.models.inotify import InotifyWatcher
from tests.probe.models.caches import open_folder, unprivileged
from tests.waiting import patience

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux has inotify")


@pytest.fixture
def watcher() -> Iterator[InotifyWatcher]:
    opened = InotifyWatcher.open()
    assert opened is not None
    yield opened
    opened.close()


def saw_change(watcher: InotifyWatcher, *, within_seconds: float = 5) -> bool:
    """Whether the kernel reported something; takes the report."""
    ready, _, _ = select.select([watcher.descriptor], [], [], within_seconds)
    watcher.drain()
    return bool(ready)


def saw_none(watcher: InotifyWatcher) -> bool:
    return not saw_change(watcher, within_seconds=0)


CHANGES: dict[str, Callable[[Path], object]] = {
    "comes": lambda folder: (folder / "new").touch(),
    "goes": lambda folder: (folder / "old").unlink(),
    "is renamed": lambda folder: (folder / "old").rename(folder / "older"),
    "moves in": lambda folder: (folder.parent / "outside").rename(folder / "inside"),
    "moves out": lambda folder: (folder / "old").rename(folder.parent / "out"),
    "is written": lambda folder: (folder / "old").write_text("more"),
    "is linked": lambda folder: (folder / "link").symlink_to("old"),
    "goes with its folder": shutil.rmtree,
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_change_in_a_watched_folder_is_reported(
    tmp_path: Path, watcher: InotifyWatcher, change: Callable[[Path], object]
) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "old").touch()
    (tmp_path / "outside").touch()
    assert watcher.follow([str(folder)])
    assert saw_none(watcher)
    change(folder)
    assert saw_change(watcher)


def test_reading_a_folder_and_writing_a_file_are_no_changes(tmp_path: Path, watcher: InotifyWatcher) -> None:
    with (tmp_path / "file").open("wb", buffering=0) as file:
        watcher.follow([str(tmp_path)])
        file.write(b"more")
        assert os.listdir(tmp_path) == ["file"]  # noqa: PTH208  as a scan reads it
        (tmp_path / "file").read_bytes()
        assert saw_none(watcher)
    assert saw_change(watcher)


def test_links_and_folders_below_are_not_followed(tmp_path: Path, watcher: InotifyWatcher) -> None:
    (tmp_path / "root" / "below").mkdir(parents=True)
    (tmp_path / "outside").mkdir()
    (tmp_path / "root" / "link").symlink_to(tmp_path / "outside")
    watcher.follow([str(tmp_path / "root"), str(tmp_path / "root" / "link")])
    (tmp_path / "outside" / "new").touch()
    (tmp_path / "root" / "below" / "new").touch()
    assert saw_none(watcher)


def test_unwanted_watches_are_removed_and_the_rest_stays(tmp_path: Path, watcher: InotifyWatcher) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    one.mkdir()
    two.mkdir()
    assert watcher.follow([str(one), str(two)])
    assert not watcher.follow([str(two)])
    saw_change(watcher, within_seconds=0)  # discard the removal of the first watch
    (one / "new").touch()
    assert saw_none(watcher)
    (two / "new").touch()
    assert saw_change(watcher)


def test_following_the_same_paths_costs_nothing_until_a_watch_is_lost(
    tmp_path: Path, watcher: InotifyWatcher
) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    places = [str(tmp_path), str(folder)]
    assert watcher.follow(places)
    assert not watcher.follow(places)
    folder.rmdir()
    assert saw_change(watcher)
    folder.mkdir()
    assert saw_change(watcher)
    assert watcher.follow(places), "another folder of that name is there now"
    (folder / "new").touch()
    assert saw_change(watcher)


def test_files_and_what_is_not_there_yet_are_no_fault(tmp_path: Path, watcher: InotifyWatcher) -> None:
    (tmp_path / "file").touch()
    later = tmp_path / "later"
    assert watcher.follow([str(tmp_path / "file"), str(later), str(tmp_path)])
    assert watcher.limit is None
    later.mkdir()
    assert watcher.follow([str(later), str(tmp_path)])


def test_names_of_bytes_that_are_no_text_are_followed(tmp_path: Path, watcher: InotifyWatcher) -> None:
    folder = os.fsdecode(os.fsencode(tmp_path) + b"/\xff\n")
    os.mkdir(folder)  # noqa: PTH102  such a name is no path of people's
    watcher.follow([folder])
    Path(folder, "new").touch()
    assert saw_change(watcher)


def test_an_overflow_of_the_kernels_queue_is_a_change_too(tmp_path: Path, watcher: InotifyWatcher) -> None:
    watcher.follow([str(tmp_path)])
    most = int(Path("/proc/sys/fs/inotify/max_queued_events").read_text())
    for number in range(most // 2 + 10):  # each is made and closed
        (tmp_path / str(number)).touch()
    assert saw_change(watcher)
    assert saw_none(watcher)


def test_reaching_our_own_watch_limit_is_reported(
    tmp_path: Path, watcher: InotifyWatcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(notices_module, "MOST_FOLDERS", 1)
    (tmp_path / "below").mkdir()
    assert watcher.follow([str(tmp_path), str(tmp_path / "below")])
    assert watcher.limit == "more than 1 folders hold models"


def test_it_is_quiet_until_something_changes_and_after_each_change_is_taken(
    tmp_path: Path, watcher: InotifyWatcher
) -> None:
    (tmp_path / "file").touch()
    paths = [str(tmp_path / "file"), str(tmp_path / "later"), str(tmp_path)]
    assert watcher.quiet_since(paths) is None, "they are not followed yet"
    watcher.follow(paths)
    first = watcher.quiet_since(paths)
    assert first is not None
    assert watcher.quiet_since(paths) == first
    (tmp_path / "later").mkdir()
    assert watcher.quiet_since(paths) is None
    watcher.drain()
    assert watcher.quiet_since(paths) not in (None, first)
    assert watcher.quiet_since(list(paths)) is None, "others are not followed"


def test_it_is_not_known_to_be_quiet_where_a_folder_cannot_be_watched() -> None:
    with open_folder() as folder:
        (folder / "closed").mkdir()
        (folder / "closed").chmod(0o311)  # its owner may not read it either
        with unprivileged():
            watcher = InotifyWatcher.open()
            assert watcher is not None
            paths = [str(folder), str(folder / "closed")]
            watcher.follow(paths)
            assert watcher.limit is None
            assert watcher.quiet_since(paths) is None
            paths = [str(folder), str(folder / "none" / "deeper")]
            watcher.follow(paths)
            assert watcher.quiet_since(paths) is None, "nobody reports that the upper one comes"
            watcher.close()


def test_a_folder_that_comes_in_the_place_of_a_watched_one_is_watched(
    tmp_path: Path, watcher: InotifyWatcher
) -> None:
    for name in "ab":
        (tmp_path / name / "below").mkdir(parents=True)
    watcher.follow([str(tmp_path / "a" / "below")])
    (tmp_path / "a").rename(tmp_path / "c")
    (tmp_path / "b").rename(tmp_path / "a")
    assert saw_none(watcher), "a folder far above moved"
    paths = [str(tmp_path / "a" / "below")]
    assert watcher.follow(paths)
    (tmp_path / "c" / "below" / "new").touch()
    saw_change(watcher, within_seconds=0)  # the end of the first watch
    assert saw_none(watcher)
    (tmp_path / "a" / "below" / "new").touch()
    assert saw_change(watcher)


LIMITED = """
import sys
from gpu_agent.probe.models.inotify import InotifyWatcher
watcher = InotifyWatcher.open()
new = watcher.follow(sys.argv[1:])
print(new, watcher.limit)
watcher.follow(sys.argv[1:3])
print(watcher.limit)
"""


def test_the_kernels_limit_is_reported_with_the_sysctl_and_what_fits_is_watched(tmp_path: Path) -> None:
    """The limit is lowered for a user namespace of its own, so no other process watcher."""
    folders = [str(tmp_path / name) for name in "abcd"]
    for folder in folders:
        Path(folder).mkdir()
    lower = 'echo 2 > /proc/sys/user/max_inotify_watches && exec "$@"'
    apart = ["unshare", "--user", "--map-root-user", "sh", "-c", lower, "sh"]
    try:
        possible = subprocess.run([*apart, "true"], capture_output=True, text=True, check=False)
    except FileNotFoundError:
        pytest.skip("there is no unshare here")
    if possible.returncode:
        pytest.skip(f"no user namespace may be made here: {possible.stderr.strip()}")
    command = [*apart, sys.executable, "-c", LIMITED, *folders]
    printed = subprocess.run(
        command, capture_output=True, text=True, check=True, timeout=patience(30)
    ).stdout.splitlines()
    assert printed == [
        "True this user may watch no more folders; raise the sysctl fs.inotify.max_user_watches",
        "None",
    ]
