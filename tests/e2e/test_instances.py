"""Three instances of a registry on three members of etcd, as processes with agents: what they lose."""

import signal
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.programs import Agent, Registry, eventually
from tests.store.etcd_cluster import Cluster, cluster, free_ports
from tests.waiting import patience

NODES = 3
TAKEOVER_SECONDS = 10.0
"""The promise of docs/explanation/scale.md; a busy machine gets more (`tests.waiting`)."""


class Instance(Registry):
    """One instance; its ports stay when it is started again."""

    def __init__(self, etcd: Cluster, prefix: str, name: str, folder: Path) -> None:
        self.name = name
        node_port, operator_port, link_port = free_ports(3)
        members = ",".join(f"127.0.0.1:{port}" for _, port in etcd.access.endpoints)
        super().__init__(
            *("--store", f"etcd://{members}/{prefix}", "--state-dir", str(folder / name)),
            *("--instance-name", name, "--instance-listen", f"127.0.0.1:{link_port}"),
            *("--allow-simulated", "--heartbeat-interval-seconds", "1", "--heartbeat-timeout-seconds", "90"),
            node_port=node_port,
            operator_port=operator_port,
        )

    @property
    def leads(self) -> bool:
        began, ended = (len(self.events(f"leading_{word}")) for word in ("began", "ended"))
        return not self.ended and began > ended


class Fleet:
    """Three instances and their agents."""

    def __init__(self, instances: Sequence[Instance], etcd: Cluster) -> None:
        self.instances, self.etcd = instances, etcd

    @property
    def leader(self) -> Instance:
        return eventually(
            lambda: next((one for one in self.instances if one.leads), None),
            within_seconds=20,
            what="a leader",
        )

    @property
    def standbys(self) -> list[Instance]:
        leader = self.leader
        return [one for one in self.instances if one is not leader and not one.ended]

    def members(self, by: Instance) -> list[tuple[str, str]]:
        return [(one["name"], one["role"]) for one in by.get("/v1/members")["members"]]


@pytest.fixture(scope="module")
def etcd() -> Iterator[Cluster]:
    with cluster(3) as running:
        yield running


@pytest.fixture
def fleet(etcd: Cluster, tmp_path: Path) -> Iterator[Fleet]:
    with ExitStack() as stack:
        instances = [
            stack.enter_context(Instance(etcd, tmp_path.name, name, tmp_path)) for name in ("a", "b", "c")
        ]
        urls = [one.node_url for one in instances]
        for number in range(NODES):
            # Of two each, one of them at random: wherever the leader is, one node is elsewhere.
            listed = ",".join((urls[number], urls[(number + 1) % len(urls)]))
            stack.enter_context(Agent(listed, tmp_path / f"agent-{number}", simulate="1xL4-24GB"))
        found = Fleet(instances, etcd)
        eventually(
            lambda: found.leader.answer("/v1/nodes") is not None,
            within_seconds=20,
            what="the leader's API",
        )
        found.leader.await_ready(NODES, within_seconds=30)
        yield found


def claimed(by: Instance, job_id: str) -> dict[str, Any]:
    """Claim through an instance, until one is granted."""

    def ask() -> dict[str, Any] | None:
        try:
            return by.post("/v1/claims", {"job_id": job_id})
        except OSError:
            return None

    return eventually(ask, within_seconds=20, what=f"a claim for {job_id}")


def claims(by: Instance) -> dict[str, str]:
    return {one["job_id"]: one["claim_id"] for one in by.get("/v1/claims")["claims"]}


def sessions(by: Instance) -> dict[str, int]:
    """The session of each node, once all are connected and ready."""
    found = by.await_ready(NODES, within_seconds=45)
    return {one["node_id"]: by.get(f"/v1/nodes/{one['node_id']}")["session_epoch"] for one in found}


def events(by: Instance) -> list[tuple[int, str]]:
    """All events, by number and identifier."""
    url = f"{by.api}/v1/events?after=0&follow=false"
    with urllib.request.urlopen(url, timeout=patience(10)) as stream:  # noqa: S310 - loopback, ours
        lines = stream.read().decode().splitlines()
    numbers = [int(line.removeprefix("id: ")) for line in lines if line.startswith("id: ")]
    names = [line.removeprefix("event: ") for line in lines if line.startswith("event: ")]
    return list(zip(numbers, names, strict=True))


def nothing_was_lost(by: Instance) -> bool:
    """Whether no node timed out and no claim was lost, and the events have no gap."""
    found = events(by)
    numbers = [number for number, _ in found]
    assert numbers == list(range(numbers[0], numbers[0] + len(numbers)))
    return not {"heartbeat_timeout", "claim_lost"} & {name for _, name in found}


