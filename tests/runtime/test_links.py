import os
from pathlib import Path

import pytest

from gpu_agent.runtime.links import strangers_link

as_root = pytest.mark.skipif(os.name != "posix" or os.geteuid() != 0, reason="only root can give a link away")
STRANGER = 54321


def test_our_own_links_are_followed_as_we_meant_them(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "there")
    assert strangers_link(tmp_path / "link") is None
    assert strangers_link(tmp_path / "link" / "not yet" / "made") is None


@as_root
@pytest.mark.parametrize("below", [".", "state", "a/state"])
def test_a_strangers_link_is_found_wherever_it_stands_on_the_way(tmp_path: Path, below: str) -> None:
    (tmp_path / "there").mkdir()
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "there")
    os.lchown(link, STRANGER, STRANGER)
    assert strangers_link(link / below) == f"{link} is a link that user {STRANGER} has made; remove it"


@as_root
def test_a_strangers_folder_is_no_link(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    os.chown(folder, STRANGER, STRANGER)
    assert strangers_link(folder / "state") is None
