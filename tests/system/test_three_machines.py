"""`docs/howto/three-machines.md` is right word for word: its commands run on four machines with a network."""

import json
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.nvml_fake.build import build
from tests.nvml_fake.control import FakeNvml
from tests.system.machine import Machine
from tests.system.network import network
from tests.system.packages import CURRENT, NEXT, ROOT, built
from tests.system.roots import NoRootError, debian

pytestmark = pytest.mark.timeout(1500)

SUITE = "trixie"
FROM_THE_DISTRIBUTION = ("etcd-server", "etcd-client", "haproxy", "openssl")
"""What the page has apt install, which finds it there already: these machines reach no mirror."""
PAGE = (ROOT / "docs" / "howto" / "three-machines.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```sh\n# (on .*)\n((?:.*\n)*?)```", PAGE)
EACH = "on each registry machine"
STARTS_THE_OTHERS = next(block for block in BLOCKS if block[0] == "on registry-2 and registry-3")
THREE = (1, 2, 3)
GPU, BALANCER = 4, 5
CERTIFICATES = 3
"""Of a registry machine: its ports', that of its links, and the one that it shows to etcd."""
ALICE = "/root/alice.token"
_DRIVER = """\
[Service]
Environment=LD_LIBRARY_PATH=/srv/library NVML_FAKE_CONTROL=/srv/driver/nvml-fake.control
"""


class Site:
    """The machines by their numbers, and the page's blocks in their order."""

    def __init__(self, machines: Mapping[int, Machine]) -> None:
        self.machines = machines
        self._blocks = iter(BLOCKS)

    def follow(self, where: str, words: str, *, on: tuple[int, ...]) -> list[str]:
        """Run the next block, which must be this one, on these machines; what it prints on each."""
        commands = self.next_block(where)
        assert words in commands
        return [self.run(commands, number) for number in on]

    def next_block(self, where: str) -> str:
        stated, commands = next(self._blocks)
        assert stated == where, commands
        return str(commands)

    def is_at_the_end(self) -> bool:
        return next(self._blocks, None) is None

    def await_first_leader(self) -> None:
        """The operator's token is there, and found by root's commands."""
        words = ("gpu-agent", "registry", "members")
        self.machines[1].until(
            lambda: "leader" in self.machines[1].run(*words, check=False).stdout,
            within_seconds=60,
            what="a leader",
        )

    def members(self, number: int, *, by: str = ALICE) -> dict[str, str]:
        """By name, what role each instance has, asked on one machine with the operator's token."""
        words = ("gpu-agent", "registry", "members", "--json", "--token-file", by)
        done = self.machines[number].run(*words, check=False)
        found = json.loads(done.stdout)["members"] if done.returncode == 0 else []
        return {one["name"]: one["role"] for one in found if one["nodes"] is not None}

    def await_members(self, count: int, *, on: int, by: str = ALICE) -> None:
        def look() -> bool:
            found = self.members(on, by=by)
            return len(found) == count and list(found.values()).count("leader") == 1

        self.machines[on].until(look, within_seconds=60, what=f"{count} members and a leader")

    def await_node(self, *, on: int) -> None:
        words = ("gpu-agent", "registry", "node", "list", "--json", "--token-file", ALICE)

        def look() -> bool:
            done = self.machines[on].run(*words, check=False)
            nodes = json.loads(done.stdout)["nodes"] if done.returncode == 0 else []
            return [(one["status"], one["connected"]) for one in nodes] == [("ready", True)]

        self.machines[on].until(look, within_seconds=90, what="a node that is ready")

    def copy(self, name: str, origin: int, target: int, to: str = "") -> None:
        """As `scp` does."""
        found = self.machines[origin].path(name)
        goes = self.machines[target].path(to or name)
        if found.is_dir():
            shutil.copytree(found, goes)
        else:
            shutil.copy(found, goes)

    def run(self, commands: str, number: int) -> str:
        return self.machines[number].run(*_shell(commands, number), within_seconds=240).stdout

    def run_once_it_can(self, commands: str, number: int) -> None:
        self.machines[number].until(
            lambda: self.machines[number].run(*_shell(commands, number), check=False).returncode == 0,
            within_seconds=30,
            what=commands,
        )


