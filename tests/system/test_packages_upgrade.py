"""The packages from their first day to their last: installed, upgraded, removed, purged."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.authority import Authority
from tests.system.machine import Machine
from tests.system.packaged import LATER, machine_with_packages, settle
from tests.system.packages import CURRENT, NEXT
from tests.system.site import AGENT, REGISTRY, Site

pytestmark = pytest.mark.timeout(900)

MOST_AWAY_SECONDS = 5.0
PACKAGES = ("gpu-agent", "gpu-registry")
CHANGED = "/root/changed"
"""Takes a next version whose own settings file is another than this version's."""
REPACK = f"""
set -e
mkdir {CHANGED}
cp {LATER}/gpu-registry_*.deb {CHANGED}
dpkg-deb --raw-extract {LATER}/gpu-agent_*.deb /root/tree
echo '# A key that is new.' >> /root/tree/etc/gpu-agent/agent.toml
dpkg-deb --build -Znone /root/tree {CHANGED}/gpu-agent_next.deb >/dev/null
rm -r /root/tree
"""
EVERYTHING = f"find / -xdev -path {CHANGED} -prune -o -print; find /run"
OWNERS = [f"/etc/gpu-agent/{name}" for name in ("ca.pem", "registry.pem", "registry.key")]
OTHERS = re.compile(
    r"/var/(log|cache|tmp|lib/(dpkg|systemd)|backups)(/|$)|/(tmp|run/(systemd|log|lock|user|udev))(/|$)"
    r"|/etc/(passwd|group|shadow|gshadow|subuid|subgid|\.pwd\.lock)-?$"
)
"""What belongs to the system and changes as it lives."""


def files(machine: Machine) -> set[str]:
    found = machine.run("sh", "-c", EVERYTHING, check=False).stdout.splitlines()
    return {path for path in found if not OTHERS.match(path)}


@pytest.fixture(scope="module")
def machine(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    with machine_with_packages(root, tmp_path_factory.mktemp("upgrade")) as machine:
        yield machine


@pytest.fixture(scope="module")
def before(machine: Machine) -> set[str]:
    """All files of the machine before anything of ours came to it."""
    return files(machine)


@pytest.fixture(scope="module")
def site(machine: Machine, before: set[str], tmp_path_factory: pytest.TempPathFactory) -> Site:
    assert before
    return settle(machine, Authority(tmp_path_factory.mktemp("authority")), agent='[labels]\nrack = "r7"\n')


def absences_seconds(machine: Machine) -> list[float]:
    """How long the agent had no session each time, from the end of one to the beginning of the next."""
    left_at, found = None, []
    for entry in machine.journal(AGENT):
        message, at_seconds = str(entry["MESSAGE"]), int(entry["__REALTIME_TIMESTAMP"]) / 1_000_000
        if left_at is None and (message.startswith("Stopping ") or '"session_backing_off"' in message):
            left_at = at_seconds
        elif left_at is not None and '"node_registered"' in message:
            found.append(at_seconds - left_at)
            left_at = None
    return found


def token_ids(site: Site) -> list[str]:
    answer = site.registry("token", "list")
    return [] if answer is None else [token["token_id"] for token in answer["tokens"]]


def test_an_upgrade_keeps_identity_settings_and_state_and_is_over_in_a_moment(site: Site) -> None:
    machine, node = site.machine, site.await_ready()
    tokens = token_ids(site)
    machine.run("sh", "-c", REPACK)
    known, processes = len(absences_seconds(machine)), [machine.main_pid(unit) for unit in (AGENT, REGISTRY)]
    site.install(CHANGED)
    after = site.await_ready()
    assert (after["node_id"], after["labels"]) == (node["node_id"], {"rack": "r7"})
    assert after["agent_version"] == NEXT != node["agent_version"] == CURRENT
    assert token_ids(site) == tokens != []
    assert [machine.show(unit, "UnitFileState") for unit in (AGENT, REGISTRY)] == ["enabled", "enabled"]
    assert all(pid != machine.main_pid(unit) for pid, unit in zip(processes, (AGENT, REGISTRY), strict=True))
    # A second absence follows, as the registry on this machine starts again too.
    assert absences_seconds(machine)[known] < MOST_AWAY_SECONDS


def test_a_settings_file_that_its_owner_changed_outlives_one_that_the_package_changed(site: Site) -> None:
    machine = site.machine
    assert 'rack = "r7"' in machine.run("cat", "/etc/gpu-agent/agent.toml").stdout
    assert "# A key that is new." in machine.run("cat", "/etc/gpu-agent/agent.toml.dpkg-dist").stdout
    listed = machine.run("dpkg-query", "--show", "--showformat=${Conffiles}\\n", *PACKAGES).stdout
    assert {line.split()[0] for line in listed.splitlines() if line} == {
        "/etc/gpu-agent/agent.toml",
        "/etc/gpu-agent/registry.toml",
    }


def test_removed_the_services_stop_and_what_their_owner_has_stays(site: Site) -> None:
    machine, node_id = site.machine, site.await_ready()["node_id"]
    machine.run("dpkg", "--remove", *PACKAGES, within_seconds=120)
    assert our_processes(machine) == []
    for unit in (AGENT, REGISTRY):
        assert machine.show(unit, "LoadState") in ("not-found", "masked")
    for path in (
        "/etc/gpu-agent/agent.toml",
        "/var/lib/gpu-agent/identity.json",
        "/var/lib/gpu-registry/registry.db",
    ):
        machine.run("test", "-e", path)
    site.install(CHANGED)
    machine.run("systemctl", "start", REGISTRY, AGENT)
    assert site.await_ready()["node_id"] == node_id


def test_purged_they_leave_nothing_behind(site: Site, before: set[str]) -> None:
    machine = site.machine
    site.await_ready()
    for drop_in in (AGENT, REGISTRY):
        machine.run("rm", "-rf", f"/etc/systemd/system/{drop_in}.d")
    machine.run("rm", *OWNERS)
    machine.run("dpkg", "--purge", *PACKAGES, within_seconds=120)
    assert our_processes(machine) == []
    assert machine.run("systemctl", "list-unit-files", "--no-legend", "gpu-*", check=False).stdout == ""
    assert machine.run("systemctl", "list-units", "--all", "--no-legend", "gpu-*").stdout == ""
    assert files(machine) - before == set()
    assert before - files(machine) == set()


def our_processes(machine: Machine) -> list[str]:
    """What still runs of ours there, by the users that run nothing else."""
    look = "grep -lE '^Uid:.*\\b('$(id -u gpu-agent)'|'$(id -u gpu-registry)')\\b' /proc/[0-9]*/status"
    return machine.run("sh", "-c", look, check=False).stdout.split()
