"""The facade, with nodes on real sockets."""

import asyncio
import json
import time
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest

from gpu_agent.registry.actions import Change, DocumentKind, Refusal
from gpu_agent.registry.dispatch.exclusions import NoAvailableNode
from gpu_agent.registry.job import Job
from gpu_agent.registry.settings import Thresholds
from gpu_agent.server.service import RegistryService, ServiceSettings
from gpu_agent.store.base import Batch
from gpu_agent.store.memory import MemoryStore
from gpu_agent.wire.api import ClaimView, RegistryEvent, Selection
from gpu_agent.wire.codes import ExclusionReason
from tests.server.disks import FailingStore, StuckStore
from tests.server.harness import LOOPBACK, QUICK, Node, known, node, placed, registration, running, until
from tests.waiting import patience


@pytest.fixture
async def ready(service: RegistryService) -> AsyncIterator[Node]:
    async with node(service) as ready:
        await ready.become_ready(max_concurrent_jobs=1)
        yield ready


async def test_r02_one_gpu_is_acknowledged_and_registering(service: RegistryService) -> None:
    async with node(service) as new:
        ack = await new.register()
        assert (ack["message"], ack["status"]) == ("registered", "registering")
        assert ack["node_id"].startswith("node-")
        assert known(service, ack["node_id"]).status == "registering"
        assert [one.node_id for one in service.nodes()] == [ack["node_id"]]


async def test_r01_no_gpu_is_refused_and_no_record_is_made(service: RegistryService) -> None:
    async with node(service) as poor:
        await poor.send(
            {"type": "node_register", "version": "1", "hardware": {"cpu_cores": 1, "memory_gb": 1}}
        )
        assert (await poor.receive())["code"] == "GPU_REQUIRED"
    assert list(service.nodes()) == []


async def test_s01_healthy_heartbeats_make_a_node_ready_and_it_receives_its_status(
    service: RegistryService,
) -> None:
    async with node(service) as new:
        status = await new.become_ready()
        assert status["reason_code"] == "health_checks_passed"
        assert status["previous_status"] == "registering"
        assert abs(status["timestamp"] - time.time()) < 5
        assert abs(status["since"] - time.time()) < 5
        assert {check["name"]: check["ok"] for check in status["details"]["checks"]}["gpus"]


async def test_s06_silence_ends_offline_and_closes_with_1001() -> None:
    quick = Thresholds(
        heartbeat_interval_seconds=0.1, heartbeat_timeout_seconds=0.4, scan_interval_seconds=0.05
    )
    async with running(quick) as service, node(service) as silent:
        await silent.register()
        status = await silent.receive_type("node_status", status="offline")
        assert status["reason_code"] == "heartbeat_timeout"
        assert (await silent.closed())[0] == 1001


async def test_the_same_job_gets_the_same_slot_and_another_gets_none(
    service: RegistryService, ready: Node
) -> None:
    first = await placed(service, "job-1")
    assert first.node_id == ready.node_id
    assert abs(first.expires_at - time.time() - QUICK.claim_ttl_seconds) < 5
    assert (await placed(service, "job-1")).node_id == first.node_id
    refused = await service.claim(Job(job_id="job-2"))
    assert isinstance(refused, NoAvailableNode)
    assert refused.counts == {ExclusionReason.CAPACITY_EXCEEDED: 1}


async def test_a_released_slot_is_free_again_and_a_second_release_is_refused(
    service: RegistryService, ready: Node
) -> None:
    await placed(service, "job-1")
    assert await service.release("job-1") is None
    assert (await placed(service, "job-2")).node_id == ready.node_id
    again = await service.release("job-1")
    assert isinstance(again, Refusal)
    assert again.code == "CLAIM_NOT_FOUND"


@pytest.mark.usefixtures("ready")
async def test_a_claim_that_is_released_before_its_answer_is_sent_is_listed_no_more(
    service: RegistryService,
) -> None:
    async with asyncio.TaskGroup() as requests:
        claim = requests.create_task(service.claim(Job(job_id="job")))
        release = requests.create_task(service.release("job"))
    assert isinstance(claim.result(), ClaimView)
    assert release.result() is None
    assert service.claims() == []
    detail = service.claim_of("job")
    assert detail is not None
    assert detail.state == "released"


async def test_a_renewed_claim_lives_one_more_ttl() -> None:
    thresholds = Thresholds(claim_ttl_seconds=0.5, scan_interval_seconds=0.05)
    async with running(thresholds) as service, node(service) as ready:
        await ready.become_ready()
        first = await placed(service, "job-1")
        await asyncio.sleep(0.02)  # time that the renewal adds again
        renewed = await service.renew("job-1")
        assert isinstance(renewed, ClaimView)
        assert renewed.expires_at > first.expires_at
        await until(lambda: known(service, ready.node_id).claimed_jobs == (), what="the claim expired")
        assert isinstance(await service.renew("job-1"), Refusal)


