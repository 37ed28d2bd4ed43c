"""The registries under test: real processes in three forms, with what may be killed or frozen in each."""

import mmap
import os
import signal
import struct
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass
from functools import partial
from http.client import HTTPException
from pathlib import Path
from typing import Protocol

import psutil

from tests.c_compiler import shared_library
from tests.histories.clients import Address, Api, NotSentError, Request
from tests.histories.network import LOOPBACK, Cut, Host, add_host
from tests.programs import COMMAND, free_port
from tests.programs import Registry as Program
from tests.store.etcd_cluster import Cluster, Member, cluster, free_ports
from tests.waiting import patience

_SHIFT = struct.Struct("q")
CLAIM_TTL_SECONDS = 2.0
"""Of jobs that state none."""
OPTIONS = (
    "--warmup-heartbeat-interval-seconds=0.4",
    "--heartbeat-timeout-seconds=300",
    f"--claim-ttl-seconds={CLAIM_TTL_SECONDS}",
)
ENVIRONMENT = {
    "GPU_REGISTRY_HEALTHY_HEARTBEATS_NEEDED": "1",
    "GPU_REGISTRY_QUEUE_RESERVE_AFTER_SECONDS": "1",
    "GPU_REGISTRY_FLAP_LIMIT": "1000",
}


class WallClock:
    """The wall clock of the processes that are started with `environment`."""

    def __init__(self, folder: Path) -> None:
        library, shift = folder / "wall_clock.so", folder / "wall_clock"
        shared_library([Path(__file__).with_name("wall_clock.c")], library, "-ldl")
        shift.write_bytes(_SHIFT.pack(0))
        with shift.open("r+b") as file:
            self._shift = mmap.mmap(file.fileno(), _SHIFT.size)
        self.environment = {"LD_PRELOAD": str(library), "WALL_CLOCK": str(shift)}

    def set_ahead(self, seconds: float) -> None:
        self._shift[:] = _SHIFT.pack(round(seconds * 1e9))


@dataclass(frozen=True, slots=True)
class Victim:
    """A process that the nemesis may kill or freeze, and whose clock it may set."""

    name: str
    pid: int
    restart: Callable[[], None]
    """Waits for the end of the killed process, and starts the next one where no one else does."""
    clock: WallClock | None = None

    def send(self, number: signal.Signals) -> None:
        with suppress(ProcessLookupError):
            os.kill(self.pid, number)


class Registry(Protocol):
    """A registry of one or several processes."""

    @property
    def api(self) -> Sequence[Address]: ...

    @property
    def node_urls(self) -> Sequence[str]: ...

    def victims(self) -> Sequence[Victim]:
        """Return its processes now, that which decides first."""

    def cuts(self) -> Sequence[Cut]:
        """Return where its network may be cut."""


class OneProcess:
    """`registry serve` on SQLite; with `gateways`, that many processes hold the node connections."""

    def __init__(
        self,
        folder: Path,
        running: ExitStack,
        *,
        gateways: int = 0,
        command: tuple[str, ...] = COMMAND,
    ) -> None:
        self._folder, self._running, self._gateways, self._command = folder, running, gateways, command
        self._node_port, self._operator_port = free_port(), free_port()
        folder.mkdir(exist_ok=True)
        self._clock = WallClock(folder)
        self._process = self._serve()

    @property
    def api(self) -> Sequence[Address]:
        return (("127.0.0.1", self._operator_port),)

    @property
    def node_urls(self) -> Sequence[str]:
        return (f"ws://127.0.0.1:{self._node_port}/ws/node",)

    def victims(self) -> Sequence[Victim]:
        name = "leader" if self._gateways else "registry"
        leader = Victim(name, self._process.pid, self._restart, self._clock)
        return (leader, *self._gateway_victims())

    def cuts(self) -> Sequence[Cut]:
        return ()

    def _gateway_victims(self) -> list[Victim]:
        with suppress(psutil.NoSuchProcess):
            return [
                Victim(f"gateway {child.pid}", child.pid, lambda: None)  # the leader starts the next one
                for child in psutil.Process(self._process.pid).children()
                if "gpu_agent.server.gateway" in child.cmdline()
            ]
        return []

    def _restart(self) -> None:
        await_killed(self._process)
        self._process = self._serve()

    def _serve(self) -> Program:
        program = program_of(self._command)(
            *("--store", f"sqlite://{self._folder / 'state' / 'registry.db'}"),
            *("--state-dir", str(self._folder / "state")),
            *("--gateways", str(self._gateways)),
            *OPTIONS,
            environment={**ENVIRONMENT, **self._clock.environment},
            node_port=self._node_port,
            operator_port=self._operator_port,
        )
        self._running.push(program)  # before it listens: it ends also where it never does
        return program.__enter__()


