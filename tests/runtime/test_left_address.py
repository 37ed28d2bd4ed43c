import stat
from pathlib import Path

import pytest

from gpu_agent.runtime.left_address import FILE, LeftAddress, found_in, leave, take_back

PIN = "sha256//" + "A" * 43 + "="


def test_what_is_left_is_found_until_it_is_taken_back(tmp_path: Path) -> None:
    for left in (LeftAddress("http://127.0.0.1:8081"), LeftAddress("https://[::1]:8081", PIN)):
        leave(tmp_path, left)
        assert found_in(tmp_path) == left
    assert [path.name for path in tmp_path.iterdir()] == [FILE]
    take_back(tmp_path)
    assert found_in(tmp_path) is None
    take_back(tmp_path)


def test_nobody_but_its_owner_may_read_it(tmp_path: Path) -> None:
    leave(tmp_path, LeftAddress("http://127.0.0.1:8081"))
    assert stat.S_IMODE((tmp_path / FILE).stat().st_mode) == 0o600


def test_a_link_in_its_place_is_replaced_and_not_followed(tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.write_text("mine")
    (tmp_path / FILE).symlink_to(elsewhere)
    leave(tmp_path, LeftAddress("http://127.0.0.1:8081"))
    assert elsewhere.read_text() == "mine"


def test_a_directory_that_takes_nothing_says_so_and_keeps_nothing(tmp_path: Path) -> None:
    (tmp_path / FILE).mkdir()
    with pytest.raises(OSError, match=FILE):
        leave(tmp_path, LeftAddress("http://127.0.0.1:8081"))
    assert [path.name for path in tmp_path.iterdir()] == [FILE]
    with pytest.raises(FileNotFoundError):
        leave(tmp_path / "absent", LeftAddress("http://127.0.0.1:8081"))


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b'{"api": "x"}',
        b'{"api": "x", "pin": "y"}',
        b"[" * 4000,
        b"\xff",
        b"{}" * 9999,
    ],
)
def test_what_is_none_is_as_good_as_none(tmp_path: Path, content: bytes) -> None:
    (tmp_path / FILE).write_bytes(content)
    assert found_in(tmp_path) is None