async def test_explain_gives_every_node_its_reason(service: RegistryService, ready: Node) -> None:
    async with node(service) as other:
        await other.register()
        explained = await service.explain(Job(job_id="job-1", required_models=("m",)))
        assert explained.eligible == (ready.node_id,)
        assert [(one.node_id, one.reason) for one in explained.excluded] == [
            (other.node_id, ExclusionReason.STATUS_NOT_READY)
        ]


async def test_a_drained_node_finishes_its_job_goes_offline_and_returns_with_resume(
    service: RegistryService, ready: Node
) -> None:
    await placed(service, "job-1")
    assert await service.drain(ready.node_id, reason="new driver") is None
    assert (await ready.receive_type("node_status", status="draining"))["details"][
        "drain_deadline"
    ] > time.time()
    assert isinstance(await service.claim(Job(job_id="job-2")), NoAvailableNode)
    await service.release("job-1")
    await ready.receive_type("node_status", status="offline")
    assert known(service, ready.node_id).connected
    assert await service.resume(ready.node_id) is None
    await ready.receive_type("node_status", status="registering")


async def test_a_cordoned_node_stays_ready_and_takes_no_job(service: RegistryService, ready: Node) -> None:
    assert await service.cordon(ready.node_id, reason="noisy fan") is None
    assert (known(service, ready.node_id).status, known(service, ready.node_id).cordoned) == (
        "ready",
        "noisy fan",
    )
    assert isinstance(await service.claim(Job(job_id="job-1")), NoAvailableNode)
    assert await service.uncordon(ready.node_id) is None
    await placed(service, "job-1")


async def test_a_removed_node_is_unknown_and_disconnected(service: RegistryService, ready: Node) -> None:
    assert await service.remove(ready.node_id) is None
    assert service.node(ready.node_id) is None
    assert (await ready.closed())[0] == 1001


async def test_requests_for_an_unknown_node_are_refused(service: RegistryService) -> None:
    for answer in (
        await service.drain("node-x"),
        await service.resume("node-x"),
        await service.cordon("node-x", reason="r"),
        await service.remove("node-x"),
    ):
        assert isinstance(answer, Refusal)
        assert answer.code == "UNKNOWN_NODE"
    assert service.node("node-x") is None


async def test_a_fault_that_a_node_reports_is_in_its_history(service: RegistryService, ready: Node) -> None:
    fault = {"type": "node_error", "node_id": ready.node_id, "code": "GPU_LOST", "message": "gone"}
    await ready.send(fault)

    def faults() -> list[RegistryEvent]:
        return [one for one in known(service, ready.node_id).events if one.event == "node_fault_reported"]

    (event,) = await until(faults, what="the fault in the history")
    assert event.fields["code"] == "GPU_LOST"


async def test_a_nodes_history_begins_with_its_registration(service: RegistryService, ready: Node) -> None:
    events = [one.event for one in known(service, ready.node_id).events]
    assert "node_registered" in events
    assert "node_status_changed" in events


async def test_events_arrive_as_they_happen(service: RegistryService) -> None:
    heard: list[str] = []

    async def follow() -> None:
        async for event in service.events():
            heard.append(event.event)
            if event.event == "node_registered":
                return

    following = asyncio.ensure_future(follow())
    await asyncio.sleep(0)
    async with node(service) as new:
        await new.register()
        await asyncio.wait_for(following, patience(5))
    assert next(name for name in heard if name.startswith("node_")) == "node_register_received"


async def test_an_older_node_is_served() -> None:
    """§9: no schema, no state, no gpu_percent; its first heartbeat is late, and it ignores all messages."""
    thresholds = Thresholds(warmup_heartbeat_interval_seconds=0.05, scan_interval_seconds=0.05)
    async with running(thresholds) as service, node(service) as older:
        await older.register(node_id="older-1", platform="linux", features_supported={})
        await asyncio.sleep(0.5)  # ten warm-up intervals, as 15 s are to a registry of 2 s
        for _ in range(3):
            await older.heartbeat()
        await until(lambda: known(service, "older-1").status == "ready", what="the older node ready")
        await older.socket.close()
        async with node(service) as returned:
            await until(lambda: not known(service, "older-1").connected, what="its old connection closed")
            assert (await returned.register(node_id="older-1"))["node_id"] == "older-1"


