"""A machine where gpu-agent comes from pip, offline, and `gpu-agent service install` makes services of it."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.nvml_fake.build import build
from tests.nvml_fake.control import FakeNvml
from tests.system.machine import Machine
from tests.system.site import AGENT, REGISTRY, Site
from tests.system.wheels import collect

pytestmark = pytest.mark.timeout(900)

PROGRAM = "/opt/gpu-agent/bin/gpu-agent"
UNIT = f"/etc/systemd/system/{AGENT}"


@pytest.fixture(scope="module")
def site(root: Path, suite: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    scratch = tmp_path_factory.mktemp(suite)
    wheels = collect(scratch / "wheels", suite=suite)
    driver = scratch / "driver"
    driver.mkdir()
    FakeNvml(driver, gpus=2)
    shared = {"/srv/wheels": wheels, "/srv/library": build(scratch / "library"), "/srv/driver": driver}
    with Machine(root, scratch, shared=shared) as machine:
        machine.run("python3", "-m", "venv", "/opt/gpu-agent")
        pip = ("/opt/gpu-agent/bin/pip", "install", "--quiet", "--no-index", "--find-links", "/srv/wheels")
        machine.run(*pip, "gpu-agent[registry]", within_seconds=120)
        machine.run("ln", "-st", "/usr/bin", "/opt/gpu-agent/bin/gpu-agent")
        environment = "LD_LIBRARY_PATH=/srv/library NVML_FAKE_CONTROL=/srv/driver/nvml-fake.control"
        machine.write(f"{UNIT}.d/driver.conf", f"[Service]\nEnvironment={environment}\n")
        machine.write("/etc/gpu-agent/registry.toml", "warmup_heartbeat_interval_seconds = 0.5\n")
        yield Site(machine)


def status(site: Site, component: str) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(
        site.machine.run(PROGRAM, "service", "status", component, "--json", check=False).stdout
    )
    return document


def test_the_agent_is_installed_and_waits_for_the_name_of_its_registry(site: Site) -> None:
    assert status(site, "agent")["installed_by"] is None
    done = site.machine.run(PROGRAM, "service", "install", "--now", check=False)
    assert (done.returncode, "name your registry" in done.stderr) == (4, True)
    assert site.machine.show(AGENT, "ActiveState") == "inactive"
    assert site.machine.run("id", "--user", "gpu-agent").returncode == 0
    assert "registry_url" in site.machine.path("/etc/gpu-agent/agent.toml").read_text()


def test_the_registry_is_installed_and_started_with_the_settings_that_are_there(site: Site) -> None:
    site.machine.run(PROGRAM, "service", "install", "registry", "--now")
    site.machine.until(
        lambda: site.machine.events(REGISTRY, "registry_listening"), within_seconds=20, what="listening"
    )
    assert "0.5" in site.machine.path("/etc/gpu-agent/registry.toml").read_text()
    assert (status(site, "registry")["runs"], status(site, "registry")["enabled"]) == (True, "enabled")


def test_a_node_becomes_ready_with_the_gpus_of_its_driver(site: Site) -> None:
    site.machine.write("/etc/gpu-agent/agent.toml", 'registry_url = "ws://127.0.0.1:8080/ws/node"\n')
    site.hand_over_a_join_token()
    site.machine.run(PROGRAM, "service", "install", "--now")
    node = site.await_ready()
    assert [gpu["name"] for gpu in node["gpus"]] == ["NVIDIA H100 80GB HBM3"] * 2


def test_a_node_that_has_joined_comes_back_without_its_join_token(site: Site) -> None:
    joined = site.await_ready()
    site.machine.run("rm", "/etc/gpu-agent/join-token")
    before = site.machine.main_pid(AGENT)
    site.machine.run("systemctl", "restart", AGENT)
    site.await_another_process(AGENT, before, within_seconds=20)
    assert site.await_ready()["node_id"] == joined["node_id"]
    assert site.machine.events(AGENT, "join_token_unreadable") == []


def test_status_shows_the_running_service(site: Site) -> None:
    document = status(site, "agent")
    assert (document["installed_by"], document["runs"], document["current"]) == ("pip", True, True)
    assert document["main_pid"] == site.machine.main_pid(AGENT)
    assert document["lines"]
    shown = site.machine.run(PROGRAM, "service", "status")
    assert shown.stdout.startswith("gpu-agent.service is active (running) since ")


def test_another_install_changes_nothing_and_one_of_another_version_restarts_it(site: Site) -> None:
    before = site.machine.main_pid(AGENT)
    site.machine.run(PROGRAM, "service", "install")
    assert site.machine.main_pid(AGENT) == before
    site.machine.run("sed", "-i", r"1s/version .*\./version 0.0.1./", UNIT)
    assert (status(site, "agent")["current"], status(site, "agent")["version"]) == (False, "0.0.1")
    site.machine.run(PROGRAM, "service", "install")
    site.await_another_process(AGENT, before, within_seconds=20)
    assert status(site, "agent")["current"] is True


def test_an_environment_out_of_the_users_reach_is_refused_and_nothing_changed(site: Site) -> None:
    unit = site.machine.path(UNIT).read_bytes()
    site.machine.run("cp", "-a", "/opt/gpu-agent", "/root/venv")
    elsewhere = ("/root/venv/bin/python", "-m", "gpu_agent.cli", "service", "install")
    done = site.machine.run(*elsewhere, check=False)
    site.machine.run("rm", "-r", "/root/venv")
    assert (done.returncode, done.stdout) == (4, "")
    assert "closed to it is /root (mode 0700" in done.stderr
    assert site.machine.path(UNIT).read_bytes() == unit


def test_anybody_but_root_is_refused(site: Site) -> None:
    for action in ("install", "uninstall"):
        done = site.machine.run("runuser", "-u", "nobody", "--", PROGRAM, "service", action, check=False)
        assert (done.returncode, "only root" in done.stderr) == (4, True)
    assert site.machine.show(AGENT, "ActiveState") == "active"


def test_an_uninstall_keeps_settings_and_state_and_a_purge_leaves_nothing_of_ours(site: Site) -> None:
    site.machine.run(PROGRAM, "service", "uninstall")
    assert site.machine.show(AGENT, "ActiveState") == "inactive"
    remaining = ("/etc/gpu-agent/agent.toml", "/var/lib/gpu-agent/identity.json", f"{UNIT}.d/driver.conf")
    assert all(site.machine.path(path).exists() for path in remaining)
    for component in ("agent", "registry"):
        site.machine.run(PROGRAM, "service", "uninstall", component, "--purge")
    left = site.machine.run(
        "find", "/etc", "/run", "/var/lib", "-name", "gpu-*", "-not", "-path", "*/credentials/*"
    )
    assert left.stdout.split() == [f"{UNIT}.d"]
