"""What the API answers while the store is slow, on a real registry."""

import asyncio
import threading
from collections.abc import Sequence

import pytest

from gpu_agent.registry.actions import Refusal
from gpu_agent.registry.dispatch.exclusions import Explanation
from gpu_agent.registry.job import Job
from gpu_agent.store.base import Batch
from gpu_agent.store.memory import MemoryStore
from tests.server.api_harness import problem, serving
from tests.server.harness import node, running, until
from tests.waiting import patience


class SlowStore(MemoryStore):
    """A store that saves nothing while `going` is not set."""

    def __init__(self) -> None:
        super().__init__()
        self.going = threading.Event()
        self.going.set()
        self.waits = False

    def save(self, batches: Sequence[Batch]) -> None:
        self.waits = not self.going.is_set()
        self.going.wait(patience(10))
        super().save(batches)


async def test_a_node_says_stored_false_until_its_change_is_stored() -> None:
    store = SlowStore()
    async with running(store=store) as service, serving(service) as api, node(service) as ready:
        await ready.become_ready()
        path = f"/v1/nodes/{ready.node_id}"
        assert (await api.get(path)).json()["stored"] is True
        store.going.clear()
        change = asyncio.ensure_future(api.post(f"{path}/cordon", json={"reason": "new driver"}))
        await until(lambda: store.waits, what="the save in progress")
        shown, (listed,) = (await api.get(path)).json(), (await api.get("/v1/nodes")).json()["nodes"]
        assert [(one["cordoned"], one["stored"]) for one in (shown, listed)] == [("new driver", False)] * 2
        assert (await api.get(f"{path}/explain")).status_code == 200
        assert not change.done()
        store.going.set()
        assert (await change).json()["stored"] is True


async def test_claims_and_tokens_are_refused_while_the_store_does_not_answer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    store = SlowStore()
    async with running(store=store) as service, serving(service) as api, node(service) as ready:
        await ready.become_ready()
        settled = service.settled

        async def soon() -> bool:
            return await service._loop.settled(within_seconds=0.1)

        monkeypatch.setattr(service, "settled", soon)
        store.going.clear()
        change = asyncio.ensure_future(service.cordon(ready.node_id, reason="new driver"))
        await until(lambda: store.waits, what="the save in progress")
        for method, path in (("GET", "/v1/claims"), ("GET", "/v1/tokens"), ("POST", "/v1/dispatch/select")):
            refused = await api.request(method, path, json={})
            assert (refused.status_code, problem(refused)["code"]) == (503, "REGISTRY_BUSY")
            assert refused.headers["retry-after"] == "1"
        assert (await api.get("/healthz")).status_code == 200
        store.going.set()
        await change
        assert await settled()


async def test_an_explanation_is_sent_once_all_that_it_shows_is_stored(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    store = SlowStore()
    async with running(store=store) as service, serving(service) as api, node(service) as ready:
        await ready.become_ready()
        explain, changes = service.explain, list[asyncio.Future[Refusal | None]]()

        async def after_a_change(job: Job) -> Explanation:
            store.going.clear()
            changes.append(asyncio.ensure_future(service.cordon(ready.node_id, reason="new driver")))
            await until(lambda: store.waits, what="the save in progress")
            return await explain(job)

        async def soon() -> bool:
            return await service._loop.settled(within_seconds=0.1)

        monkeypatch.setattr(service, "explain", after_a_change)
        monkeypatch.setattr(service, "settled", soon)
        refused = await api.post("/v1/dispatch/explain", json={})
        assert (refused.status_code, problem(refused)["code"]) == (503, "REGISTRY_BUSY")
        store.going.set()
        await changes[0]