async def test_r06_a_connected_id_is_a_conflict_and_a_disconnected_one_may_return(
    service: RegistryService, ready: Node
) -> None:
    async with node(service) as other:
        await other.send({"type": "node_register", "version": "1", "node_id": ready.node_id, **_hardware()})
        assert (await other.receive())["code"] == "NODE_ID_CONFLICT"
        await ready.socket.close()
        await until(lambda: not known(service, ready.node_id).connected, what="the first one disconnected")
        assert (await other.register(node_id=ready.node_id))["node_id"] == ready.node_id


async def test_a_request_to_a_registry_that_has_not_started_is_an_error() -> None:
    service = RegistryService(ServiceSettings(node_listen=LOOPBACK), MemoryStore())
    with pytest.raises(RuntimeError, match="start"):
        await service.claim(Job(job_id="job-1"))
    with pytest.raises(RuntimeError, match="start"):
        _ = service.node_address


async def test_performance_counts_heartbeats_and_selections_of_the_period(
    service: RegistryService, ready: Node
) -> None:
    service.performance()
    await ready.heartbeat()
    await placed(service, "job-1")
    await until(lambda: service.health.messages.heartbeats == 4, what="the heartbeat received")
    figures = service.performance()
    assert figures.heartbeats_per_second > 0
    assert figures.select_p99_us is not None
    assert service.performance().select_p99_us is None
    assert (service.size.nodes, service.size.connections) == (1, 1)


def _hardware() -> dict[str, object]:
    return {"hardware": {"cpu_cores": 1, "memory_gb": 1, "gpus": [{"name": "L4", "memory_gb": 24}]}}


async def test_explain_node_names_why_it_gets_no_job(service: RegistryService, ready: Node) -> None:
    await service.cordon(ready.node_id, reason="noisy fan")
    account = service.explain_node(ready.node_id, "other")
    assert account is not None
    assert [one.refuses for one in account.exclusions] == [
        "every job",
        "public jobs",
        "jobs that need model other",
    ]
    assert account.model is not None
    assert account.model.state == "not_installed"
    assert service.explain_node("node-x") is None


async def test_a_node_receives_refresh_check_and_reregister(service: RegistryService, ready: Node) -> None:
    assert await service.refresh(ready.node_id) is None
    assert (await ready.receive_type("node_control"))["command"] == "refresh"
    assert await service.check(ready.node_id) is None
    assert (await ready.receive_type("node_control"))["command"] == "check"
    assert await service.reregister(ready.node_id) is None
    assert (await ready.receive_type("node_control"))["command"] == "reregister"


async def test_commands_to_a_node_that_is_not_connected_are_refused(service: RegistryService) -> None:
    async with node(service) as gone:
        await gone.become_ready()
    await until(lambda: not known(service, gone.node_id).connected, what="the connection closed")
    refused = await service.refresh(gone.node_id)
    assert isinstance(refused, Refusal)
    assert refused.code == "NODE_NOT_CONNECTED"
    assert "registers by itself" in refused.message


async def test_select_returns_the_slot_that_a_claim_would_get_and_reserves_none(
    service: RegistryService, ready: Node
) -> None:
    chosen = service.select(Job(job_id="job-1"))
    assert isinstance(chosen, Selection)
    assert (chosen.node_id, chosen.held) == (ready.node_id, False)
    assert known(service, ready.node_id).claimed_jobs == ()
    await placed(service, "job-1")
    again, other = service.select(Job(job_id="job-1")), service.select(Job(job_id="job-2"))
    assert isinstance(again, Selection)
    assert (again.node_id, again.held) == (ready.node_id, True)
    assert isinstance(other, NoAvailableNode)
    assert service.exclusions() == []


# The facade and its store: failed saves, restarts, and a disk that hangs.


async def test_while_the_store_fails_no_node_that_is_shown_says_stored() -> None:
    store = FailingStore()
    async with running(store=store) as service, node(service) as ready:
        await ready.become_ready()
        assert known(service, ready.node_id).stored
        store.full = True
        refused = await service.claim(Job(job_id="job-1"))
        assert isinstance(refused, Refusal)
        assert known(service, ready.node_id).claimed_jobs == ("job-1",)
        assert not known(service, ready.node_id).stored
        assert [one.stored for one in service.nodes()] == [False]
        store.full = False
        await until(lambda: service.store_problem is None, what="the store works again")
        assert known(service, ready.node_id).stored


async def test_a_registration_that_cannot_be_saved_gets_busy_and_can_be_repeated() -> None:
    store = FailingStore()
    async with running(store=store) as service, node(service) as unlucky:
        store.full = True
        await unlucky.send(registration())
        refused = await unlucky.receive()
        assert (refused["code"], refused["retry_after_seconds"] > 0) == ("REGISTRY_BUSY", True)
        (record,) = service.nodes()
        assert not record.stored
        store.full = False
        await until(lambda: service.store_problem is None, what="the store works again")
        assert (await unlucky.register())["status"] == "registering"


