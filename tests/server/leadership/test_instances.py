"""Instances of one registry on a real etcd: who leads, and that no node moves when that changes."""

import asyncio
import os
import random
import signal
import time
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack, closing, suppress
from dataclasses import replace
from functools import partial

import pytest
from prometheus_client.parser import text_string_to_metric_families
from websockets.exceptions import InvalidStatus

from gpu_agent.registry import alarms
from gpu_agent.registry.job import Job
from gpu_agent.registry.tokens import Role
from gpu_agent.runtime.address import Address
from gpu_agent.server.event_log import RegistryEventLog
from gpu_agent.server.gateway import gateway, instance_links
from gpu_agent.server.gateway.instance_links import LINK_VERSION
from gpu_agent.server.gateway.link import Kind, Link, read_document
from gpu_agent.server.leadership import instance as instance_module
from gpu_agent.server.leadership import leader_link
from gpu_agent.server.leadership.follower import Follower
from gpu_agent.server.leadership.forward import Forwarder
from gpu_agent.server.leadership.instance import RegistryInstance
from gpu_agent.server.metrics import INSTANCE_METRICS
from gpu_agent.server.notify.settings import ReceiverSettings
from gpu_agent.store.etcd.client import (
    Delete,
    EtcdClient,
    Put,
    Watched,
)
from gpu_agent.store.etcd.lease import Lease
from gpu_agent.wire.api import ClaimView
from gpu_agent.wire.codes import CloseCode
from tests.alarm_receiver import answer, webhook
from tests.authority import Authority
from tests.server.api_harness import logged, operator_token
from tests.server.harness import known, registration, until
from tests.server.leadership.harness import (
    Running,
    contexts,
    depose,
    depose_and_wait,
    leader_among,
    node_at,
    running,
    three,
)
from tests.store.etcd_cluster import Cluster, cluster, free_ports
from tests.waiting import patience


async def test_one_leads_and_nodes_register_at_each(etcd: Cluster, prefix: str) -> None:
    async with three(etcd, prefix) as instances, AsyncExitStack() as stack:
        assert [one.leads for one in instances].count(True) == 1
        nodes = [await stack.enter_async_context(node_at(one.address)) for one in instances]
        for one in nodes:
            await one.become_ready()
        leader = next(one for one in instances if one.leads)
        assert leader.service.size.nodes == 3
        members = leader.service.members()
        assert [(one.role, one.nodes) for one in members] == [("leader", 1), ("standby", 1), ("standby", 1)]
        assert members[0].term == 1


async def test_a_takeover_moves_no_node_and_nothing_is_lost(etcd: Cluster, prefix: str) -> None:
    async with three(etcd, prefix) as instances, AsyncExitStack() as stack:
        first = await leader_among(instances)
        nodes = [await stack.enter_async_context(node_at(one.address)) for one in instances]
        for one in nodes:
            await one.become_ready()
        epochs = [known(first.service, one.node_id).session_epoch for one in nodes]
        placed = await first.service.claim(Job(job_id="job-1"))
        assert isinstance(placed, ClaimView)

        await depose_and_wait(etcd, prefix, first)
        leader = await leader_among(instances)

        def connected() -> bool:
            return all(known(leader.service, one.node_id).connected for one in nodes)

        await until(connected, what="the sessions of all nodes")
        assert [known(leader.service, one.node_id).session_epoch for one in nodes] == epochs
        found = leader.service.claim_of("job-1")
        assert found is not None
        assert (found.claim_id, found.state) == (placed.claim_id, "active")
        assert leader.service.members()[0].term == 2
        for number in range(2, 4):
            for one in nodes:
                await one.heartbeat()
            await until_placed(leader, f"job-{number}")


