"""No claim is left behind, wherever in a claim's life its caller is cancelled."""

import asyncio
import random
from collections.abc import Sequence

import pytest

from gpu_agent.client import JobRequest, RegistryClient, RegistryError
from gpu_agent.server.service import RegistryService
from tests.client.harness import Front
from tests.server.harness import Node
from tests.waiting import patience, until

JOBS = 4


async def hold(client: RegistryClient, job_id: str) -> None:
    async with client.claim(JobRequest(job_id=job_id, gpu_count=1), wait=5):
        await asyncio.sleep(0.02)


def nothing_is_held(service: RegistryService) -> bool:
    return not service.claims() and not any(one.open_requests for one in service.queue())


@pytest.mark.parametrize("seed", range(12))
async def test_cancelled_at_any_moment_a_job_leaves_no_claim(
    front: Front, client: RegistryClient, gpu_node: Node, seed: int
) -> None:
    """Four jobs want two GPUs; each is cancelled while it connects, waits, runs or is released."""
    assert gpu_node.node_id
    dice = random.Random(seed)  # noqa: S311 - dice that fall alike for the same seed
    for turn in range(5):
        tasks = [asyncio.ensure_future(hold(client, f"{turn}-{number}")) for number in range(JOBS)]
        for task in tasks:
            await asyncio.sleep(dice.uniform(0, 0.03))
            task.cancel()
        ends = await asyncio.wait_for(asyncio.shield(_all_ended(tasks)), 30)
        assert all(end is None or isinstance(end, asyncio.CancelledError) for end in ends), ends
        await until(lambda: nothing_is_held(front.service))


async def _all_ended(tasks: Sequence["asyncio.Future[None]"]) -> list[BaseException | None]:
    await asyncio.wait(tasks)
    return [asyncio.CancelledError() if one.cancelled() else one.exception() for one in tasks]


async def test_a_closed_client_says_so(front: Front) -> None:
    client = RegistryClient(front.url)
    following = asyncio.ensure_future(anext(client.events()))
    await until(lambda: bool(front.service.event_log.subscribers))
    await client.close()
    with pytest.raises(RegistryError, match="closed"):
        await client.queue()
    with pytest.raises(RegistryError, match="closed"):
        await asyncio.wait_for(following, patience(5))
