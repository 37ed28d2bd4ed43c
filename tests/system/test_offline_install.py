"""The packages on a Debian without a network: installed, used, upgraded, removed, and every trace purged.

The tests of one release follow one another on one machine.
"""

import gzip
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.system.offline import OfflineDebian
from tests.system.packages import CURRENT, NEXT, built

pytestmark = pytest.mark.timeout(900)

SYSTEMS_PYTHON = "/usr/lib/python3/dist-packages"
VERSION_OF_PYDANTIC = ("python3", "-c", "import pydantic; print(pydantic.VERSION, pydantic.__file__)")
LONGEST_INSTALL_SECONDS = 120
IDENTITY = '{"node_id": "stored"}'
SETTINGS = "# the owner's own\nmax_jobs = 3\n"


@dataclass(frozen=True, slots=True)
class Installed:
    """A machine with both packages, and how it was before."""

    debian: OfflineDebian
    files_before: set[str]
    python_before: str
    pydantic_before: str
    install_seconds: float


@pytest.fixture(scope="module")
def installed(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installed]:
    shared = {"/srv/packages": built(CURRENT), "/srv/next": built(NEXT)}
    with OfflineDebian(root, tmp_path_factory.mktemp("offline"), shared=shared) as debian:
        before = debian.files()
        python = debian.digests(SYSTEMS_PYTHON)
        pydantic = debian.run(*VERSION_OF_PYDANTIC).stdout
        seconds = debian.install("/srv/packages")
        yield Installed(debian, before, python, pydantic, seconds)


@pytest.fixture
def debian(installed: Installed) -> OfflineDebian:
    return installed.debian


def test_both_install_without_a_network_and_are_whole(installed: Installed) -> None:
    debian = installed.debian
    assert debian.run("ls", "/sys/class/net").stdout.split() == ["lo"]
    assert debian.state_of("gpu-agent") == debian.state_of("gpu-registry") == "install ok installed"
    assert debian.dpkg("--audit").stdout == ""
    assert debian.dpkg("--verify", "gpu-agent", "gpu-registry").stdout == ""
    assert installed.install_seconds < LONGEST_INSTALL_SECONDS


def test_the_probe_answers(debian: OfflineDebian) -> None:
    report = json.loads(debian.run("gpu-agent", "probe", "--simulate", "2xH100-80GB", "--json").stdout)
    assert [gpu["name"] for gpu in report["gpus"]] == ["NVIDIA H100 80GB HBM3"] * 2


def test_the_doctor_finds_no_fault_but_the_missing_driver_and_network(debian: OfflineDebian) -> None:
    done = debian.run("gpu-agent", "doctor", "--json", check=False)
    assert done.returncode == 1, done.stderr
    assert done.stderr == ""
    failed = [check["check"] for check in json.loads(done.stdout)["checks"] if check["verdict"] == "fail"]
    assert failed == ["driver library", "NVML", "DNS"]


def test_an_agent_and_a_registry_do_the_whole_job(debian: OfflineDebian) -> None:
    done = debian.run("gpu-agent", "demo", "--once", within_seconds=120)
    assert "offline" in done.stdout


def test_the_manual_is_where_man_looks(debian: OfflineDebian) -> None:
    for page in ("man1/gpu-agent.1", "man1/gpu-agent-run.1", "man5/agent.toml.5", "man5/registry.toml.5"):
        text = gzip.decompress(debian.path(f"/usr/share/man/{page}.gz").read_bytes()).decode()
        assert ".TH" in text


def test_the_systems_own_python_packages_are_undisturbed(installed: Installed) -> None:
    debian = installed.debian
    ours = debian.run(
        *("env", "-i", "PYTHONPATH=/usr/lib/gpu-agent/lib", "python3", "-S", "-c"),
        "import pydantic; print(pydantic.VERSION)",
    ).stdout.strip()
    theirs = debian.run(*VERSION_OF_PYDANTIC).stdout
    assert theirs == installed.pydantic_before
    assert ours != theirs.split()[0]
    assert debian.digests(SYSTEMS_PYTHON) == installed.python_before


