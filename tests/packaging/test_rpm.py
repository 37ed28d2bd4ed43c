"""The .rpm of both halves, as rpm reads it. No RHEL is booted for it: see `packaging/README.md`."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.packaging.contents import deb, entries_of_rpm, files_of_deb, of_rpm, rpm
from tests.system.packages import BUILT_AT_SECONDS, CURRENT

pytestmark = pytest.mark.timeout(900)

HALVES = ("gpu-agent", "gpu-registry")
PROGRAMS = {"/usr/bin/gpu-agent", "/usr/lib/gpu-agent/byte-compile"}
OURS_ALONE = ("/etc/gpu-agent", "/usr/lib/gpu-agent")


@pytest.fixture(autouse=True)
def rpm_is_here(need: Callable[[str, str], None]) -> None:
    need("rpm", "rpm")
    need("dpkg-deb", "dpkg")


@pytest.fixture(params=HALVES)
def component(request: pytest.FixtureRequest, packages: Path) -> Path:
    return rpm(packages, request.param)


def test_everything_is_roots_and_nobody_else_may_write_it(component: Path) -> None:
    for name, entry in entries_of_rpm(component).items():
        assert entry.owner == "root:root", name
        executable = entry.is_folder or name in PROGRAMS
        assert entry.mode == (0o755 if executable else 0o644), name


def test_it_has_no_folder_that_is_the_systems(component: Path) -> None:
    """Where two packages have one folder with two modes, as RHEL's own /usr/bin has, rpm installs neither."""
    folders = [name for name, entry in entries_of_rpm(component).items() if entry.is_folder]
    assert [name for name in folders if not name.startswith(OURS_ALONE)] == []


def test_every_file_has_the_time_that_was_stated(component: Path) -> None:
    assert {entry.at_seconds for entry in entries_of_rpm(component).values()} == {BUILT_AT_SECONDS}


def test_the_settings_are_kept_at_an_upgrade(packages: Path) -> None:
    for component, settings in (("gpu-agent", "agent.toml"), ("gpu-registry", "registry.toml")):
        file = rpm(packages, component)
        assert of_rpm(file, "--configfiles") == f"/etc/gpu-agent/{settings}\n"
        asked = r"[%{FILEFLAGS:fflags} %{FILENAMES}\n]"
        assert f"cn /etc/gpu-agent/{settings}" in of_rpm(file, "--queryformat", asked).splitlines()


@pytest.mark.parametrize("component", HALVES)
def test_it_holds_the_same_program_as_the_deb(packages: Path, component: str) -> None:
    places = ("/usr/lib/gpu-agent/", "/usr/lib/systemd/", "/usr/bin/", "/etc/")
    in_deb = {name for name in files_of_deb(deb(packages, component)) if name.startswith(places)}
    listed = entries_of_rpm(rpm(packages, component)).items()
    assert {name for name, entry in listed if not entry.is_folder and name.startswith(places)} == in_deb


def test_manual_pages_and_papers_are_marked_as_documents(packages: Path) -> None:
    documents = of_rpm(rpm(packages, "gpu-agent"), "--docfiles").splitlines()
    assert "/usr/share/man/man1/gpu-agent.1.gz" in documents
    assert "/usr/share/doc/gpu-agent/README.md" in documents


def test_a_python_that_fits_is_asked_for(packages: Path) -> None:
    asked = of_rpm(rpm(packages, "gpu-agent"), "--requires").splitlines()
    assert "(python3 >= 3.11 or python3.14 or python3.13 or python3.12 or python3.11)" in asked
    assert f"gpu-agent = {CURRENT}-1" in of_rpm(rpm(packages, "gpu-registry"), "--requires").splitlines()


def test_a_systemd_is_asked_for_that_understands_the_units(packages: Path) -> None:
    """RHEL 8 has a C library that fits and a Python 3.11, but a systemd that starts no such unit."""
    assert "systemd >= 249" in of_rpm(rpm(packages, "gpu-agent"), "--requires").splitlines()
