from pathlib import Path

import pytest

from gpu_agent.probe.sysfs import linked_name, number, text, why_not


@pytest.mark.parametrize(
    ("said", "base", "means"),
    [
        (b"42\n", 10, 42),
        (b"-7", 10, -7),
        (b"0x1002\n", 16, 0x1002),
        (b"d0e5\n", 16, 0xD0E5),
        (b"", 10, None),
        (b"\n", 10, None),
        (b"N/A", 10, None),
        (b"\xff\xfe\x00", 10, None),
        (b"9" * 5000, 10, int("9" * 64)),
        (b"1 2", 10, None),
    ],
)
def test_a_number_is_read_or_unknown(tmp_path: Path, said: bytes, base: int, means: int | None) -> None:
    (tmp_path / "f").write_bytes(said)
    assert number(tmp_path / "f", base=base) == means


def test_what_is_no_file_is_unknown_and_says_why(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    for name in ("missing", "folder", "x" * 300, "nul\0"):
        assert text(tmp_path / name) is None
        assert number(tmp_path / name) is None
    assert why_not(tmp_path / "missing") == "missing: No such file or directory"
    assert why_not(tmp_path / "folder") == "folder: Is a directory"


def test_no_more_is_read_than_the_bound(tmp_path: Path) -> None:
    (tmp_path / "endless").write_bytes(b"x" * 1_000_000)
    assert len(text(tmp_path / "endless") or "") == 65_536


def test_what_a_file_says_is_shown_shortly(tmp_path: Path) -> None:
    (tmp_path / "f").write_text("not a number at all, and rather long at that")
    assert why_not(tmp_path / "f") == "f says 'not a number at all, and rather long at'"
    (tmp_path / "f").write_text("")
    assert why_not(tmp_path / "f") == "f is empty"


def test_a_link_is_known_by_its_last_step(tmp_path: Path) -> None:
    (tmp_path / "driver").symlink_to("../../bus/pci/drivers/amdgpu")
    assert linked_name(tmp_path / "driver") == "amdgpu"
    assert linked_name(tmp_path / "none") is None
