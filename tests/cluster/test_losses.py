"""Each line of "What fails" in docs/explanation/scale.md, provoked on processes in networks of their own.

`CLUSTER_FULL=1` freezes for 1, 5 and 30 s and takes the quorum away for 60 s; else it is shorter.
"""

import os
import signal
import threading
import time
import urllib.error
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager, suppress

import pytest

from gpu_agent.store.etcd.client import Delete, EtcdClient, Put, RefusedError
from tests.cluster.conftest import Measure
from tests.cluster.machines import Cluster, Instance, etcd_followers, stopwatch
from tests.programs import eventually
from tests.store.etcd_cluster import Member
from tests.waiting import patience

FULL = bool(os.environ.get("CLUSTER_FULL"))
FREEZES = (1.0, 5.0, 30.0) if FULL else (1.0, 9.0)
WITHOUT_QUORUM_SECONDS = 60.0 if FULL else 12.0
TAKEOVER_SECONDS, PAUSE_SECONDS = 10.0, 3.0
GATEWAY_SECONDS, MACHINE_SECONDS, CUT_OFF_SECONDS = 45.0, 60.0, 45.0


def test_a_gateway_is_killed(cluster: Cluster, measured: Measure) -> None:
    cluster.spread()
    leader, victim = cluster.await_leader(), cluster.standbys[0]
    held, before = cluster.held(leader)[cluster.name(victim)], cluster.await_whole()
    granted = {"job": cluster.claimed(victim, "job")}
    with stopwatch() as passed:
        victim.kill()
        after = moved(cluster, leader, before, held, within_seconds=GATEWAY_SECONDS)
        measured(f"a gateway killed: its {held} nodes ready elsewhere", passed(), GATEWAY_SECONDS)
    assert after.keys() == before.keys()
    cluster.restart(victim)
    cluster.nothing_was_lost(leader, granted)


def test_the_leader_is_killed(cluster: Cluster, measured: Measure) -> None:
    cluster.spread()
    victim, before = cluster.await_leader(), cluster.await_whole()
    held, seen = cluster.held(victim)[cluster.name(victim)], cluster.events(victim)
    granted = {f"job-{at}": cluster.claimed(one, f"job-{at}") for at, one in enumerate(cluster.instances)}
    with stopwatch() as passed:
        victim.kill()
        other = cluster.standbys[0]
        granted["later"] = cluster.claimed(other, "later", within_seconds=TAKEOVER_SECONDS)
        measured("the leader killed: the next change accepted", passed(), TAKEOVER_SECONDS)
        after = moved(cluster, other, before, held, within_seconds=GATEWAY_SECONDS)
        measured(f"the leader killed: its {held} nodes ready elsewhere", passed(), GATEWAY_SECONDS)
    assert after.keys() == before.keys()
    cluster.restart(victim)
    cluster.nothing_was_lost(other, granted)
    assert cluster.events(other)[: len(seen)] == seen


@pytest.mark.parametrize("seconds", FREEZES)
def test_the_leader_is_frozen(cluster: Cluster, measured: Measure, seconds: float) -> None:
    frozen = cluster.await_leader()
    other = cluster.standbys[0]
    granted = {"before": cluster.claimed(frozen, "before")}
    answers: list[dict[str, str] | None] = []
    asking = threading.Thread(
        target=lambda: answers.append(claims_after(cluster, frozen, seconds + patience(20)))
    )
    with stopwatch() as passed:
        frozen.send(signal.SIGSTOP)
        asking.start()  # its answer waits until the process is awake
        try:
            if seconds > 2 * TAKEOVER_SECONDS / 3:
                granted["meanwhile"] = cluster.claimed(other, "meanwhile")
                measured("the leader frozen: the next change accepted", passed(), TAKEOVER_SECONDS)
            threading.Event().wait(max(0.0, seconds - passed()))
        finally:
            frozen.send(signal.SIGCONT)
    asking.join()
    if answers[0] is not None:
        assert answers[0] == granted, "a stale answer"
    with stopwatch() as passed:
        eventually(lambda: cluster.claims(frozen) == granted, within_seconds=20, what="its answers")
        measured(f"the leader awake after {seconds:g} s: it answers again", passed(), TAKEOVER_SECONDS)
    cluster.nothing_was_lost(cluster.await_leader(), granted)
    assert [one.leads for one in cluster.instances].count(True) == 1


def claims_after(cluster: Cluster, one: Instance, seconds: float) -> dict[str, str] | None:
    found = cluster.ask(one, "/v1/claims", seconds=seconds)
    return None if found is None else {row["job_id"]: row["claim_id"] for row in found["claims"]}


