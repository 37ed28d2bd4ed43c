"""The facade and its store: what cannot be kept, what comes back, and a disk that stands still."""

import asyncio
import json
import time
from dataclasses import replace

from gpu_agent.registry.actions import Change, Kept, Refusal
from gpu_agent.registry.dispatch.verdict import Exclusion
from gpu_agent.registry.job import Job
from gpu_agent.server.service import RegistryService
from gpu_agent.server.service_settings import ServiceSettings
from gpu_agent.server.views import Placement
from gpu_agent.store.base import Batch
from gpu_agent.store.memory import MemoryStore
from tests.server.disks import FailingStore, StuckStore
from tests.server.harness import LOOPBACK, QUICK, known, node, placed, registration, running, until


async def test_a_registration_that_cannot_be_saved_is_told_busy_and_leaves_no_record() -> None:
    store = FailingStore()
    async with running(store=store) as service, node(service) as unlucky:
        store.full = True
        await unlucky.say(registration())
        refused = await unlucky.hear()
        assert (refused["code"], refused["retry_after_seconds"] > 0) == ("REGISTRY_BUSY", True)
        assert list(service.nodes()) == []
        store.full = False
        assert (await unlucky.register())["status"] == "registering"


async def test_a_claim_that_cannot_be_saved_is_refused_and_leaves_the_place_free() -> None:
    store = FailingStore()
    async with running(store=store) as service, node(service) as ready:
        await ready.become_ready(max_concurrent_jobs=1)
        store.full = True
        refused = await service.claim(Job(job_id="job-1"))
        assert isinstance(refused, Refusal)
        assert refused.code == "REGISTRY_BUSY"
        assert "the disk is full" in refused.message
        store.full = False
        await placed(service, "job-2")


async def test_what_was_kept_comes_back_disconnected_after_a_restart() -> None:
    kept = MemoryStore()
    async with running(store=kept) as service:
        async with node(service) as ready:
            await ready.become_ready()
            await placed(service, "job-1")
        loaded = kept.load()
    again = MemoryStore()
    again.save([Batch(loaded.changes, loaded.recent)])
    async with running(store=again) as service:
        (back,) = service.nodes()
        assert (back.status, back.connected, back.in_flight_jobs) == ("ready", False, 1)
        assert (await service.explain(Job(job_id="job-2"))).counts == {Exclusion.DISCONNECTED: 1}


async def test_a_document_that_cannot_be_read_stops_nobody() -> None:
    store = MemoryStore()
    store.save([Batch([Change(Kept.NODE, "node-1", {"written_at": 1.0, "document": {"odd": True}})])])
    store.save([Batch([Change(Kept.NODE, "node-2", {"odd": True})])])
    async with running(store=store) as service, node(service) as new:
        assert (await new.register())["status"] == "registering"


async def test_a_great_fleet_is_taken_back_in_slices() -> None:
    kept = MemoryStore()
    async with running(store=kept) as service, node(service) as one:
        await one.register()
        (change,) = (change for change in kept.load().changes if change.kind is Kept.NODE)
    again = MemoryStore()
    again.save([Batch([_renamed(change, f"node-{number}") for number in range(2000)])])
    service = RegistryService(ServiceSettings(node_listen=LOOPBACK), again)
    starting = asyncio.ensure_future(service.start())
    seen = set()
    while not starting.done():
        seen.add(service.size.nodes)
        await asyncio.sleep(0)
    await service.stop()
    assert seen - {0, 2000}, "nobody had a turn while the fleet was taken back"


async def test_a_disk_that_stands_still_keeps_no_node_from_its_verdict_nor_the_registry_from_stopping() -> (
    None
):
    thresholds = replace(QUICK, heartbeat_timeout_seconds=1.0)
    store = StuckStore()
    async with running(thresholds, store=store) as service, node(service) as silent:
        await silent.become_ready()
        store.turning.clear()
        claiming = asyncio.ensure_future(service.claim(Job(job_id="job-1")))
        await until(lambda: known(service, silent.node_id).status == "offline", what="a verdict")
        assert not claiming.done()
        began = time.monotonic()
        await service.stop()
        assert time.monotonic() - began < 4
        assert claiming.cancelled() or claiming.exception() is not None
        store.turning.set()


async def test_what_is_on_its_way_when_the_registry_stops_is_kept_and_answered() -> None:
    store = StuckStore()
    async with running(store=store) as service, node(service) as ready:
        await ready.become_ready()
        store.turning.clear()
        claiming = asyncio.ensure_future(service.claim(Job(job_id="job-1")))
        await asyncio.sleep(0)
        stopping = asyncio.ensure_future(service.stop())
        await asyncio.sleep(0)
        store.turning.set()
        await stopping
        assert isinstance(await claiming, Placement)


def _renamed(change: Change, node_id: str) -> Change:
    return Change(change.kind, node_id, json.loads(json.dumps(change.document).replace(change.key, node_id)))
