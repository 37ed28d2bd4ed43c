import os
from pathlib import Path

import pytest

from gpu_agent.runtime.services.reach import Closed, User, closed, user_named

NOBODY = User("gpu-agent")
OPEN = "[Service]\nProtectHome=read-only\n"
ABOVE = frozenset(Path(__file__).resolve().parents)


@pytest.fixture
def venv(tmp_path: Path) -> Path:
    """A program that all may reach from `tmp_path` on; what is above it belongs to the test."""
    folder = tmp_path / "home" / "venv"
    folder.mkdir(parents=True)
    program = folder / "gpu-agent"
    program.write_text("")
    program.chmod(0o755)
    for place in (program.parent, program.parent.parent):
        place.chmod(0o755)
    return program


def below(found: Closed | None, folder: Path) -> Path | None:
    """The place that was found, where it is not one above the test's own folder."""
    return found.place if found is not None and found.place.is_relative_to(folder) else None


def owner_of(folder: Path) -> User:
    """A user who gets as far as the test's own folder, which is the test's user's."""
    return User("gpu-agent", folder.stat().st_uid)


def test_a_program_that_all_may_reach_is_reached() -> None:
    assert closed([Path("/bin/sh")], NOBODY, unit=OPEN) is None


def test_a_folder_that_is_closed_to_others_is_named(venv: Path, tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.chmod(0o700)
    others = User("gpu-agent", os.geteuid() + 1)
    tmp_path.chmod(0o755)
    found = closed([venv], others, unit=OPEN)
    assert found is not None
    assert below(found, tmp_path) in (home, None)
    assert "mode 0700" in str(found)


def test_the_owner_gets_in_where_others_do_not(venv: Path, tmp_path: Path) -> None:
    (tmp_path / "home").chmod(0o700)
    assert below(closed([venv], owner_of(tmp_path), unit=OPEN), tmp_path) is None


def test_a_program_that_cannot_be_read_is_named(venv: Path, tmp_path: Path) -> None:
    venv.chmod(0o055)
    assert below(closed([venv], owner_of(tmp_path), unit=OPEN), tmp_path) == venv


def test_where_a_link_leads_counts_too(venv: Path, tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(venv)
    venv.parent.chmod(0o055)
    assert below(closed([link], owner_of(tmp_path), unit=OPEN), tmp_path) == venv.parent


def test_what_is_not_there_is_not_reached(tmp_path: Path) -> None:
    found = closed([tmp_path / "absent"], owner_of(tmp_path), unit=OPEN)
    assert below(found, tmp_path) in (tmp_path / "absent", None)


@pytest.mark.parametrize(
    ("path", "unit", "wall"),
    [
        ("/home/me/venv/bin/x", "ProtectHome=yes", "/home"),
        ("/root/venv/bin/x", "ProtectHome=tmpfs", "/root"),
        ("/tmp/venv/bin/x", "PrivateTmp=yes", "/tmp"),  # noqa: S108 - a name alone
        ("/var/tmp/venv/bin/x", "PrivateTmp=disconnected", "/var/tmp"),  # noqa: S108 - a name alone
    ],
)
def test_what_the_unit_hides_is_not_reached(path: str, unit: str, wall: str) -> None:
    found = closed([Path(path)], NOBODY, unit=f"[Service]\n# ProtectHome=no\n{unit}\n")
    assert found is not None
    assert found.place == Path(wall)
    assert unit.partition("=")[0] in str(found)


def test_a_user_of_this_machine_is_known_by_number() -> None:
    root = user_named("root")
    assert (root.uid, 0 in root.gids) == (0, True)
    assert user_named("nobody-of-that-name") == User("nobody-of-that-name")