def _shell(commands: str, number: int) -> tuple[str, ...]:
    """As root types them on that machine."""
    return "env", f"n={number}", "sh", "-e", "-c", commands.replace("n=1 ", f"n={number} ", 1)


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
    shared = {"/srv/library": build(tmp_path / "library"), "/srv/driver": driver}
    shared |= {"/srv/packages": built(CURRENT), "/srv/next": built(NEXT)}
    with ExitStack() as stack:
        machines = {}
        for number in (*THREE, GPU, BALANCER):
            (scratch := tmp_path / f"machine-{number}").mkdir()
            machines[number] = stack.enter_context(Machine(root, scratch, shared=shared))
            bring_packages(machines[number], "/srv/packages")
        stack.enter_context(network(machines))
        yield Site(machines)


def bring_packages(machine: Machine, folder: str) -> None:
    machine.run("sh", "-c", f"rm -f /root/*.deb; cp {folder}/*.deb /root/")


def test_every_command_of_the_page(site: Site) -> None:
    set_up(site)
    let_a_node_join(site)
    lose_machines(site)
    upgrade(site)
    restore(site)
    renew(site)
    put_a_balancer_before_them(site)
    assert site.is_at_the_end()


def set_up(site: Site) -> None:
    site.follow(EACH, "apt-get install", on=THREE)
    site.follow(EACH, "systemctl stop", on=THREE)
    site.follow("on registry-1", "-out $name-ca.pem", on=(1,))
    site.follow("on registry-1", "-out registry-$n", on=(1,))
    for number in THREE:
        bring_certificates(site, number)
    site.follow(EACH, "install -m 0640", on=THREE)
    site.follow(EACH, "ETCD_NAME", on=THREE)
    (health,) = site.follow("on registry-1", "endpoint health", on=(1,))
    assert health.count("is healthy") == 3

    site.follow(EACH, "registry.toml", on=THREE)
    site.follow("on registry-1", "enable --now", on=(1,))
    site.await_first_leader()
    (alone,) = site.follow("on registry-1, until it says that this one leads", "members", on=(1,))
    assert members_in(alone) == {"registry-1": "leader"}
    site.follow("on registry-2 and registry-3", "enable --now", on=(2, 3))
    site.await_members(3, on=1, by="/var/lib/gpu-registry/operator.token")
    for words in ("members", "token create --operator"):
        (listed,) = site.follow("on registry-1", words, on=(1,))
        assert members_in(listed) == {
            "registry-1": "leader",
            "registry-2": "standby",
            "registry-3": "standby",
        }
    for number in (2, 3):
        site.copy(ALICE, 1, number)


def bring_certificates(site: Site, number: int) -> None:
    site.copy(f"/root/authorities/registry-{number}", 1, number, "/root/certificates")


def let_a_node_join(site: Site) -> None:
    site.follow("on registry-1", "token create --uses", on=(1,))
    site.copy("/root/join-token", 1, GPU)
    site.copy("/root/authorities/registry-ca.pem", 1, GPU, "/root/registry-ca.pem")
    site.machines[GPU].write("/etc/systemd/system/gpu-agent.service.d/driver.conf", _DRIVER)
    (said,) = site.follow("on a GPU machine", "gpu-agent status", on=(GPU,))
    assert "registry-" in said
    site.await_node(on=1)
    (nodes,) = site.follow("on registry-1", "registry node list", on=(1,))
    assert "ready" in nodes