async def test_a_load_balancer_sees_an_instance_ready_while_another_takes_over(
    etcd: Cluster, prefix: str
) -> None:
    """One that were not would lose all its node connections (haproxy's `shutdown-sessions`)."""
    async with three(etcd, prefix) as instances:
        first = await leader_among(instances)
        depose(etcd, prefix)
        unready: list[str] = []

        def ends() -> bool:
            unready.extend(
                check.detail for one in instances for check in one.instance.readiness() if not check.ok
            )
            return not first.leads

        await until(ends, what="the end of the first term")
        await until(lambda: ends() and any(one.leads for one in instances), what="another leader")
        assert not unready


async def test_nodes_stay_connected_while_etcd_answers_nobody(
    etcd: Cluster, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What an instance knows of a leader is old then: it may not take itself for cut off."""
    monkeypatch.setattr(instance_module, "ALONE_SECONDS", 1.0)
    async with three(etcd, prefix) as instances, AsyncExitStack() as stack:
        first = await leader_among(instances)
        nodes = [await stack.enter_async_context(node_at(one.address)) for one in instances]
        for one in nodes:
            await one.become_ready()
        epochs = [known(first.service, one.node_id).session_epoch for one in nodes]
        etcd.members[0].process.send_signal(signal.SIGSTOP)
        try:
            await until(lambda: not first.leads, what="the end of the first term")
            await asyncio.sleep(4)  # longer than all of them may be without a link
            other = next(one for one in instances if one is not first).instance
            await until(lambda: "etcd has not answered" in other.readiness()[0].detail, what="why none leads")
            assert other.state_words().startswith("the registry's database etcd://")
        finally:
            etcd.members[0].process.send_signal(signal.SIGCONT)
        leader = await leader_among(instances)

        def connected() -> bool:
            return all(known(leader.service, one.node_id).connected for one in nodes)

        await until(connected, what="the sessions of all nodes")
        assert [known(leader.service, one.node_id).session_epoch for one in nodes] == epochs


@pytest.mark.parametrize("encrypted", [False, True])
async def test_nodes_stay_connected_while_a_new_leader_loads_its_fleet(
    etcd: Cluster, prefix: str, authority: Authority, monkeypatch: pytest.MonkeyPatch, *, encrypted: bool
) -> None:
    """Etcd names it before it accepts links: with a large fleet for longer than a lost leader may be away."""
    links = contexts(authority) if encrypted else (None, None)
    async with three(etcd, prefix, links=links) as instances, AsyncExitStack() as stack:
        first = await leader_among(instances)
        nodes = [await stack.enter_async_context(node_at(one.address)) for one in instances]
        for one in nodes:
            await one.become_ready()
        epochs = [known(first.service, one.node_id).session_epoch for one in nodes]
        monkeypatch.setattr(instance_module, "ALONE_SECONDS", 1.0)
        monkeypatch.setattr(leader_link, "LEADER_SILENT_SECONDS", 0.5)
        monkeypatch.setattr(leader_link, "_CONNECT_SECONDS", 0.5)
        admit, loaded = instance_links.InstanceLinks.admit, asyncio.Event()

        async def admit_late(links: instance_links.InstanceLinks) -> None:
            await loaded.wait()
            await admit(links)

        monkeypatch.setattr(instance_links.InstanceLinks, "admit", admit_late)
        depose(etcd, prefix)
        await until(lambda: not any(one.is_linked for one in instances), what="the end of all links")
        await asyncio.sleep(2)  # longer than all of them may be without a link
        loaded.set()
        leader = await leader_among(instances)

        def connected() -> bool:
            return all(known(leader.service, one.node_id).connected for one in nodes)

        await until(connected, what="the sessions of all nodes")
        assert [known(leader.service, one.node_id).session_epoch for one in nodes] == epochs


async def test_without_a_leader_the_connections_share_what_is_held(
    etcd: Cluster, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gateway, "MOST_HELD_TOGETHER_BYTES", 2000)
    async with running(etcd.access, prefix, "a") as one:
        await until(lambda: one.leads and one.is_linked, what="its link to itself")
        async with node_at(one.address) as node:
            await node.become_ready()
            etcd.members[0].process.send_signal(signal.SIGSTOP)
            try:
                await until(lambda: not one.leads and not one.is_linked, what="the end of its term")
                await node.send(registration(node_id=node.node_id))
                for _ in range(10):
                    await node.send({"type": "node_error", "code": "DISK_FULL", "message": "x" * 200})
                await until(lambda: node.socket.close_code, what="the end of its connection")
            finally:
                etcd.members[0].process.send_signal(signal.SIGCONT)
            assert node.socket.close_code == CloseCode.TRY_AGAIN_LATER


async def until_placed(leader: Running, job_id: str) -> ClaimView:
    placed = await leader.service.claim(Job(job_id=job_id, wait_seconds=20.0))
    assert isinstance(placed, ClaimView)
    return placed


class Stranger:
    """A program of this machine that speaks as an instance does."""

    def __init__(self) -> None:
        self.received: list[Kind] = []
        self.versions: list[int] = []
        self.ended: list[str] = []
        self.link = Link(self._received, self.ended.append)

    def _received(self, kind: Kind, _number: int, payload: memoryview) -> None:
        self.received.append(kind)
        if kind is Kind.CHALLENGE:
            self.versions.append(read_document(payload)["version"])

    async def connect(self, leader: Running) -> None:
        at = leader.instance.own.link
        await asyncio.get_running_loop().create_connection(lambda: self.link, at.host, at.port)


async def test_who_does_not_have_the_instances_secret_is_none(etcd: Cluster, prefix: str) -> None:
    async with running(etcd.access, prefix, "a") as leader:
        await until(lambda: leader.is_linked, what="its link to itself")
        for frame in ({"proof": "0" * 64}, {"name": "z"}):
            stranger = Stranger()
            await stranger.connect(leader)
            hello = {"name": "z", "version": LINK_VERSION, "nonce": "1"}
            stranger.link.send_document(Kind.HELLO, 0, hello)
            await until(lambda: stranger.received, what="a challenge")  # noqa: B023 - run at once
            stranger.link.send_document(Kind.PROOF, 0, frame)
            await until(lambda: stranger.ended, what="the end of its link")  # noqa: B023 - as above
            assert stranger.received == [Kind.CHALLENGE]
        assert [one.name for one in leader.service.members()] == ["a"]
        assert leader.is_linked


@pytest.mark.parametrize(
    ("versions", "spoken"),
    [
        ({"version": LINK_VERSION + 1, "oldest_version": LINK_VERSION}, LINK_VERSION),
        ({"version": LINK_VERSION - 1}, LINK_VERSION - 1),
        ({"version": LINK_VERSION + 2, "oldest_version": LINK_VERSION + 1}, None),
        ({"version": LINK_VERSION - 2}, None),
    ],
)
async def test_a_link_has_the_newest_version_that_both_ends_speak(
    etcd: Cluster, prefix: str, versions: dict[str, int], spoken: int | None
) -> None:
    async with running(etcd.access, prefix, "a") as leader:
        await until(lambda: leader.is_linked, what="its link to itself")
        stranger = Stranger()
        await stranger.connect(leader)
        stranger.link.send_document(Kind.HELLO, 0, {"name": "z", "nonce": "1", **versions})
        await until(lambda: stranger.received, what="an answer")
        assert stranger.received == [Kind.PROBLEM if spoken is None else Kind.CHALLENGE]
        assert stranger.versions == ([] if spoken is None else [spoken])


async def test_a_leader_that_does_not_have_the_secret_gets_no_node(
    etcd: Cluster, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running(etcd.access, prefix, "a") as leader:
        await until(lambda: leader.is_linked, what="its link to itself")
        monkeypatch.setattr(leader_link, "proof", lambda *_: "expected")
        async with running(etcd.access, prefix, "b") as other:
            await asyncio.sleep(0.5)  # it tries again and again
            assert not other.is_linked
            named = [(one.name, one.role, one.term) for one in other.instance._members_by_copy()]
            assert named == [("a", "leader", 1), ("b", "standby", None)]
            (problem,) = (one.detail for one in other.instance.readiness() if not one.ok)
            assert "does not have the instances' secret" in problem
            monkeypatch.undo()
            await until(lambda: other.is_linked, what="a link once the leader proves itself")


async def test_many_sessions_are_reported_in_slices_and_what_comes_meanwhile_waits(
    etcd: Cluster, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gateway, "REPORTED_AT_ONCE", 1)
    async with three(etcd, prefix) as instances, AsyncExitStack() as stack:
        first = await leader_among(instances)
        nodes = [await stack.enter_async_context(node_at(instances[0].address)) for _ in range(8)]
        for one in nodes:
            await one.become_ready()
        await depose_and_wait(etcd, prefix, first)
        for one in nodes:
            await one.heartbeat(running_jobs=["job-1"])
        leader = await leader_among(instances)

        def jobs() -> int:
            return sum(known(leader.service, one.node_id).running_jobs == ("job-1",) for one in nodes)

        await until(lambda: jobs() == len(nodes), what="what all nodes said meanwhile")
        assert leader.service.health.events.refusals.total() == 0


async def test_a_standby_whose_copy_stands_still_says_how_far_it_is_behind(
    etcd: Cluster, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with three(etcd, prefix) as instances:
        leader = await leader_among(instances)
        slow, other = (one for one in instances if one is not leader)

        def lags() -> dict[str, float | None]:
            return {one.name: one.lag_seconds for one in leader.service.members()}

        await until(lambda: lags() == {leader.name: None, slow.name: 0.0, other.name: 0.0}, what="no lag")
        with monkeypatch.context() as standing_still:
            standing_still.setattr(Follower, "_apply", _apply_but_for(slow.instance))
            await leader.service.tokens.create_join()
            await until(lambda: (lags()[slow.name] or 0.0) > 0.5, what="its lag")
            assert lags()[other.name] == 0.0
        await leader.service.tokens.create_join()
        await until(lambda: lags()[slow.name] == 0.0, what="the end of its lag")


async def test_a_standby_whose_copy_is_a_second_behind_trusts_no_token_of_it(
    etcd: Cluster, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The token may have been revoked since; a reader is told to ask again (rule 3)."""
    async with three(etcd, prefix) as instances:
        leader = await leader_among(instances)
        slow = next(one for one in instances if one is not leader)
        authenticate = slow.instance.answers(Forwarder(lambda: None), auth_on=True).authenticate
        assert authenticate is not None
        token = await operator_token(leader.service, Role.READ)
        await until(lambda: authenticate(token) is not None, what="the token in its copy")
        with monkeypatch.context() as standing_still:
            standing_still.setattr(Follower, "_apply", _apply_but_for(slow.instance))
            await leader.service.tokens.create_join()
            await until(lambda: authenticate(token) is None, what="its doubt")
        await leader.service.tokens.create_join()
        await until(lambda: authenticate(token) is not None, what="its trust")


def _apply_but_for(instance: RegistryInstance) -> Callable[[Follower, Sequence[Watched]], None]:
    apply, slow = Follower._apply, instance._follower

    def one(follower: Follower, changes: Sequence[Watched]) -> None:
        if follower is not slow:
            apply(follower, changes)

    return one


async def test_a_renewed_key_of_the_leader_ends_no_link(etcd: Cluster, prefix: str) -> None:
    async with three(etcd, prefix) as instances:
        leader = await leader_among(instances)
        follower = next(one for one in instances if one is not leader).instance._follower
        before = follower.leader
        assert before is not None
        links = [one.instance._link for one in instances]
        leader.instance.announce("renewed")
        await until(lambda: follower.leader != before, what="the new pin")
        for one, link in zip(instances, links, strict=True):
            assert one.instance._leads(before)
            assert one.instance._link is link


async def test_an_instance_counts_its_takeovers_and_what_it_holds(etcd: Cluster, prefix: str) -> None:
    async with three(etcd, prefix) as instances:
        leader = await leader_among(instances)
        standby = next(one for one in instances if one is not leader)
        async with node_at(standby.address) as node:
            await node.become_ready()
            of_leader, of_standby = figures(leader), figures(standby)
        assert of_leader.keys() == {one.full_name for one in INSTANCE_METRICS}
        assert of_standby.keys() == of_leader.keys() - {"gpu_registry_instance_takeover_seconds"}
        for name, led, followed in (
            ("leads", 1, 0),
            ("linked", 1, 1),
            ("term", 1, 1),
            ("takeovers_total", 1, 0),
            ("node_connections", 0, 1),
        ):
            assert of_leader[f"gpu_registry_instance_{name}"] == led
            assert of_standby[f"gpu_registry_instance_{name}"] == followed
        assert of_leader["gpu_registry_instance_takeover_seconds"] > 0
        await depose_and_wait(etcd, prefix, leader)
        again = await leader_among(instances)
        found = figures(again)
        assert found["gpu_registry_instance_takeovers_total"] == (2 if again is leader else 1)


def figures(of: Running) -> dict[str, float]:
    """The instance's own metrics."""
    answers = of.instance.answers(Forwarder(lambda: None), auth_on=False)
    text = answers.metrics().decode()
    return {
        sample.name: sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


async def test_what_nodes_declared_in_heartbeats_is_known_to_the_next_leader_stored_or_not(
    etcd: Cluster, prefix: str
) -> None:
    async with three(etcd, prefix) as instances, AsyncExitStack() as stack:
        first = await leader_among(instances)
        node = await stack.enter_async_context(node_at(instances[0].address))
        await node.become_ready()
        model = {"model_id": "late", "version": "1", "enabled": True}
        await node.heartbeat(installed_models=[model])
        await node.heartbeat(labels={"rack": "7"})
        await node.heartbeat()
        await depose_and_wait(etcd, prefix, first)
        leader = await leader_among(instances)
        await until(lambda: known(leader.service, node.node_id).connected, what="its session")
        found = known(leader.service, node.node_id)
        assert [one.model_id for one in found.installed_models] == ["late"]
        assert found.labels["rack"] == "7"
        assert found.status == "ready"


async def test_what_a_node_says_without_a_leader_the_next_one_hears(etcd: Cluster, prefix: str) -> None:
    async with three(etcd, prefix) as instances, AsyncExitStack() as stack:
        first = await leader_among(instances)
        node = await stack.enter_async_context(node_at(instances[0].address))
        await node.become_ready()
        await depose_and_wait(etcd, prefix, first)
        await node.socket.send("no message")
        await node.send({"type": "node_unregister", "node_id": node.node_id, "drain": True})
        assert (await node.receive_type("node_error"))["code"] == "INVALID_MESSAGE"
        leader = await leader_among(instances)

        def left() -> bool:
            return known(leader.service, node.node_id).status in {"draining", "offline"}

        await until(left, what="its drain")


async def test_each_instance_has_the_stored_events_without_a_gap_over_a_takeover(
    etcd: Cluster, prefix: str
) -> None:
    async with three(etcd, prefix) as instances, AsyncExitStack() as stack:
        first = await leader_among(instances)
        node = await stack.enter_async_context(node_at(instances[0].address))
        await node.become_ready()
        await depose_and_wait(etcd, prefix, first)
        leader = await leader_among(instances)
        await until(lambda: known(leader.service, node.node_id).connected, what="its session")
        await leader.service.cordon(node.node_id, reason="dust")
        expected = recent(leader.service.event_log)
        assert expected == list(range(1, expected[-1] + 1))
        for one in instances:
            log = one.instance.answers(Forwarder(lambda: None), auth_on=False).event_log
            await until(lambda log=log: recent(log) == expected, what="the same events")  # type: ignore[misc]


def recent(log: RegistryEventLog) -> list[int]:
    return [event.id or 0 for event in log._since(0)]


async def test_the_next_leader_goes_on_with_alarms_where_the_last_one_was(
    etcd: Cluster, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(alarms, "FIRST_RETRY_SECONDS", 0.1)
    async with webhook() as hook, three(etcd, prefix) as instances, AsyncExitStack() as stack:
        ops = ReceiverSettings(name="ops", url=hook.url(), events=("node_*cordoned",), group_seconds=0)
        for one in instances:
            one.instance.reload_receivers((ops,))
        node = await stack.enter_async_context(node_at(instances[0].address))
        await node.become_ready()
        ids: list[int] = []
        for _ in range(3):
            leader = await leader_among(instances)
            await leader.service.cordon(node.node_id, reason="r")
            ids.append(leader.service.event_log.last_id)
            await leader.service.uncordon(node.node_id)
            ids.append(leader.service.event_log.last_id)
            if len(ids) == 2:
                await until(lambda: hook.ids == ids, what="the first leader delivers")
            hook.faults.append(answer("500 Oops"))
            await depose_and_wait(etcd, prefix, leader)
        leader = await leader_among(instances)
        await until(lambda: hook.ids[-1:] == ids[-1:], what="the last leader delivers what was left")
    assert list(dict.fromkeys(hook.ids)) == ids
    assert {one.document["registry"] for one in hook.requests} <= {"a", "b", "c"}


async def test_a_reader_that_changes_instances_reads_each_event_once_over_takeovers(
    etcd: Cluster, prefix: str
) -> None:
    """`TAKEOVERS=100 pytest -k each_event_once` is what docs/reference/benchmarks.md speaks of."""
    takeovers = int(os.environ.get("TAKEOVERS", "4"))
    dice = random.Random(7)  # noqa: S311 - where to read, no secret
    async with three(etcd, prefix) as instances, AsyncExitStack() as stack:
        node = await stack.enter_async_context(node_at(instances[0].address))
        await node.become_ready()
        read: list[int] = [0]
        reading = asyncio.ensure_future(read_here_and_there(instances, read, dice))
        for _ in range(takeovers):
            leader = await leader_among(instances)
            await leader.service.cordon(node.node_id, reason="r")
            await leader.service.uncordon(node.node_id)
            await depose_and_wait(etcd, prefix, leader)
        leader = await leader_among(instances)
        await leader.service.cordon(node.node_id, reason="the last one")
        last = leader.service.event_log.last_id
        await until(lambda: read[-1] == last, what="the last event")
        reading.cancel()
    assert read == list(range(last + 1))


async def read_here_and_there(instances: list[Running], read: list[int], dice: random.Random) -> None:
    """Read some events at one instance, then go on at another."""
    while True:
        log = dice.choice(instances).instance.answers(Forwarder(lambda: None), auth_on=False).event_log
        await log.reach(read[-1], within_seconds=patience(10))
        with suppress(TimeoutError), log.subscribe(after=read[-1]) as subscriber:
            async with asyncio.timeout(dice.uniform(0.05, 0.3)):
                for _ in range(dice.randint(1, 5)):
                    event = await subscriber.next()
                    assert event.event != "events_missed"
                    read.append(event.id or 0)


@pytest.mark.parametrize("said", [b"", b"\xff" * 13, b"GET / HTTP/1.1\r\n\r\n", bytes(64)])
async def test_what_speaks_no_links_costs_the_leader_nothing_for_long(
    etcd: Cluster, prefix: str, said: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(instance_links, "_HELLO_SECONDS", 0.1)
    async with running(etcd.access, prefix, "a") as leader:
        await until(lambda: leader.is_linked, what="its link to itself")
        at = leader.instance.own.link
        reader, writer = await asyncio.open_connection(at.host, at.port)
        writer.write(said)
        assert await asyncio.wait_for(reader.read(), patience(5)) == b""
        writer.close()
        links = leader.service._listener
        assert isinstance(links, instance_links.InstanceLinks)
        await until(lambda: not links._unnamed, what="the end of the link")


async def test_a_leader_whose_lease_is_not_certain_judges_no_handshake(
    etcd: Cluster, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running(etcd.access, prefix, "a") as leader:
        await until(lambda: leader.is_linked, what="its link to itself")
        monkeypatch.setattr(Lease, "valid", property(lambda _: False))
        with pytest.raises(InvalidStatus) as refused:
            async with node_at(leader.address):
                pass
        assert refused.value.response.status_code == 503


async def test_after_a_leader_whose_clock_was_wrong_another_one_leads_all_the_same(
    etcd: Cluster, prefix: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(instance_module, "_APART_SECONDS", 1.0)
    async with running(etcd.access, prefix, "b") as other:
        await until(lambda: other.is_linked, what="its link to itself")
        other.instance._compare_clocks(time.time() - 60)
        monkeypatch.setattr(other.instance, "_compare_clocks", lambda _: None)
        assert logged(caplog, "clock_apart") == [{"seconds": 60}]
        began = time.monotonic()
        await depose_and_wait(etcd, prefix, other)
        await until(lambda: other.leads, what="another term")
        assert time.monotonic() - began >= 0.9


async def test_an_instance_whose_name_another_one_has_by_now_neither_leads_nor_links(
    etcd: Cluster, prefix: str
) -> None:
    async with running(etcd.access, prefix, "a") as first:
        await until(lambda: first.is_linked, what="its link to itself")
        with closing(EtcdClient(etcd.access)) as client:
            name = f"{prefix}/members/a".encode()
            client.transact([], [Put(name, b"{}")])
            first.instance._name.lost = True
            await until(lambda: not first.is_linked, what="the end of its link")
            (problem,) = (one.detail for one in first.instance.readiness() if not one.ok)
            assert "another instance is called a" in problem
            client.transact([], [Delete(name)])
        await until(lambda: first.is_linked, what="its link, with its name again")


async def test_without_etcds_word_the_other_instances_show_whether_this_one_is_cut_off(
    etcd: Cluster, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(instance_module, "ALONE_SECONDS", 0.0)
    async with running(etcd.access, prefix, "a") as one:
        await until(lambda: one.is_linked, what="its link to itself")
        one.instance._doubtful_since = time.monotonic()  # it leads, and does not ask who does
        other = await asyncio.start_server(lambda _r, writer: writer.close(), "127.0.0.1", 0)
        open_at = Address(*other.sockets[0].getsockname()[:2])
        closed_at = Address("127.0.0.1", free_ports(1)[0])
        for link, api, is_cut_off in (
            (closed_at, open_at, False),  # nobody leads
            (open_at, open_at, True),  # that one does
            (closed_at, closed_at, True),  # nobody is reached
        ):
            named = replace(one.instance.own, name="b", link=link, api=f"http://{api}")
            found = [one.instance.own, named]
            monkeypatch.setattr(Follower, "instances", lambda _, found=found: found)
            assert await one.instance._is_cut_off() is is_cut_off
        other.close()


async def test_a_leader_whose_etcd_was_away_leads_again_without_awaiting_the_end_of_its_own_lease(
    prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(instance_module, "Lease", partial(Lease, ttl_seconds=600))
    with cluster(1) as etcd:
        async with running(etcd.access, prefix, "a") as one:
            await until(lambda: one.is_linked, what="its link to itself")
            (member,) = etcd.members
            member.kill()
            with monkeypatch.context() as patch:
                patch.setattr(Lease, "valid", property(lambda _: False))
                await until(
                    lambda: not one.leads and one.instance._at_rest.is_set(), what="the end of its term"
                )
            member.restart()
            await until(lambda: one.leads, what="its next term")