class ThreeInstances:
    """Three instances of `registry serve` on an etcd cluster of three members.

    All of them are on loopback, or on six `hosts`, the instances first.
    """

    def __init__(
        self,
        folder: Path,
        running: ExitStack,
        *,
        hosts: Sequence[Host] = (LOOPBACK,) * 6,
        command: tuple[str, ...] = COMMAND,
    ) -> None:
        self._command = command
        self._running, self._hosts, self._etcd_hosts = running, hosts[:3], hosts[3:]
        self._etcd: Cluster = running.enter_context(cluster(3, hosts=self._etcd_hosts))
        members = ",".join(f"{host}:{port}" for host, port in self._etcd.access.endpoints)
        self._store = f"etcd://{members}/histories"
        self._ports = [free_ports(3) for _ in range(3)]
        self._folders = [folder / f"instance-{place}" for place in range(3)]
        for one in self._folders:
            one.mkdir()
        self._clocks = [WallClock(one) for one in self._folders]
        self._processes = [self._serve(place) for place in range(3)]

    @property
    def api(self) -> Sequence[Address]:
        return tuple(
            (host.address, operator) for host, (_, operator, _) in zip(self._hosts, self._ports, strict=True)
        )

    @property
    def node_urls(self) -> Sequence[str]:
        return tuple(
            f"ws://{host.address}:{node}/ws/node"
            for host, (node, _, _) in zip(self._hosts, self._ports, strict=True)
        )

    def victims(self) -> Sequence[Victim]:
        instances = [
            Victim(f"instance {place}", one.pid, partial(self._restart, place), self._clocks[place])
            for place, one in enumerate(self._processes)
        ]
        members = [
            Victim(f"etcd {place}", one.process.pid, partial(_restart_member, one))
            for place, one in enumerate(self._etcd.members)
        ]
        leader = instances.pop(self._leader())
        return (leader, *instances, *members)

    def cuts(self) -> Sequence[Cut]:
        """Between the leader and the other instances or etcd, and between the members of etcd."""
        if LOOPBACK in self._hosts:
            return ()
        leader = self._leader()
        host, others = self._hosts[leader], [one for one in self._hosts if one is not self._hosts[leader]]
        first, *rest = self._etcd_hosts
        return (
            Cut(f"the leader {leader} from an instance", [(host, others[0])]),
            Cut(f"the leader {leader} from the other instances", [(host, one) for one in others]),
            Cut(f"the leader {leader} from a member of etcd", [(host, first)]),
            Cut(f"the leader {leader} from etcd", [(host, one) for one in self._etcd_hosts]),
            Cut(f"the leader {leader} from all", [(host, one) for one in (*others, *self._etcd_hosts)]),
            Cut("two members of etcd from each other", [(first, rest[0])]),
            Cut("a member of etcd from the others", [(first, one) for one in rest]),
            Cut(
                "the members of etcd from each other",
                [(first, rest[0]), (first, rest[1]), (rest[0], rest[1])],
            ),
        )

    def _leader(self) -> int:
        """Return which instance leads; the first one where none says so."""
        with closing(Api(timeout_seconds=2.0)) as api:
            for address in self.api:
                with suppress(NotSentError, OSError, HTTPException, ValueError):
                    document = api.ask(address, Request("GET", "/v1/members")).document
                    for one in document.get("members", ()):
                        if one["role"] == "leader":
                            return int(one["name"].rpartition("-")[2])
        return 0

    def _restart(self, place: int) -> None:
        await_killed(self._processes[place])
        self._processes[place] = self._serve(place)

    def _serve(self, place: int) -> Program:
        host, (node, operator, instance) = self._hosts[place], self._ports[place]
        program = program_of((*host.words, *self._command))(
            *("--store", self._store),
            *("--state-dir", str(self._folders[place] / "state")),
            *("--instance-name", f"instance-{place}"),
            *("--node-listen", f"{host.address}:{node}"),
            *("--operator-listen", f"{host.address}:{operator}"),
            *("--instance-listen", f"{host.address}:{instance}"),
            *(() if host is LOOPBACK else ("--insecure-plaintext", "--insecure-no-auth")),
            *OPTIONS,
            environment={**ENVIRONMENT, **self._clocks[place].environment},
        )
        self._running.push(program)  # before it listens: it ends also where it never does
        return program.__enter__()


def program_of(words: tuple[str, ...]) -> type[Program]:
    """Return the program that these words start."""

    class Started(Program):
        command = words

    return Started


def _restart_member(member: Member) -> None:
    member.process.wait(patience(10))
    member.restart()


def await_killed(process: Program) -> None:
    """Wait for the end of a killed process; raises `AssertionError` where it ended by itself before."""
    code = process.wait(patience(10))
    assert code == -signal.SIGKILL, f"ended with {code} by itself: {process.output()}"


FORMS: dict[str, Callable[[Path, ExitStack], Registry]] = {
    "one": OneProcess,
    "gateways": lambda folder, running: OneProcess(folder, running, gateways=2),
    "etcd": ThreeInstances,
    "network": lambda folder, running: ThreeInstances(
        folder, running, hosts=[add_host(number, running) for number in range(6)]
    ),
}
ON_ETCD = ("etcd", "network")
