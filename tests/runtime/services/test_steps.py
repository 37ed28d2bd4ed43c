import os
import stat
from pathlib import Path

import pytest

from gpu_agent.runtime.services.steps import Remove, RemoveEmpty, Run, Step, StepError, Write, carry_out, ran


def test_a_file_is_written_whole_with_its_mode_whatever_the_mask(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b.conf"
    Write(path, "text\n").carry_out()
    assert path.read_text() == "text\n"
    assert stat.S_IMODE(path.stat().st_mode) == 0o644
    assert [one.name for one in path.parent.iterdir()] == ["b.conf"]


def test_folders_that_are_made_on_the_way_are_open_to_all_whatever_the_mask(tmp_path: Path) -> None:
    tmp_path.chmod(0o750)
    before = os.umask(0o077)
    try:
        Write(tmp_path / "etc" / "gpu-agent" / "agent.toml", "").carry_out()
    finally:
        os.umask(before)
    modes = [stat.S_IMODE(one.stat().st_mode) for one in (tmp_path, *tmp_path.rglob("*"))]
    assert modes == [0o750, 0o755, 0o755, 0o644]


def test_a_link_is_replaced_and_what_it_leads_to_stays(tmp_path: Path) -> None:
    victim, path = tmp_path / "victim", tmp_path / "link"
    victim.write_text("kept")
    path.symlink_to(victim)
    Write(path, "ours").carry_out()
    assert (victim.read_text(), path.is_symlink(), path.read_text()) == ("kept", False, "ours")


def test_removing_takes_a_link_and_not_what_it_leads_to(tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    kept.mkdir()
    (kept / "file").write_text("")
    (tmp_path / "link").symlink_to(kept)
    Remove(tmp_path / "link").carry_out()
    assert (kept / "file").exists()
    Remove(kept).carry_out()
    assert not kept.exists()
    Remove(kept).carry_out()


def test_a_folder_with_something_in_it_stays(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "mine").write_text("")
    RemoveEmpty(folder).carry_out()
    (folder / "mine").unlink()
    RemoveEmpty(folder).carry_out()
    assert not folder.exists()
    RemoveEmpty(folder).carry_out()


def test_a_program_that_fails_is_told_by_its_last_line() -> None:
    with pytest.raises(StepError, match=r"`sh -c .*` failed: no such luck"):
        Run(("sh", "-c", "echo first; echo no such luck >&2; exit 3")).carry_out()
    Run(("sh", "-c", "exit 3"), may_fail=True).carry_out()


def test_a_program_that_is_not_there_is_named() -> None:
    with pytest.raises(StepError, match="this machine has no no-such-program"):
        ran(("no-such-program",))


def test_the_first_step_that_fails_ends_the_walk(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    done: list[Step] = []
    steps = [
        Write(tmp_path / "one", "1"),
        Write(tmp_path / "file" / "two", "2"),
        Write(tmp_path / "three", "3"),
    ]
    with pytest.raises(StepError, match=r"cannot write .*two"):
        carry_out(steps, done.append)
    assert done == steps[:1]
    assert not (tmp_path / "three").exists()
