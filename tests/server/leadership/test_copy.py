"""An instance's own copy of what etcd stores: its events, its lag, and a member gone without a word."""

import asyncio
import json
import shutil
import signal
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, closing
from types import SimpleNamespace

import pytest

from gpu_agent.registry.settings import Thresholds
from gpu_agent.runtime.address import Address
from gpu_agent.runtime.tasks import in_thread
from gpu_agent.server.gateway.gateway import Gateway
from gpu_agent.server.gateway.instance_links import Instance
from gpu_agent.server.gateway.link import Kind, Link, pack_alive
from gpu_agent.server.leadership import follower as followers
from gpu_agent.server.leadership import leader_link
from gpu_agent.server.leadership.follower import Follower, instance_document
from gpu_agent.server.leadership.leader_link import LeaderLink, LinkIdentity
from gpu_agent.server.limits import Limits
from gpu_agent.store.etcd import client as etcd_client
from gpu_agent.store.etcd.client import Access, Delete, EtcdClient, Put
from gpu_agent.wire.event_words import MISSED
from tests.store.etcd_cluster import Cluster, Member, cluster, copy_files, shared_folder
from tests.waiting import patience, until

PREFIX = "copy"
COMMIT_KEY = f"{PREFIX}/commit".encode()
LEADER_KEY = f"{PREFIX}/leader".encode()
LEADER = Instance(name="a", since=1.0, link=Address("127.0.0.1", 1), api="http://a")


@pytest.fixture(scope="module")
def etcd() -> Iterator[Cluster]:
    with cluster(3) as running:
        yield running


@asynccontextmanager
async def following(access: Access) -> AsyncIterator[tuple[Follower, EtcdClient]]:
    with closing(EtcdClient(access)) as client:
        follower = Follower(client, PREFIX, Thresholds(), changed=lambda: None)
        follower.start()
        try:
            await until(lambda: follower.revision > 0 and bool(client._watches))
            yield follower, client
        finally:
            follower.stop()


def put(etcd: Cluster, key: bytes, document: object) -> int:
    with closing(EtcdClient(etcd.access)) as client:
        return client.transact([], [Put(key, json.dumps(document).encode())], seconds=5).revision


async def test_a_reader_that_came_before_the_first_event_reads_it(etcd: Cluster) -> None:
    async with following(etcd.access) as (follower, _):
        with follower.event_log.subscribe() as reader:
            reached = asyncio.ensure_future(follower.event_log.reach(2, within_seconds=60))
            for number in (1, 2):
                row = [number, 1.0, "node_registered", None, "{}"]
                put(etcd, f"{PREFIX}/events/{number:04}".encode(), [row])
            async with asyncio.timeout(patience(10)):
                assert [(await reader.next()).id for _ in range(2)] == [1, 2]
                assert await reached