def lose_machines(site: Site) -> None:
    """One that is stopped and comes back, and one that is lost for good."""
    site.follow("on registry-1", "systemctl stop etcd", on=(1,))
    site.await_members(2, on=2)
    (said,) = site.follow("on registry-2", "registry node list", on=(2,))
    assert sorted(members_in(said).values()) == ["leader", "standby"]
    site.await_node(on=2)
    site.follow("on registry-1", "systemctl start etcd", on=(1,))
    site.await_members(3, on=2)

    gone = "systemctl stop gpu-registry etcd; rm -rf /var/lib/etcd/* /var/lib/gpu-registry/* /etc/etcd"
    site.machines[3].run("sh", "-c", gone)
    site.follow("on registry-2, before registry-3 is replaced", "member remove", on=(2,))
    site.run_once_it_can(
        site.next_block("on registry-2, once the other two members have been connected for 5 s"), 2
    )
    setting = site.next_block("on registry-3, fresh, before step 3")
    bring_certificates(site, 3)
    for where, commands in BLOCKS[: BLOCKS.index(STARTS_THE_OTHERS) + 1]:
        if where in {EACH, STARTS_THE_OTHERS[0]}:
            site.run(setting + commands, 3)
    site.await_members(3, on=1)


def upgrade(site: Site) -> None:
    for number in THREE:
        bring_packages(site.machines[number], "/srv/next")
    roles = site.members(1)
    commands = site.next_block(f"{EACH}, one after the other")
    for number in sorted(THREE, key=lambda number: roles[f"registry-{number}"] == "leader"):
        site.run(commands, number)
        site.await_members(3, on=number)
    site.await_node(on=2)


def restore(site: Site) -> None:
    site.follow("on registry-2", "registry backup", on=(2,))
    site.follow(f"{EACH}, to restore", "systemctl stop", on=THREE)
    site.follow("on registry-2", "registry restore", on=(2,))
    site.follow(f"{EACH}, to go on", "systemctl start", on=THREE)
    site.await_members(3, on=1)
    site.await_node(on=3)


def renew(site: Site) -> None:
    site.run(block_with("-out registry-$n"), 1)
    for number in THREE:
        bring_certificates(site, number)
        site.run(block_with("install -m 0640"), number)
    look = site.next_block(f"{EACH}, to see that it took the new ones")
    for number in THREE:
        machine = site.machines[number]

        def loaded(machine: Machine = machine) -> bool:
            said = machine.run("sh", "-c", look, check=False).stdout
            return said.count("certificate_loaded") >= CERTIFICATES

        machine.until(loaded, within_seconds=60, what=f"renewed certificates on {number}")
    site.await_members(3, on=1)
    site.await_node(on=1)


def block_with(words: str) -> str:
    return str(next(commands for _, commands in BLOCKS if words in commands))


def put_a_balancer_before_them(site: Site) -> None:
    machine = site.machines[GPU]
    site.copy("/root/authorities/registry-ca.pem", 1, BALANCER, "/root/registry-ca.pem")
    site.follow("on the balancer", "haproxy -c", on=(BALANCER,))
    machine.run("sh", "-c", f"echo 10.0.0.{BALANCER} registry.example >> /etc/hosts")
    settings = "/etc/gpu-agent/agent.toml"
    toml = machine.path(settings).read_text(encoding="utf-8")
    (one_url,) = re.findall(r"Agents then name\s`(registry_urls = .*?)`", PAGE)
    machine.write(settings, re.sub(r"registry_urls = .*", one_url, toml))
    machine.run("systemctl", "restart", "gpu-agent")

    def is_connected() -> bool:
        said = machine.run("gpu-agent", "status", "--json", check=False).stdout
        return "wss://registry.example:8080" in said and "registry-1.example" not in said

    machine.until(is_connected, within_seconds=30, what="an agent that uses the balancer")
    site.await_node(on=1)
    site.copy(ALICE, 1, GPU)
    asked = ("--server", "https://registry.example:8081", "--tls-ca-file", "/root/registry-ca.pem")
    said = machine.run("gpu-agent", "registry", "node", "list", *asked, "--token-file", ALICE).stdout
    assert "ready" in said


def members_in(said: str) -> dict[str, str]:
    """What a table of members says: names and roles."""
    return dict(re.findall(r"(?m)^(registry-\d) +(\w+)", said))