def test_nothing_of_the_environment_gets_into_the_program(debian: OfflineDebian) -> None:
    debian.write("/srv/planted/pydantic.py", "raise SystemExit('planted')\n")
    debian.write("/srv/planted/sitecustomize.py", "raise SystemExit('planted')\n")
    debian.write("/root/.local/lib/python3/site-packages/rich.py", "raise SystemExit('planted')\n")
    hostile = (
        "env",
        "--chdir=/srv/planted",
        "PYTHONPATH=/srv/planted",
        "PYTHONSTARTUP=/srv/planted/pydantic.py",
    )
    done = debian.run(*hostile, "gpu-agent", "probe", "--simulate", "1xH100-80GB", "--json")
    assert json.loads(done.stdout)["gpus"]
    debian.run("rm", "-r", "/root/.local")


def test_the_user_of_the_service_cannot_change_the_program(debian: OfflineDebian) -> None:
    looked = (
        "find /usr/lib/gpu-agent /usr/bin/gpu-agent /etc/gpu-agent ( -not -user root -o -perm /022 ) -print"
    )
    assert debian.run(*looked.split()).stdout == ""


def test_when_the_machines_python_changes_the_libraries_are_compiled_again(debian: OfflineDebian) -> None:
    compiled = debian.path("/usr/lib/gpu-agent/lib/gpu_agent/__pycache__")
    debian.run("rm", "-r", "/usr/lib/gpu-agent/lib/gpu_agent/__pycache__")
    hook = "/usr/share/python3/runtime.d/gpu-agent.rtupdate"
    debian.run(hook, "pre-rtupdate", "python3.11", "python3.13")
    assert not compiled.exists()
    debian.run(hook, "rtupdate", "python3.11", "python3.13")
    assert list(compiled.glob("*.pyc"))


def test_an_upgrade_keeps_the_owners_settings_and_the_identity(debian: OfflineDebian) -> None:
    debian.write("/etc/gpu-agent/agent.toml", SETTINGS)
    debian.write("/var/lib/gpu-agent/node.json", IDENTITY, mode=0o600)
    debian.install("/srv/next")
    assert NEXT in debian.run("gpu-agent", "--version").stdout
    assert debian.path("/etc/gpu-agent/agent.toml").read_text() == SETTINGS
    assert debian.path("/var/lib/gpu-agent/node.json").read_text() == IDENTITY
    assert debian.dpkg("--audit").stdout == ""
    left = debian.run("find", "/usr/lib/gpu-agent", "-path", f"*gpu_agent-{CURRENT}.dist-info*").stdout
    assert left == ""


def test_removal_takes_the_program_and_keeps_settings_and_identity(debian: OfflineDebian) -> None:
    debian.dpkg("--remove", "gpu-registry", "gpu-agent")
    assert debian.state_of("gpu-agent") == "deinstall ok config-files"
    assert not debian.path("/usr/lib/gpu-agent").exists()
    assert debian.path("/etc/gpu-agent/agent.toml").read_text() == SETTINGS
    assert debian.path("/var/lib/gpu-agent/node.json").read_text() == IDENTITY


def test_purge_leaves_nothing_but_what_the_owner_put_there(installed: Installed) -> None:
    debian = installed.debian
    debian.write("/etc/gpu-agent/join-token", "secret", mode=0o600)
    debian.write("/etc/gpu-agent/authority.pem", "the owner's own")
    debian.dpkg("--purge", "gpu-registry", "gpu-agent")
    assert debian.state_of("gpu-agent") in ("unknown", "unknown ok not-installed")
    assert debian.files() - installed.files_before == {"/etc/gpu-agent", "/etc/gpu-agent/authority.pem"}
    assert installed.files_before - debian.files() == set()
