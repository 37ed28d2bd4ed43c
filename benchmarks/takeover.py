"""Three instances of a registry behind haproxy, on three members of etcd: what a loss costs a large fleet.

    python benchmarks/takeover.py [--nodes 8000] [--quorum-seconds 60] [--check]

Starts all of them on loopback, and processes full of nodes (`benchmarks/load/`) that connect through haproxy,
with tokens and the agent's rhythm. Then it kills, one after another: the leader, a gateway (a standby), the
leader of etcd; and takes etcd's quorum away for a while. Printed are the seconds until the next change is
accepted and until all nodes are ready and connected again, the parts of each takeover, and how many nodes and
claims were given up, which must be none.

haproxy and the instances hold a file for each connection, haproxy two: `ulimit -n`. Everything runs on this
machine and disturbs what is measured: watch the load, which is printed. `--check` ends with 1 when anything
is missed. Linux only; apt-get install -y etcd-server haproxy.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # it is run as a file

from benchmarks.load.node import STABLE_SECONDS
from benchmarks.load.processes import Generators, RegistryProcess
from benchmarks.load.sockets import allow_sockets
from benchmarks.load.verdicts import Table
from tests.store.etcd_cluster import Cluster, cluster, free_ports

REGISTRATIONS_PER_SECOND = 80
"""Nodes that come first; all programs share the machine."""
USES_PER_NODE = 3
"""Of a join token: a registration whose answer is late holds one until another needs it."""
READY_SECONDS = 300.0
TAKEOVER_SECONDS, GATEWAY_SECONDS, PAUSE_SECONDS = 10.0, 45.0, 3.0
CLAIMS = 100
LOOK_SECONDS = 0.1
COUNT_SECONDS = 1.0
"""How often the fleet is counted: a scrape looks at all nodes; ten a second took a third of a leader."""
GIVEN_UP = ("heartbeat_timeout", "claim_lost")
CONFIGURATION = """
global
    maxconn {most}
defaults
    mode tcp
    timeout connect 2s
    timeout client 5m
    timeout server 5m
    timeout check 3s
    option redispatch 1
frontend nodes
    bind 127.0.0.1:{port} tcp-ut 20s
    default_backend instances