def test_the_leader_is_cut_off_from_etcd(cluster: Cluster, measured: Measure) -> None:
    cluster.spread()
    cut_off, before = cluster.await_leader(), cluster.await_whole()
    held = cluster.held(cut_off)[cluster.name(cut_off)]
    granted = {"before": cluster.claimed(cut_off, "before")}
    other = cluster.standbys[0]
    with stopwatch() as passed, cluster.cut(cut_off.host, *cluster.etcd_hosts).applied():
        assert cluster.claim(cut_off, "refused") is None
        eventually(lambda: cluster.leader not in {None, cut_off}, within_seconds=20, what="another leader")
        granted["after"] = cluster.claimed(other, "after")
        measured("the leader cut off from etcd: the next change accepted", passed(), TAKEOVER_SECONDS)
        assert cluster.claims(cut_off) in (None, granted), "a stale answer"
        after = moved(cluster, other, before, held, within_seconds=CUT_OFF_SECONDS)
        measured(f"the leader cut off from etcd: its {held} nodes ready elsewhere", passed(), CUT_OFF_SECONDS)
    assert after.keys() == before.keys()
    cluster.nothing_was_lost(other, granted)


def test_a_gateway_is_cut_off_from_the_leader(cluster: Cluster, measured: Measure) -> None:
    cluster.spread()
    leader, cut_off, before = cluster.await_leader(), cluster.standbys[0], cluster.await_whole()
    held = cluster.held(leader)[cluster.name(cut_off)]
    granted = {"before": cluster.claimed(leader, "before")}
    with stopwatch() as passed, cluster.cut(cut_off.host, leader.host).applied():
        cut_off.await_event("leader_not_reached", within_seconds=20)
        measured("a gateway cut off from the leader: it closes its connections", passed(), 20)
        after = moved(cluster, leader, before, held, within_seconds=CUT_OFF_SECONDS)
        measured(
            f"a gateway cut off from the leader: {held} nodes ready elsewhere", passed(), CUT_OFF_SECONDS
        )
        assert cluster.ask(cut_off, "/readyz") is None
    assert after.keys() == before.keys()
    cluster.nothing_was_lost(leader, granted)


def test_a_member_of_etcd_is_lost(cluster: Cluster, measured: Measure) -> None:
    before = cluster.await_whole()
    for what, member in (
        ("a member", etcd_followers(cluster.etcd)[0]),
        ("the leader", cluster.etcd.leader()),
    ):
        with pauses(cluster) as longest, killed(member):
            threading.Event().wait(6)
        measured(f"{what} of etcd killed: longest pause of changes", max(longest), PAUSE_SECONDS)
    apart = cluster.etcd_hosts[cluster.etcd.members.index(cluster.etcd.leader())]
    others = [host for host in cluster.etcd_hosts if host is not apart]
    with pauses(cluster) as longest, cluster.cut(apart, *others).applied():
        threading.Event().wait(10)
    measured("the leader of etcd cut off from the others: longest pause", max(longest), PAUSE_SECONDS)
    leader = cluster.await_leader()
    assert cluster.await_ready(leader, within_seconds=10) == before
    cluster.nothing_was_lost(leader, {})


@contextmanager
def killed(member: Member) -> Iterator[None]:
    """Without a member of etcd; then it serves again."""
    member.kill()
    yield
    member.restart()
    eventually(member.status, within_seconds=20, what="the member")


@contextmanager
def pauses(cluster: Cluster) -> Iterator[list[float]]:
    """Claim and release through all instances in turn; collects how long each change took to be accepted."""
    found, ended = [0.0], threading.Event()

    def change() -> None:
        number = 0
        while not ended.is_set():
            began, granted = time.monotonic(), False
            while not granted and not ended.is_set():
                number += 1
                one = cluster.instances[number % len(cluster.instances)]
                granted = cluster.claim(one, f"pause-{number}") is not None
                if granted:
                    with suppress(OSError):
                        cluster.answer(one, f"/v1/claims/pause-{number}", method="DELETE")
            found.append(time.monotonic() - began)

    changing = threading.Thread(target=change)
    changing.start()
    try:
        yield found
    finally:
        ended.set()
        changing.join()