@asynccontextmanager
async def frozen(etcd: Cluster, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[tuple[Access, Member]]:
    """The members with one first that is to stand still; a watch does not notice that by its time."""
    monkeypatch.setattr(followers, "IDLE_SECONDS", 3600.0)
    monkeypatch.setattr(etcd_client, "TRY_SECONDS", 0.5)
    leader = etcd.leader()
    first, *others = sorted(etcd.members, key=lambda one: one is leader)
    try:
        yield Access((first.endpoint, *(one.endpoint for one in others))), first
    finally:
        first.process.send_signal(signal.SIGCONT)


def lead(etcd: Cluster, still: Member) -> int:
    with closing(EtcdClient(Access(tuple(m.endpoint for m in etcd.members if m is not still)))) as client:
        client.transact([], [Delete(LEADER_KEY)], seconds=5)
        value = json.dumps(instance_document(LEADER)).encode()
        return client.transact([], [Put(LEADER_KEY, value)], seconds=5).revision


async def test_a_watch_moves_on_with_the_first_call_that_its_member_does_not_answer(
    etcd: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with frozen(etcd, monkeypatch) as (access, first), following(access) as (follower, client):
        first.process.send_signal(signal.SIGSTOP)
        created_at = await in_thread("put", lambda: lead(etcd, first), deadline_seconds=None)
        await in_thread("get", lambda: client.get(LEADER_KEY), deadline_seconds=None)
        await until(lambda: follower.leader is not None and follower.leader.created_at == created_at)


async def test_a_copy_that_does_not_have_the_leader_follows_through_another_member(
    etcd: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No call of this instance goes to the member of its watch."""
    async with frozen(etcd, monkeypatch) as (access, first), following(access) as (follower, _):
        first.process.send_signal(signal.SIGSTOP)
        created_at = await in_thread("put", lambda: lead(etcd, first), deadline_seconds=None)
        follower.expect_leader(created_at)
        await until(lambda: follower.leader is not None and follower.leader.created_at == created_at)


async def test_a_copy_is_read_again_where_a_snapshot_of_etcd_was_restored() -> None:
    """Its revisions are lower, and say nothing of those that the copy has seen."""
    with cluster(1) as alone, shared_folder() as elsewhere:
        (member,) = alone.members
        put(alone, COMMIT_KEY, 1)
        member.kill()
        copy_files(member.data, elsewhere / "snapshot")
        member.restart()
        alone.wait()
        async with following(alone.access) as (follower, _):
            for number in range(2, 9):
                put(alone, COMMIT_KEY, number)
            await until(lambda: follower.rows[COMMIT_KEY] == b"8")
            member.kill()
            shutil.rmtree(member.data)
            copy_files(elsewhere / "snapshot", member.data)
            member.restart()
            await in_thread("wait", alone.wait, deadline_seconds=None)
            await until(lambda: follower.rows[COMMIT_KEY] == b"1")
            put(alone, COMMIT_KEY, 2)
            await until(lambda: follower.rows[COMMIT_KEY] == b"2")


async def test_events_of_a_restored_snapshot_replace_those_that_the_copy_had(
    etcd: Cluster,
) -> None:
    """The new history draws their ids once more: a reader learns that it missed something, then goes on."""
    async with following(etcd.access) as (follower, _):
        log = follower.event_log
        follower._replace(rows_with(1, 2, 3, at=1.0), 3, 0)
        with log.subscribe() as reader:
            for last_id, at in ((2, 1.0), (4, 2.0)):  # behind what the copy had, and beyond it
                follower._replace(rows_with(*range(1, last_id + 1), at=at), last_id, 0)
                assert [one.id for one in log.search()] == list(range(last_id, 0, -1))
                missed = await reader.next()
                assert (missed.event, missed.fields) == (MISSED, {"count": None})
            follower._replace(rows_with(*range(1, 6), at=2.0), 5, 0)
            assert (await reader.next()).id == 5
            assert not reader.has_more


def rows_with(*ids: int, at: float) -> dict[bytes, bytes]:
    def row(number: int) -> bytes:
        return json.dumps([[number, at, "node_registered", None, "{}"]]).encode()

    return {f"{PREFIX}/events/{number:04}".encode(): row(number) for number in ids}


async def test_the_lag_of_a_copy_that_stands_still_is_known_and_costs_no_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    reached = [0]
    gateway = Gateway(Limits(), Thresholds())
    link = LeaderLink(
        gateway,
        LEADER,
        own=LinkIdentity("b", "s", None),
        revision=lambda: reached[0],
        leader_clock=lambda _: None,
    )
    now = [0.0]
    clock = SimpleNamespace(monotonic=lambda: now[0], time=time.time)
    monkeypatch.setattr(leader_link, "time", clock)
    monkeypatch.setattr(Link, "send", lambda *_: None)
    for second in range(1, 10_001):
        now[0] = float(second)
        link._received(Kind.ALIVE, 0, memoryview(pack_alive(time.time(), second)))
    assert len(link._awaited) < 100
    assert link.lag_seconds == 9_999.0
    reached[0] = 5_000
    assert link.lag_seconds == pytest.approx(5_000, rel=0.2)
    reached[0] = 10_000
    assert link.lag_seconds == 0.0