async def test_a_node_whose_ack_was_never_sent_leaves_no_record_when_it_disconnects() -> None:
    store = FailingStore()
    async with running(store=store) as service:
        async with node(service) as unlucky:
            store.full = True
            await unlucky.send(registration())
            assert (await unlucky.receive())["code"] == "REGISTRY_BUSY"
        await until(lambda: not list(service.nodes()), what="the record removed")


async def test_a_claim_whose_save_fails_gets_busy_and_is_granted_once_the_store_works() -> None:
    store = FailingStore()
    async with running(store=store) as service, node(service) as ready:
        await ready.become_ready(max_concurrent_jobs=1)
        store.full = True
        refused = await service.claim(Job(job_id="job-1"))
        assert isinstance(refused, Refusal)
        assert refused.code == "REGISTRY_BUSY"
        assert "the disk is full" in refused.message
        store.full = False
        await until(lambda: service.store_problem is None, what="the store works again")
        await placed(service, "job-1")
        assert isinstance(await service.claim(Job(job_id="job-2")), NoAvailableNode)


async def test_stored_nodes_are_disconnected_after_a_restart() -> None:
    store = MemoryStore()
    async with running(store=store) as service:
        async with node(service) as ready:
            await ready.become_ready()
            await placed(service, "job-1")
        loaded = store.load()
    again = MemoryStore()
    again.save([Batch(loaded.changes, loaded.recent)])
    async with running(store=again) as service:
        (back,) = service.nodes()
        assert (back.status, back.connected, back.in_flight_jobs) == ("ready", False, 1)
        assert (await service.explain(Job(job_id="job-2"))).counts == {ExclusionReason.DISCONNECTED: 1}


async def test_an_unreadable_document_does_not_stop_the_registry() -> None:
    store = MemoryStore()
    store.save([Batch([Change(DocumentKind.NODE, "node-1", {"written_at": 1.0, "document": {"odd": True}})])])
    store.save([Batch([Change(DocumentKind.NODE, "node-2", {"odd": True})])])
    async with running(store=store) as service, node(service) as new:
        assert (await new.register())["status"] == "registering"


async def test_a_large_fleet_is_loaded_in_slices() -> None:
    store = MemoryStore()
    async with running(store=store) as service, node(service) as one:
        await one.register()
        (change,) = (change for change in store.load().changes if change.kind is DocumentKind.NODE)
    again = MemoryStore()
    again.save([Batch([_renamed(change, f"node-{number}") for number in range(2000)])])
    service = RegistryService(ServiceSettings(node_listen=LOOPBACK), again)
    starting = asyncio.ensure_future(service.start())
    seen = set()
    while not starting.done():
        seen.add(service.size.nodes)
        await asyncio.sleep(0)
    await service.stop()
    assert seen - {0, 2000}, "no other task ran while the fleet was loaded"


async def test_a_hanging_disk_delays_neither_a_status_nor_the_stop() -> None:
    thresholds = replace(QUICK, heartbeat_timeout_seconds=1.0)
    store = StuckStore()
    async with running(thresholds, store=store) as service, node(service) as silent:
        await silent.become_ready()
        store.answering.clear()
        claiming = asyncio.ensure_future(service.claim(Job(job_id="job-1")))
        await until(lambda: known(service, silent.node_id).status == "offline", what="the status")
        assert not claiming.done()
        began = time.monotonic()
        await service.stop()
        assert time.monotonic() - began < patience(4)
        assert claiming.cancelled() or isinstance(claiming.result(), Refusal)
        store.answering.set()


async def test_a_token_that_was_sent_to_no_one_is_not_stored_when_the_registry_stops() -> None:
    store = StuckStore()
    async with running(store=store) as service:
        store.answering.clear()
        refused = await service.tokens.create_join()
        assert isinstance(refused, Refusal)
        stopping = asyncio.ensure_future(service.stop())
        await asyncio.sleep(0)
        store.answering.set()
        await stopping
        assert not [change for change in store.held or () if change.kind is DocumentKind.TOKEN]


async def test_changes_in_progress_when_the_registry_stops_are_stored_and_answered() -> None:
    store = StuckStore()
    async with running(store=store) as service, node(service) as ready:
        await ready.become_ready()
        store.answering.clear()
        claiming = asyncio.ensure_future(service.claim(Job(job_id="job-1")))
        await asyncio.sleep(0)
        stopping = asyncio.ensure_future(service.stop())
        await asyncio.sleep(0)
        store.answering.set()
        await stopping
        assert isinstance(await claiming, ClaimView)


def _renamed(change: Change, node_id: str) -> Change:
    return Change(change.kind, node_id, json.loads(json.dumps(change.document).replace(change.key, node_id)))