backend instances
    balance leastconn
    option httpchk
    http-check send meth GET uri /readyz ver HTTP/1.1 hdr Host 127.0.0.1
    default-server check inter 1s fall 3 on-marked-down shutdown-sessions tcp-ut 20s
{servers}
"""


class Front:
    """The instances, and the one address that nodes know."""

    def __init__(self, instances: list[RegistryProcess], node_port: int, token: str) -> None:
        self.instances, self.node_port, self._token = instances, node_port, token
        self.asks_for_tokens = True
        self._given_up: Counter[str] = Counter()

    def join_token(self, uses: int) -> str:
        """Have a token made by which so many nodes may join."""
        made = self.ask(self.instances[0], "/v1/tokens", {"kind": "join", "uses": uses * USES_PER_NODE})
        return str(made["token"])

    def ask(
        self, one: RegistryProcess, path: str, body: object = None, *, seconds: float = 30.0
    ) -> dict[str, Any]:
        """Ask an instance; raises `OSError`."""
        document: dict[str, Any] = json.loads(self._read(one, path, body, seconds=seconds))
        return document

    def open_nodes(self, one: RegistryProcess) -> int:
        """Return how many nodes are ready and connected, by the leader; 0 where it does not answer."""
        with suppress(OSError):
            for line in self._read(one, "/metrics", None, seconds=5.0).splitlines():
                if line.startswith("gpu_registry_nodes_open "):
                    return int(float(line.split()[1]))
        return 0

    def leader(self) -> RegistryProcess | None:
        """Return the instance that leads now."""
        with suppress(OSError):
            for one in self.running():
                for member in self.ask(one, "/v1/members", seconds=2.0)["members"]:
                    if member["role"] == "leader":
                        return self.instances[int(member["name"])]
        return None

    def running(self) -> list[RegistryProcess]:
        """Return the instances that run."""
        return [one for one in self.instances if one.is_running]

    def claim(self, job_id: str, *, seconds: float = 3.0) -> bool:
        """Claim at any instance; returns whether it was granted."""
        for one in self.running():
            with suppress(OSError):
                found = self.ask(one, "/v1/claims", {"job_id": job_id}, seconds=seconds)
                return found.get("claim_id") is not None
        return False

    def kill(self, one: RegistryProcess) -> None:
        """Kill an instance; what it has said counts."""
        one.kill()
        self._given_up += Counter({what: one.log.count(what) for what in GIVEN_UP})

    def given_up(self) -> str:
        """Say how many nodes and claims were given up so far; empty where none."""
        now = Counter({what: sum(one.log.count(what) for one in self.running()) for what in GIVEN_UP})
        return ", ".join(f"{what} {count}" for what, count in (now + self._given_up).items())

    def _read(self, one: RegistryProcess, path: str, body: object, *, seconds: float) -> str:
        request = urllib.request.Request(
            f"http://127.0.0.1:{one.operator_port}{path}",
            data=None if body is None else json.dumps(body).encode(),
            headers={"Content-Type": "application/json", "Authorization": f"Bearer {self._token}"},
        )
        with urllib.request.urlopen(request, timeout=seconds) as answer:  # noqa: S310 - ours
            text: str = answer.read().decode()
            return text


def main() -> int:
    """Run all phases and print what came of them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--nodes", type=int, default=8000)
    parser.add_argument("--gpus", type=int, default=8, help="figures in each heartbeat")
    parser.add_argument("--processes", type=int, default=2, help="of nodes")
    parser.add_argument("--quorum-seconds", type=float, default=60.0, help="how long etcd has no quorum")
    parser.add_argument("--check", action="store_true", help="exit 1 when anything is missed")
    arguments = parser.parse_args()
    missing = [name for name in ("etcd", "haproxy") if shutil.which(name) is None]
    if missing:
        print(f"missing: {', '.join(missing)}; apt-get install -y etcd-server haproxy")
        return 1
    allow_sockets(2 * arguments.nodes)
    load = " ".join(f"{one:.1f}" for one in os.getloadavg())
    print(f"{arguments.nodes} nodes, {arguments.gpus} GPUs each, {os.cpu_count()} cores, load before {load}")
    table = Table()
    with ExitStack() as running:
        etcd = running.enter_context(cluster(3))
        front = running.enter_context(_front(etcd, most=arguments.nodes + 500))
        fleet = running.enter_context(
            Generators(front, gpus=arguments.gpus, startup_seconds=arguments.nodes / REGISTRATIONS_PER_SECOND)
        )
        for _ in range(arguments.processes):
            fleet.start(arguments.nodes // arguments.processes)
        nodes = arguments.nodes // arguments.processes * arguments.processes
        fleet.await_ready(nodes, within_seconds=READY_SECONDS)
        _await_fleet(front, nodes)
        for number in range(CLAIMS):
            front.claim(f"held-{number}")
        time.sleep(STABLE_SECONDS)  # from then on a node's next loss is its first again
        _kill_leader(front, nodes, table)
        time.sleep(STABLE_SECONDS)
        _kill_gateway(front, nodes, table)
        _kill_etcd_leader(etcd, front, table)
        _lose_quorum(etcd, front, table, nodes=nodes, seconds=arguments.quorum_seconds)
        table.check("no node and no claim was given up", not front.given_up(), front.given_up())
        held = front.ask(front.running()[0], "/v1/claims")["claims"]
        jobs = {one["job_id"] for one in held}
        lost = sum(f"held-{number}" not in jobs for number in range(CLAIMS))
        table.check("every acknowledged claim is there", lost == 0, f"{lost} of {CLAIMS} lost")
        table.fact("what the nodes met", fleet.happened())
    return 0 if table.met or not arguments.check else 1


def _kill_leader(front: Front, nodes: int, table: Table) -> None:
    table.begin("the leader is killed")
    victim = _leader(front)
    held = _held(front, victim)
    began = time.monotonic()
    front.kill(victim)
    accepted, ready = _recovery(front, nodes, began, job="after-leader")
    table.check("the next change is accepted", accepted <= TAKEOVER_SECONDS, f"{accepted:.1f} s")
    table.check(f"its {held} nodes ready elsewhere", ready <= GATEWAY_SECONDS, f"{ready:.1f} s")
    table.fact("the takeover", _parts(_leader(front), began))
    _bring_back(front, victim)


def _kill_gateway(front: Front, nodes: int, table: Table) -> None:
    table.begin("a gateway is killed")
    leader = _leader(front)
    victim = max((one for one in front.running() if one is not leader), key=lambda one: _held(front, one))
    held = _held(front, victim)
    began = time.monotonic()
    front.kill(victim)
    _, ready = _recovery(front, nodes, began, job="after-gateway")
    table.check(f"its {held} nodes ready elsewhere", ready <= GATEWAY_SECONDS, f"{ready:.1f} s")
    _bring_back(front, victim)


def _kill_etcd_leader(etcd: Cluster, front: Front, table: Table) -> None:
    table.begin("etcd's leader is killed")
    member = etcd.leader()
    member.kill()
    longest, ends, number = 0.0, time.monotonic() + 8.0, 0
    while time.monotonic() < ends:
        began = time.monotonic()
        while not front.claim(f"pause-{number}"):
            number += 1
        number += 1
        longest = max(longest, time.monotonic() - began)
        time.sleep(LOOK_SECONDS)
    table.check("the longest pause of changes", longest <= PAUSE_SECONDS, f"{longest:.1f} s")
    member.restart()
    etcd.wait()


def _lose_quorum(etcd: Cluster, front: Front, table: Table, *, nodes: int, seconds: float) -> None:
    table.begin(f"etcd has no quorum for {seconds:g} s")
    lost = etcd.members[:2]
    for one in lost:
        one.kill()
    time.sleep(seconds)
    began = time.monotonic()
    for one in lost:
        one.restart()
    accepted, ready = _recovery(front, nodes, began, job="after-quorum")
    table.check("the next change is accepted", accepted <= TAKEOVER_SECONDS, f"{accepted:.1f} s")
    table.check("all nodes ready", ready <= GATEWAY_SECONDS, f"{ready:.1f} s")
    table.fact("the takeover", _parts(_leader(front), began))


def _recovery(front: Front, nodes: int, began: float, *, job: str) -> tuple[float, float]:
    """Return the seconds until a change is accepted, and until all nodes are ready and connected."""
    number = 0
    while not front.claim(f"{job}-{number}", seconds=1.0):
        number += 1
        time.sleep(LOOK_SECONDS)
        if time.monotonic() - began > READY_SECONDS:
            raise SystemExit("no change is accepted any more")
    accepted = time.monotonic() - began
    _await_fleet(front, nodes)
    return accepted, time.monotonic() - began


def _parts(leader: RegistryProcess, began: float) -> str:
    said = leader.log.last["leading_began"]
    at = leader.log.last_at["leading_began"] - began
    copy, restore = said["copy_seconds"], said["restore_seconds"]
    sessions = max(leader.log.last_at.get("gateway_linked", 0.0) - began - at, 0.0)
    return (
        f"lease and store {at - copy - restore:.1f} s, copy {copy:.1f} s, restore {restore:.1f} s, "
        f"links of gateways {sessions:.1f} s"
    )


def _ready(front: Front, nodes: int) -> bool:
    leader = front.leader()
    return leader is not None and front.open_nodes(leader) >= nodes


def _leader(front: Front) -> RegistryProcess:
    _await(lambda: front.leader() is not None, 60.0, "a leader")
    leader = front.leader()
    assert leader is not None  # noqa: S101 - it was awaited
    return leader


def _held(front: Front, one: RegistryProcess) -> int:
    members = front.ask(one, "/v1/members")["members"]
    return next(int(member["nodes"]) for member in members if front.instances[int(member["name"])] is one)


def _bring_back(front: Front, one: RegistryProcess) -> None:
    one.start()
    _await(lambda: _answers(front, one), 60.0, "the instance that was killed")


def _answers(front: Front, one: RegistryProcess) -> bool:
    with suppress(OSError):
        return bool(front.ask(one, "/readyz", seconds=2.0)["ready"])
    return False


def _await_fleet(front: Front, nodes: int) -> None:
    _await(lambda: _ready(front, nodes), READY_SECONDS, "all nodes ready", every_seconds=COUNT_SECONDS)


def _await(
    true: Callable[[], bool], seconds: float, what: str, *, every_seconds: float = LOOK_SECONDS
) -> None:
    ends = time.monotonic() + seconds
    while not true():
        if time.monotonic() > ends:
            raise SystemExit(f"not within {seconds:g} s: {what}")
        time.sleep(every_seconds)


@contextmanager
def _front(etcd: Cluster, *, most: int) -> Iterator[Front]:
    members = ",".join(f"{host}:{port}" for host, port in etcd.access.endpoints)
    with ExitStack() as running:
        folder = Path(running.enter_context(tempfile.TemporaryDirectory()))
        instances = []
        for number, link_port in enumerate(free_ports(3)):
            options = [
                *("--store", f"etcd://{members}/takeover", "--instance-name", str(number)),
                *("--instance-listen", f"127.0.0.1:{link_port}", "--claim-ttl-seconds", "3600"),
            ]
            one = RegistryProcess(options, state_dir=folder / str(number), measured_every_seconds=10.0)
            instances.append(running.enter_context(one))
            if number == 0:  # the first leader makes the operator token
                _await((folder / "0" / "operator.token").exists, 60.0, "the operator token")
        (port,) = free_ports(1)
        servers = "\n".join(
            f"    server {at} 127.0.0.1:{one.node_port} port {one.operator_port}"
            for at, one in enumerate(instances)
        )
        configuration = folder / "haproxy.cfg"
        configuration.write_text(CONFIGURATION.format(most=most, port=port, servers=servers))
        balancer = subprocess.Popen(["haproxy", "-db", "-f", str(configuration)], stderr=subprocess.DEVNULL)
        running.callback(balancer.wait)
        running.callback(balancer.kill)
        token = (folder / "0" / "operator.token").read_text().strip()
        front = Front(instances, port, token)
        for one in instances:
            _await(lambda one=one: _answers(front, one), 60.0, "an instance")  # type: ignore[misc]
        yield front


if __name__ == "__main__":
    sys.exit(main())
