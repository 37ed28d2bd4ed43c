"""The .rpm of both halves, unpacked over a Debian, as no RHEL is here: the program runs, and the scripts do.

Which packages RHEL has, and what its rpm, its systemd and its SELinux make of ours, is not seen here.
"""

import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.packaging.contents import of_rpm, rpm
from tests.system.offline import OfflineDebian
from tests.system.packages import CURRENT, built
from tests.waiting import patience

pytestmark = pytest.mark.timeout(900)

HALVES = ("gpu-agent", "gpu-registry")
INSTALLED, REMOVED = "1", "0"
"""The number of installed versions, which rpm passes to its scripts."""


@pytest.fixture(scope="module")
def debian(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[OfflineDebian]:
    for program in ("rpm", "rpm2cpio", "cpio"):
        if shutil.which(program) is None:
            pytest.skip(f"no {program} here: apt-get install -y rpm rpm2cpio cpio")
    packages = built()
    with OfflineDebian(root, tmp_path_factory.mktemp("rpm"), shared={"/srv/packages": packages}) as debian:
        for component in HALVES:
            unpack(rpm(packages, component), debian.path("/"))
        yield debian


def unpack(file: Path, into: Path) -> None:
    archive = subprocess.run(["rpm2cpio", file], check=True, capture_output=True, timeout=patience(60)).stdout
    words = ("cpio", "--extract", "--make-directories", "--preserve-modification-time", "--quiet")
    subprocess.run(
        [*words, "--no-absolute-filenames"], cwd=into, input=archive, check=True, timeout=patience(60)
    )


def run_script(debian: OfflineDebian, component: str, script: str, *, left: str) -> None:
    text = of_rpm(rpm(built(), component), "--queryformat", f"%{{{script}}}")
    assert text != "(none)"
    debian.run("sh", "-e", "-c", text, script, left)


def test_the_scripts_of_an_install_run_where_no_systemd_does(debian: OfflineDebian) -> None:
    for component in HALVES:
        run_script(debian, component, "POSTIN", left=INSTALLED)
        run_script(debian, component, "POSTTRANS", left=INSTALLED)
    assert list(debian.path("/usr/lib/gpu-agent/lib/gpu_agent").glob("__pycache__/*.pyc"))


def test_the_program_runs_at_its_place(debian: OfflineDebian) -> None:
    assert CURRENT in debian.run("gpu-agent", "--version").stdout
    report = json.loads(debian.run("gpu-agent", "probe", "--simulate", "2xH100-80GB", "--json").stdout)
    assert len(report["gpus"]) == 2
    assert "registry_url" in debian.run("gpu-agent", "config", "show", "agent").stdout
    assert "--node-listen" in debian.run("gpu-agent", "registry", "serve", "--help").stdout


def test_the_scripts_of_a_removal_leave_nothing_compiled(debian: OfflineDebian) -> None:
    for component in reversed(HALVES):
        run_script(debian, component, "PREUN", left=REMOVED)
        run_script(debian, component, "POSTUN", left=REMOVED)
    assert not list(debian.path("/usr/lib/gpu-agent").rglob("*.pyc"))
