"""`docs/tutorial/two-machines.md` is right word for word: its commands run on two machines with a network."""

import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.documents import page
from tests.nvml_fake.build import build
from tests.nvml_fake.control import FakeNvml
from tests.system.machine import Machine
from tests.system.network import network
from tests.system.packages import CURRENT, built
from tests.system.roots import NoRootError, debian
from tests.system.test_three_machines import FROM_THE_DISTRIBUTION, bring_packages

pytestmark = pytest.mark.timeout(900)

SUITE = "trixie"
BLOCKS = re.findall(r"```sh\n# (on .*)\n((?:.*\n)*?)```", page("two-machines.md"))
REGISTRY, GPU = 1, 2
DRIVER = "LD_LIBRARY_PATH=/srv/library NVML_FAKE_CONTROL=/srv/driver/nvml-fake.control"
"""Where the stand-in for NVIDIA's driver is; a true one needs no such thing."""


class Site:
    """Both machines, and the page's blocks in their order."""

    def __init__(self, machines: Mapping[int, Machine]) -> None:
        self.machines = machines
        self._blocks = iter(BLOCKS)

    def follow(self, where: str, *words: str, check: bool = True) -> str:
        """Run the next block, which must be this one, where it says; what it prints."""
        stated, commands = next(self._blocks)
        assert stated == where, commands
        assert all(word in commands for word in words), commands
        number = GPU if "GPU machine" in where else REGISTRY
        shell = ("env", *DRIVER.split(), "sh", "-e", "-c", commands)
        return self.machines[number].run(*shell, within_seconds=240, check=check).stdout

    def bring(self, name: str) -> None:
        """As `scp` does."""
        source = self.machines[REGISTRY].path(name)
        shutil.copy(source, self.machines[GPU].path(f"/root/{source.name}"))

    def is_at_the_end(self) -> bool:
        return next(self._blocks, None) is None


@pytest.fixture
def site(obstacle: str | None, tmp_path: Path) -> Iterator[Site]:
    if obstacle is not None:
        pytest.skip(obstacle)
    if shutil.which("ip") is None:
        pytest.skip("the program ip is missing: apt-get install -y iproute2")
    try:
        root = debian(SUITE, *FROM_THE_DISTRIBUTION)
    except NoRootError as error:
        pytest.skip(str(error))
    (driver := tmp_path / "driver").mkdir()
    FakeNvml(driver, gpus=1)
    shared = {
        "/srv/library": build(tmp_path / "library"),
        "/srv/driver": driver,
        "/srv/packages": built(CURRENT),
    }
    with ExitStack() as stack:
        machines = {}
        for number in (REGISTRY, GPU):
            (scratch := tmp_path / f"machine-{number}").mkdir()
            machines[number] = stack.enter_context(Machine(root, scratch, shared=shared))
            bring_packages(machines[number], "/srv/packages")
        stack.enter_context(network(machines))
        yield Site(machines)


def test_every_command_of_the_page(site: Site) -> None:
    site.follow("on the registry's machine", "apt-get install")
    site.follow("on the registry's machine", "gpu-agent registry")
    site.follow("on the registry's machine", "openssl req")
    site.follow("on the registry's machine", "registry.toml", "systemctl restart")
    site.follow("on the registry's machine", "token create")
    site.bring("/root/join-token")
    site.bring("/root/authority/ca.pem")

    site.machines[GPU].write(
        "/etc/systemd/system/gpu-agent.service.d/driver.conf", f"[Service]\nEnvironment={DRIVER}\n"
    )
    site.follow("on the GPU machine", "agent.toml")
    said = site.follow("on the GPU machine, to see that all is well", "doctor", check=False)
    lines = [line.split(maxsplit=1) for line in said.splitlines() if line[:1].isupper()]
    way = [line for word, line in (pair for pair in lines if len(pair) == 2) if word == "OK"]
    for step in ("DNS", "TCP", "TLS", "WebSocket"):
        assert any(line.startswith(step) for line in way), said
    site.follow("on the GPU machine", "enable --now")
    machine = site.machines[GPU]
    machine.until(
        lambda: "ready" in machine.run("gpu-agent", "status", check=False).stdout,
        within_seconds=60,
        what="a node that is ready",
    )
    said = site.follow("on the GPU machine, within some seconds", "status")
    assert "wss://registry.example:8080" in said
    assert "ready" in site.follow("on the registry's machine", "gpu-agent registry")
    assert site.is_at_the_end()