def knows_by_itself(one: Instance, fleet: Fleet) -> bool:
    """Whether an instance names all members and no leader, and of nodes its own alone."""
    members = (one.answer("/v1/members") or {"members": []})["members"]
    return [(each["name"], each["role"], each["nodes"] is None) for each in members] == [
        (each.name, "standby", each is not one) for each in fleet.instances
    ]


def test_every_instance_answers_alike(fleet: Fleet) -> None:
    leader = fleet.leader
    assert sorted(fleet.members(leader)) == sorted(
        (one.name, "leader" if one is leader else "standby") for one in fleet.instances
    )
    for one in fleet.standbys:
        assert fleet.members(one) == fleet.members(leader)
        assert claimed(one, f"job-{one.name}")["job_id"] == f"job-{one.name}"
        assert claims(one) == claims(leader)
        assert one.get("/readyz")["ready"] is True


def test_a_leader_that_is_killed_costs_seconds_and_nothing_else(fleet: Fleet) -> None:
    leader, standbys = fleet.leader, fleet.standbys
    before, granted = sessions(leader), [claimed(one, f"job-{one.name}") for one in fleet.instances]
    seen = events(leader)
    killed_at = time.monotonic()
    leader.send(signal.SIGKILL)
    other = standbys[0]
    eventually(lambda: other.answer("/v1/claims"), within_seconds=TAKEOVER_SECONDS, what="another leader")
    took = time.monotonic() - killed_at
    assert took < patience(TAKEOVER_SECONDS)
    assert claims(other) == {one["job_id"]: one["claim_id"] for one in granted}
    after = sessions(other)
    moved = [node_id for node_id, epoch in after.items() if epoch != before[node_id]]
    assert set(after) == set(before)
    assert len(moved) < NODES
    assert nothing_was_lost(other)
    assert events(other)[: len(seen)] == seen


def test_a_leader_that_was_frozen_answers_nothing_stale_and_follows(fleet: Fleet) -> None:
    frozen, standbys = fleet.leader, fleet.standbys
    frozen.send(signal.SIGSTOP)
    try:
        other = standbys[0]
        claim = claimed(other, "job-while-frozen")
    finally:
        frozen.send(signal.SIGCONT)
    eventually(
        lambda: (frozen.answer("/v1/claims") or {"claims": None})["claims"] is not None,
        within_seconds=20,
        what="its answers",
    )
    assert claims(frozen) == {"job-while-frozen": claim["claim_id"]}
    assert [one.leads for one in fleet.instances].count(True) == 1
    assert not frozen.leads
    assert fleet.members(frozen) == fleet.members(other)
    assert nothing_was_lost(other)


def test_a_leader_that_stops_hands_over_at_once(fleet: Fleet) -> None:
    leader, other = fleet.leader, fleet.standbys[0]
    granted = claimed(other, "job-1")
    leader.end()
    stopped_at = time.monotonic()
    eventually(lambda: other.answer("/v1/claims"), within_seconds=5, what="another leader")
    assert time.monotonic() - stopped_at < patience(5)
    assert claims(other) == {"job-1": granted["claim_id"]}
    assert len(sessions(other)) == NODES


def test_without_etcd_s_quorum_changes_are_refused_and_no_node_times_out(fleet: Fleet) -> None:
    leader = fleet.leader
    before = sessions(leader)
    stopped = [one.process for one in fleet.etcd.members[:2]]
    for process in stopped:
        process.send_signal(signal.SIGSTOP)
    try:
        with pytest.raises(urllib.error.HTTPError, match="503"):
            leader.post("/v1/claims", {"job_id": "job-1"})
        eventually(lambda: leader.answer("/v1/claims") is None, within_seconds=8, what="the end of its lease")
        for one in fleet.instances:
            assert one.answer("/v1/claims") is None
        for one in fleet.instances:
            eventually(
                lambda: knows_by_itself(one, fleet),  # noqa: B023 - called at once
                within_seconds=10,
                what="the members as each knows them by itself",
            )
            said = one.await_event("etcd_failing", within_seconds=15)
            assert "has not answered" in said["problem"]
    finally:
        for process in stopped:
            process.send_signal(signal.SIGCONT)
    eventually(lambda: leader.answer("/v1/claims"), within_seconds=20, what="a leader again")
    assert sessions(leader) == before
    for one in fleet.instances:
        one.await_event("etcd_recovered")
    assert nothing_was_lost(leader)
    assert claimed(leader, "job-1")["job_id"] == "job-1"
