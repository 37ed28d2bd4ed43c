"""What the API answers while the store is slow, on a real registry."""

import asyncio
import threading
from collections.abc import Sequence

import httpx
import pytest

from gpu_agent.store.base import Batch
from gpu_agent.store.memory import MemoryStore
from tests.server.api_harness import problem, serving
from tests.server.harness import Node, node, running, until


class SlowStore(MemoryStore):
    """A store that saves nothing while `going` is not set."""

    def __init__(self) -> None:
        super().__init__()
        self.going = threading.Event()
        self.going.set()
        self.waits = False

    def save(self, batches: Sequence[Batch]) -> None:
        self.waits = not self.going.is_set()
        self.going.wait(10)
        super().save(batches)


async def shown(api: httpx.AsyncClient, asked: Node) -> object:
    return (await api.get(f"/v1/nodes/{asked.node_id}")).json()["cordoned"]


async def test_a_change_is_not_shown_before_it_is_stored() -> None:
    store = SlowStore()
    async with running(store=store) as service, serving(service) as api, node(service) as ready:
        await ready.become_ready()
        store.going.clear()
        change = asyncio.ensure_future(service.cordon(ready.node_id, reason="new driver"))
        await until(lambda: store.waits, what="the save on its way")
        looks = [asyncio.ensure_future(shown(api, ready)) for _ in range(3)]
        listing = asyncio.ensure_future(api.get("/v1/nodes"))
        await asyncio.sleep(0.1)
        assert not any(one.done() for one in (*looks, listing))
        store.going.set()
        assert await change is None
        assert [await look for look in looks] == ["new driver"] * 3
        assert (await listing).json()["nodes"][0]["cordoned"] == "new driver"


async def test_reads_are_refused_while_the_store_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    store = SlowStore()
    async with running(store=store) as service, serving(service) as api, node(service) as ready:
        await ready.become_ready()
        settled = service.settled

        async def soon() -> bool:
            return await service._loop.settled(within_seconds=0.1)

        monkeypatch.setattr(service, "settled", soon)
        store.going.clear()
        change = asyncio.ensure_future(service.cordon(ready.node_id, reason="new driver"))
        await until(lambda: store.waits, what="the save on its way")
        for path in (f"/v1/nodes/{ready.node_id}", "/v1/nodes", "/v1/claims", "/v1/tokens"):
            refused = await api.get(path)
            assert (refused.status_code, problem(refused)["code"]) == (503, "REGISTRY_BUSY")
        assert (await api.get("/healthz")).status_code == 200
        store.going.set()
        await change
        assert await settled()
