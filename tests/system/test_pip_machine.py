"""A machine where gpu-agent comes from pip, offline, and systemd runs it by the units of `systemd/`."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.nvml_fake.build import build
from tests.nvml_fake.control import FakeNvml
from tests.system.machine import Machine
from tests.system.site import AGENT, REGISTRY, Site
from tests.system.wheels import collect

pytestmark = pytest.mark.timeout(900)

SYSTEMD = Path(__file__).parent.parent.parent / "systemd"


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
        install_units(machine)
        yield Site(machine)


def install_units(machine: Machine) -> None:
    for unit in (AGENT, REGISTRY):
        machine.write(f"/etc/systemd/system/{unit}", (SYSTEMD / unit).read_text(encoding="utf-8"))
        users = f"{unit.removesuffix('.service')}.sysusers.conf"
        machine.write(f"/etc/sysusers.d/{users}", (SYSTEMD / users).read_text(encoding="utf-8"))
    machine.run("systemd-sysusers")
    driver = "LD_LIBRARY_PATH=/srv/library NVML_FAKE_CONTROL=/srv/driver/nvml-fake.control"
    machine.write(f"/etc/systemd/system/{AGENT}.d/driver.conf", f"[Service]\nEnvironment={driver}\n")
    machine.write("/etc/gpu-agent/agent.toml", 'registry_url = "ws://127.0.0.1:8080/ws/node"\n')
    machine.write("/etc/gpu-agent/registry.toml", "warmup_heartbeat_interval_seconds = 0.5\n")
    machine.run("systemctl", "daemon-reload")


def test_a_node_becomes_ready_with_the_gpus_of_its_driver(site: Site) -> None:
    site.machine.run("systemctl", "start", REGISTRY)
    site.machine.until(
        lambda: site.machine.events(REGISTRY, "registry_listening"), within_seconds=20, what="listening"
    )
    site.hand_over_a_join_token()
    site.machine.run("systemctl", "start", AGENT)
    node = site.await_ready()
    assert [gpu["name"] for gpu in node["gpus"]] == ["NVIDIA H100 80GB HBM3"] * 2


def test_a_node_that_has_joined_comes_back_without_its_join_token(site: Site) -> None:
    joined = site.await_ready()
    site.machine.run("rm", "/etc/gpu-agent/join-token")
    before = site.machine.main_pid(AGENT)
    site.machine.run("systemctl", "restart", AGENT)
    site.await_another_process(AGENT, before, within_seconds=20)
    assert site.await_ready()["node_id"] == joined["node_id"]
    assert site.machine.events(AGENT, "join_credential_unreadable") == []
