"""A machine to which both halves came as packages, offline, with what an operator writes down there.

The registry has a certificate of the site's own authority and asks for tokens; the agent is given a join
token as a credential, and a driver in the NVIDIA driver's place. No service is started but by `systemctl`.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.authority import Authority
from tests.nvml_fake.build import build
from tests.nvml_fake.control import FakeNvml
from tests.system.machine import Machine
from tests.system.packages import CURRENT, NEXT, built
from tests.system.site import AGENT, REGISTRY, Site

HERE = "/srv/packages"
"""Where the machine sees the packages of this version."""
LATER = "/srv/next"
"""Where it sees those of the next one."""

AGENT_TOML = """\
registry_url = "wss://registry.example:8080"
tls_ca_file = "/etc/gpu-agent/ca.pem"
probe_interval_seconds = 1
"""
REGISTRY_TOML = """\
node_listen = "0.0.0.0:8080"
operator_listen = "0.0.0.0:8081"
tls_cert_file = "/etc/gpu-agent/registry.pem"
tls_key_file = "/etc/gpu-agent/registry.key"
heartbeat_interval_seconds = 2
warmup_heartbeat_interval_seconds = 0.5
"""
_DRIVER = """\
[Service]
Environment=LD_LIBRARY_PATH=/srv/library NVML_FAKE_CONTROL=/srv/driver/nvml-fake.control
"""


@contextmanager
def machine_with_packages(root: Path, scratch: Path) -> Iterator[Machine]:
    """Boot a machine that has the packages of both versions at hand, and none of them installed."""
    driver = scratch / "driver"
    driver.mkdir()
    FakeNvml(driver, gpus=2)
    shared = {HERE: built(CURRENT), LATER: built(NEXT)}
    shared |= {"/srv/library": build(scratch / "library"), "/srv/driver": driver}
    with Machine(root, scratch, shared=shared) as machine:
        machine.write("/etc/hosts", "127.0.0.1 localhost registry.example\n")
        yield machine


def settle(machine: Machine, authority: Authority, *, agent: str = "") -> Site:
    """Install, write down what an operator decides, `agent` among it, start both, and wait for the node."""
    site = Site(machine)
    site.install(HERE)
    machine.write("/etc/gpu-agent/ca.pem", authority.file.read_text())
    certify(machine, authority)
    machine.write("/etc/gpu-agent/registry.toml", REGISTRY_TOML)
    machine.write("/etc/gpu-agent/agent.toml", AGENT_TOML + agent)
    machine.write(f"/etc/systemd/system/{AGENT}.d/driver.conf", _DRIVER)
    machine.run("systemctl", "daemon-reload")
    machine.run("systemctl", "restart", REGISTRY)
    machine.until(site.answers, within_seconds=30, what="a registry that answers")
    site.hand_over_a_join_token()
    machine.run("systemctl", "enable", "--now", AGENT)
    site.await_ready()
    return site


def certify(machine: Machine, authority: Authority) -> None:
    """Give the registry a certificate, or another one; it does not know of it before it looks."""
    own = authority.issue("registry.example")
    assert own.key_file is not None
    machine.write("/etc/gpu-agent/registry.pem", own.cert_file.read_text())
    machine.write("/etc/gpu-agent/registry.key", own.key_file.read_text(), mode=0o640)
    machine.run("chgrp", "gpu-registry", "/etc/gpu-agent/registry.key")
