"""Three instances of a registry on three members of etcd, watched by a real Prometheus, and their faults."""

import signal
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from tests.e2e.watched_alerts import SHORTER, Alert, Prometheus, WatchedAlerts, job
from tests.programs import Agent, Registry, eventually
from tests.store.etcd_cluster import Cluster, Member, cluster, free_ports

SOON, LATER = 40.0, 100.0
"""How long an alert may take; and where a window of a minute stands before it."""
_JOB = {"job": "gpu-registry"}
_QUORUM = "etcd loses its quorum (two of three members freeze)"
_ALONE = f"{_QUORUM}: each instance"
_BEHIND = "the member of etcd that a standby reads freezes, and changes go on"
_APART = "a standby is started again with a wrong prefix in `store`"
OFTEN = "the leader is stopped and started again, time after time"


class Seat:
    """One instance, whose ports and state stay when it is started again."""

    def __init__(self, name: str, folder: Path, etcd: Sequence[Member]) -> None:
        """`etcd`: the members that it is told of."""
        self.name = name
        self._folder, self._members = folder / name, ",".join(_text(one) for one in etcd)
        self._ports: list[int] = []
        """For nodes, operators and links, chosen at its first start: what is free may be taken soon."""
        self._process: Registry | None = None

    @property
    def address(self) -> str:
        """Where operators ask it."""
        return f"127.0.0.1:{self._ports[1]}"

    @property
    def registry(self) -> Registry:
        """The process, once it was started."""
        assert self._process is not None
        return self._process

    @property
    def leads(self) -> bool:
        """By its own log."""
        if self._process is None or self._process.ended:
            return False
        began, ended = (len(self.registry.events(f"leading_{word}")) for word in ("began", "ended"))
        return began > ended

    def start(self, *, prefix: str = "fleet") -> None:
        """Start it, now or again."""
        self._ports = self._ports or free_ports(3)
        node_port, operator_port, link_port = self._ports
        self._process = Registry(
            *("--store", f"etcd://{self._members}/{prefix}", "--state-dir", str(self._folder)),
            *("--instance-name", self.name, "--instance-listen", f"127.0.0.1:{link_port}"),
            *("--allow-simulated", "--heartbeat-interval-seconds", "1", "--heartbeat-timeout-seconds", "90"),
            node_port=node_port,
            operator_port=operator_port,
        )
        self._process.__enter__()

    def stop(self) -> None:
        """Stop it as systemd does, if it runs."""
        if self._process is not None:
            self._process.__exit__(None, None, None)


class Instances(WatchedAlerts):
    """The instances, etcd and an agent."""

    def __init__(self, folder: Path, running: ExitStack, shorter: int) -> None:
        self.etcd: Cluster = running.enter_context(cluster(3))
        leads = self.etcd.leader()
        self.followers = [one for one in self.etcd.members if one is not leads]
        by_member = (self.etcd.members, self.etcd.members, self.followers[:1])
        self.seats = [Seat(name, folder, etcd) for name, etcd in zip("abc", by_member, strict=True)]
        for seat in self.seats:
            running.callback(seat.stop)
            seat.start()
            _ = self.leader  # the third is a standby, then
        agent = Agent(self.seats[0].registry.node_url, folder / "agent", simulate="1xL4-24GB")
        running.enter_context(agent)
        self.leader.registry.await_ready(1, within_seconds=SOON)
        of_all = job("gpu-registry", *(one.address for one in self.seats))
        prometheus = Prometheus(folder, of_all, shorter=shorter)
        running.callback(prometheus.end)
        super().__init__(prometheus)

    @property
    def leader(self) -> Seat:
        """The instance that leads, once one does."""
        return eventually(
            lambda: next((one for one in self.seats if one.leads), None),
            within_seconds=SOON,
            what="a leader",
        )

    def await_linked(self) -> None:
        """Until Prometheus sees one leader and all linked to it."""
        eventually(
            lambda: len(self.prometheus.series("gpu_registry_instance_linked == 1")) == len(self.seats),
            within_seconds=SOON,
            what="links of all instances",
        )


@contextmanager
def instances(folder: Path, *, shorter: int = SHORTER) -> Iterator[Instances]:
    """Run all, until they are linked and scraped, and nothing is wrong."""
    with ExitStack() as running:
        fleet = Instances(folder, running, shorter)
        fleet.await_linked()
        eventually(lambda: fleet.prometheus.alerts() == [], within_seconds=SOON, what="no alert")
        yield fleet


def play(fleet: Instances) -> None:
    """Inject each fault, wait for its alert, and for the end of both, but for that of `OFTEN`."""
    _fall_behind(fleet)
    _lose_quorum(fleet)
    _lead_apart(fleet)
    _change_often(fleet)


def let_be(fleet: Instances) -> None:
    """Change no leader any more, until the last alert is gone: its rule looks back for a minute here."""
    fleet.fix(OFTEN, end=lambda: None, within_seconds=LATER)


def _fall_behind(fleet: Instances) -> None:
    standby, (member, _) = fleet.seats[2], fleet.followers

    def freeze() -> None:
        member.process.send_signal(signal.SIGSTOP)
        fleet.leader.registry.post("/v1/claims", {"job_id": "not-in-the-copy"})

    fleet.inject(_BEHIND, Alert("RegistryInstanceBehind", {"instance": standby.address}), freeze)
    try:
        fleet.watch(within_seconds=SOON)
    finally:
        fleet.fix(_BEHIND, end=lambda: member.process.send_signal(signal.SIGCONT), within_seconds=SOON)
    fleet.await_linked()


def _lose_quorum(fleet: Instances) -> None:
    lost = [one.process for one in fleet.followers]

    def freeze() -> None:
        for process in lost:
            process.send_signal(signal.SIGSTOP)

    def thaw() -> None:
        for process in lost:
            process.send_signal(signal.SIGCONT)

    fleet.inject(_QUORUM, Alert("RegistryHasNoLeader", _JOB), freeze)
    fleet.inject(_ALONE, Alert("RegistryInstanceAlone", _JOB))
    try:
        fleet.watch(within_seconds=SOON)
    finally:
        fleet.fix(_QUORUM, _ALONE, end=thaw, within_seconds=SOON)
    fleet.await_linked()


def _lead_apart(fleet: Instances) -> None:
    standby = next(one for one in fleet.seats if one is not fleet.leader)
    standby.stop()
    fleet.inject(
        _APART, Alert("RegistryHasSeveralLeaders", _JOB), lambda: standby.start(prefix="another-fleet")
    )
    fleet.watch(within_seconds=SOON)
    fleet.fix(_APART, end=standby.stop, within_seconds=SOON)
    standby.start()
    fleet.await_linked()


def _change_often(fleet: Instances) -> None:
    fleet.inject(OFTEN, Alert("RegistryLeaderChangesOften", _JOB))
    for _ in range(5):
        before = fleet.leader
        before.stop()
        _ = fleet.leader
        before.start()
    fleet.watch(within_seconds=SOON)
    fleet.await_linked()


def _text(member: Member) -> str:
    host, port = member.endpoint
    return f"{host}:{port}"