def test_the_quorum_of_etcd_is_lost(cluster: Cluster, measured: Measure) -> None:
    before, leader = cluster.await_whole(), cluster.await_leader()
    granted = {"before": cluster.claimed(leader, "before")}
    lost = cluster.etcd.members[:2]
    for member in lost:
        member.kill()
    with stopwatch() as passed:
        for one in cluster.instances:
            assert cluster.claim(one, "refused") is None
        eventually(
            lambda: all(cluster.claims(one) is None for one in cluster.instances),
            within_seconds=5,
            what="the end of reads",
        )
        threading.Event().wait(max(0.0, WITHOUT_QUORUM_SECONDS - passed()))
    for member in lost:
        member.restart()
    with stopwatch() as passed:
        leader = cluster.await_leader()
        granted["after"] = cluster.claimed(leader, "after")
        measured(
            f"the quorum of etcd back after {WITHOUT_QUORUM_SECONDS:g} s: the next change accepted",
            passed(),
            TAKEOVER_SECONDS,
        )
        assert cluster.await_ready(leader, within_seconds=CUT_OFF_SECONDS) == before
        measured("the quorum of etcd back: all nodes ready, in the same sessions", passed(), CUT_OFF_SECONDS)
    cluster.nothing_was_lost(leader, granted)


def test_etcd_is_full(cluster: Cluster, measured: Measure) -> None:
    before, leader = cluster.await_whole(), cluster.await_leader()
    granted = {"before": cluster.claimed(leader, "before")}
    with closing(EtcdClient(cluster.etcd.access)) as client:
        fill(client)
        try:
            for one in cluster.instances:
                with pytest.raises(urllib.error.HTTPError) as refused:
                    cluster.answer(one, "/v1/claims", {"job_id": "refused"})
                with refused.value as answer:
                    assert answer.code == 503
                    assert b"the disk is full" in answer.read()
            threading.Event().wait(6)  # longer than a lease lives
            assert cluster.leader is leader
        finally:
            empty(client)
    with stopwatch() as passed:
        granted["after"] = cluster.claimed(leader, "after")
        measured("etcd has room again: the next change accepted", passed(), TAKEOVER_SECONDS)
    leader = cluster.await_leader()
    assert cluster.await_ready(leader, within_seconds=CUT_OFF_SECONDS) == before
    cluster.nothing_was_lost(leader, granted)


def fill(client: EtcdClient) -> None:
    """Store what nobody needs until etcd refuses more."""
    with suppress(RefusedError):
        for number in range(200):
            client.transact([], [Put(f"filler/{number}".encode(), b"x" * (1 << 19))], seconds=5)
    with pytest.raises(RefusedError, match="space exceeded"):
        client.transact([], [Put(b"filler/last", b"x")])


def empty(client: EtcdClient) -> None:
    """Do what etcd's documentation says: delete, compact, defragment, disarm the alarm."""
    client.transact([], [Delete(b"filler/", b"filler0")], seconds=5)
    client.compact(client.revision(b"filler/"))
    for endpoint in client._access.endpoints:
        with closing(EtcdClient(type(client._access)((endpoint,), tls=client._access.tls))) as one:
            one._call("/v3/maintenance/defragment", {})
    for alarm in client._call("/v3/maintenance/alarm", {"action": "GET"}).get("alarms", ()):
        client._call("/v3/maintenance/alarm", {"action": "DEACTIVATE", **alarm})


def test_a_machine_is_lost(cluster: Cluster, measured: Measure) -> None:
    cluster.spread()
    lost, before = cluster.await_leader(), cluster.await_whole()
    held = cluster.held(lost)[cluster.name(lost)]
    other = cluster.standbys[0]
    granted = {"before": cluster.claimed(other, "before")}
    with ExitStack() as undoing:
        with stopwatch() as passed:
            undoing.enter_context(cluster.cable_of(lost).applied())
            granted["after"] = cluster.claimed(other, "after")
            measured("the leader's machine without its cable: the next change", passed(), TAKEOVER_SECONDS)
            after = moved(cluster, other, before, held, within_seconds=MACHINE_SECONDS)
            measured(f"the machine without its cable: {held} nodes ready", passed(), MACHINE_SECONDS)
        assert after.keys() == before.keys()
        cluster.nothing_was_lost(other, granted)
    with stopwatch() as passed:
        eventually(lambda: cluster.claims(lost) == granted, within_seconds=30, what="its answers")
        measured("the machine has its cable again: it answers", passed(), TAKEOVER_SECONDS)
    cluster.nothing_was_lost(other, granted)


def moved(
    cluster: Cluster, by: Instance, before: dict[str, int], count: int, *, within_seconds: float
) -> dict[str, int]:
    """Wait until so many nodes have another session, and all are ready; returns the sessions."""

    def look() -> dict[str, int] | None:
        after = cluster.sessions(by)
        if after is None or sum(after[one] != epoch for one, epoch in before.items()) < count:
            return None
        return after

    return eventually(look, within_seconds=within_seconds, what=f"{count} nodes ready elsewhere")
