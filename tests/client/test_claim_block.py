"""A claim lasts as long as its block: renewed in it, released at its end; a loss is reported at once."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from gpu_agent.client import (
    ClaimLost,
    ClaimSuperseded,
    ClaimView,
    JobIdInUse,
    JobRequest,
    NoAvailableNode,
    RegistryClient,
    aio,
)
from gpu_agent.client.transport import Backoff
from gpu_agent.registry.actions import Refusal
from gpu_agent.registry.dispatch.exclusions import NoAvailableNode as NoNode
from gpu_agent.registry.events import ANYBODY, Requester
from gpu_agent.registry.job import Job
from gpu_agent.server.service import RegistryService
from tests.client.harness import ALL_GPUS, ONE_GPU, Front, fronted, thresholds, two_gpus
from tests.server.harness import Node
from tests.waiting import patience, until


class Record:
    """Notes with which claim id each renewal and each release arrives."""

    def __init__(self, service: RegistryService, monkeypatch: pytest.MonkeyPatch) -> None:
        self.renewals: list[str | None] = []
        self.releases: list[str | None] = []
        self._renew, self._release = service.renew, service.release
        monkeypatch.setattr(service, "renew", self.renew)
        monkeypatch.setattr(service, "release", self.release)

    async def renew(
        self,
        job_id: str,
        claim_id: str | None = None,
        *,
        ttl_seconds: float | None = None,
        requester: Requester = ANYBODY,
    ) -> ClaimView | Refusal:
        self.renewals.append(claim_id)
        return await self._renew(job_id, claim_id, ttl_seconds=ttl_seconds, requester=requester)

    async def release(
        self, job_id: str, claim_id: str | None = None, *, requester: Requester = ANYBODY, reason: str = ""
    ) -> Refusal | None:
        self.releases.append(claim_id)
        return await self._release(job_id, claim_id, requester=requester, reason=reason)


@pytest.fixture
def record(front: Front, monkeypatch: pytest.MonkeyPatch) -> Record:
    return Record(front.service, monkeypatch)


def held(front: Front) -> list[str]:
    return [claim.job_id for claim in front.service.claims()]


async def followed(front: Front, record: Record) -> None:
    """Wait until the client follows the events, and has renewed once because it follows them."""
    await until(lambda: front.service.event_log.subscribers == 1 and bool(record.renewals))


async def seen(event: asyncio.Event) -> None:
    async with asyncio.timeout(patience(5)):
        await event.wait()


@asynccontextmanager
async def short_lived(
    monkeypatch: pytest.MonkeyPatch, *, ttl_seconds: float
) -> AsyncIterator[tuple[Front, RegistryClient, Record]]:
    async with (
        fronted(thresholds(claim_ttl_seconds=ttl_seconds)) as front,
        two_gpus(front.service),
        RegistryClient(front.url) as client,
    ):
        yield front, client, Record(front.service, monkeypatch)


# The usual life


async def test_a_block_holds_gpus_and_its_end_releases_them_by_claim_id(
    front: Front, client: RegistryClient, gpu_node: Node, record: Record
) -> None:
    async with client.claim(ONE_GPU) as claim:
        assert (claim.node_id, claim.job_id) == (gpu_node.node_id, "train")
        assert claim.gpu_uuids == claim.nodes[0].gpu_uuids
        assert len(claim.gpu_uuids) == 1
        assert claim.endpoint is None
        assert [one.claim_id for one in front.service.claims()] == [claim.claim_id]
        assert not claim.lost.is_set()
    assert held(front) == []
    assert record.releases == [claim.claim_id]
    assert claim.loss is None


async def test_a_claim_is_renewed_at_a_third_of_its_ttl_always_by_its_claim_id(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with short_lived(monkeypatch, ttl_seconds=1.5) as (front, client, record):
        began = time.monotonic()
        async with client.claim(ONE_GPU) as claim:
            await until(lambda: len(record.renewals) >= 5)
            assert len(record.renewals) <= (time.monotonic() - began) / 0.5 + 2
            assert held(front) == ["train"]
            assert not claim.lost.is_set()
        assert set(record.renewals) == {claim.claim_id}
        assert record.releases == [claim.claim_id]


async def test_an_exception_of_the_block_releases_and_passes_unchanged(
    front: Front, client: RegistryClient, gpu_node: Node
) -> None:
    assert gpu_node.node_id
    with pytest.raises(ValueError, match="no such file"):
        async with client.claim(ONE_GPU):
            raise ValueError("no such file")
    assert held(front) == []


@pytest.mark.parametrize("raise_on_loss", [False, True])
async def test_a_block_cancelled_from_outside_stays_cancelled_and_releases(
    front: Front, client: RegistryClient, gpu_node: Node, *, raise_on_loss: bool
) -> None:
    assert gpu_node.node_id
    inside = asyncio.Event()

    async def work() -> None:
        async with client.claim(ONE_GPU, raise_on_loss=raise_on_loss):
            inside.set()
            await asyncio.Event().wait()

    task = asyncio.ensure_future(work())
    await seen(inside)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert held(front) == []


async def test_a_second_cancellation_does_not_stop_the_release(
    front: Front, client: RegistryClient, gpu_node: Node
) -> None:
    assert gpu_node.node_id
    inside = asyncio.Event()

    async def work() -> None:
        async with client.claim(ONE_GPU):
            inside.set()
            await asyncio.Event().wait()

    task = asyncio.ensure_future(work())
    await seen(inside)
    for _ in range(3):
        task.cancel()
        await asyncio.sleep(0)
    with pytest.raises(asyncio.CancelledError):
        await task
    assert held(front) == []


async def test_the_end_of_the_client_releases_what_is_still_held(front: Front, gpu_node: Node) -> None:
    assert gpu_node.node_id
    client = RegistryClient(front.url)
    await client.claim(ONE_GPU).__aenter__()
    assert held(front) == ["train"]
    await client.close()
    assert held(front) == []


async def test_a_claim_can_be_released_before_the_end_of_its_block(
    front: Front, client: RegistryClient, gpu_node: Node, record: Record
) -> None:
    assert gpu_node.node_id
    async with client.claim(ONE_GPU) as claim:
        await claim.release()
        assert held(front) == []
    assert record.releases == [claim.claim_id]


# Losses


async def test_a_node_that_goes_offline_sets_lost_at_once_long_before_a_renewal(
    front: Front, client: RegistryClient, gpu_node: Node, record: Record
) -> None:
    async with client.claim(ONE_GPU) as claim:
        await followed(front, record)
        began = time.monotonic()
        await front.service.remove(gpu_node.node_id)
        await seen(claim.lost)
        assert time.monotonic() - began < patience(2)
        assert claim.loss is not None
        assert claim.loss.code == "CLAIM_LOST"
        assert "offline" in claim.loss.message


async def test_a_release_by_another_caller_sets_lost_and_the_block_ends_quietly(
    front: Front, client: RegistryClient, gpu_node: Node, record: Record
) -> None:
    assert gpu_node.node_id
    async with client.claim(ONE_GPU) as claim:
        await followed(front, record)
        await front.service.release("train")
        await seen(claim.lost)
    assert claim.loss is not None
    assert claim.loss.code == "CLAIM_RELEASED"


async def test_a_claim_that_ended_before_the_events_were_followed_is_noticed_when_they_are(
    front: Front, client: RegistryClient, gpu_node: Node
) -> None:
    assert gpu_node.node_id
    async with client.claim(ONE_GPU) as claim:
        assert front.service.event_log.subscribers == 0
        await front.service.release("train")
        await seen(claim.lost)


async def test_a_superseded_claim_says_so_and_leaves_the_current_one_alone(
    front: Front, client: RegistryClient, gpu_node: Node, record: Record, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert gpu_node.node_id
    monkeypatch.setattr(aio, "END_EVENTS", {})
    async with client.claim(ONE_GPU) as claim:
        await followed(front, record)
        await front.service.release("train")
        current = await front.service.claim(Job(job_id="train", gpu_count=2))
        assert isinstance(current, ClaimView)
        claim.check()
        await seen(claim.lost)
        assert isinstance(claim.loss, ClaimSuperseded)
    assert [one.claim_id for one in front.service.claims()] == [current.claim_id]


async def test_raise_on_loss_ends_the_block_with_the_loss(
    front: Front, client: RegistryClient, gpu_node: Node, record: Record
) -> None:
    assert gpu_node.node_id

    async def work() -> None:
        async with client.claim(ONE_GPU, raise_on_loss=True):
            await followed(front, record)
            await front.service.release("train")
            await asyncio.Event().wait()

    with pytest.raises(ClaimLost) as lost:
        await work()
    assert lost.value.code == "CLAIM_RELEASED"
    task = asyncio.current_task()
    assert task is not None
    assert task.cancelling() == 0


async def test_without_raise_on_loss_the_block_goes_on(
    front: Front, client: RegistryClient, gpu_node: Node
) -> None:
    assert gpu_node.node_id
    finished = False
    async with client.claim(ONE_GPU) as claim:
        await front.service.release("train")
        await seen(claim.lost)
        await asyncio.sleep(0)
        finished = True
    assert finished


# A registry that is away


async def test_renewals_are_sent_again_while_no_port_answers_and_the_claim_lives_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with short_lived(monkeypatch, ttl_seconds=3.0) as (front, client, record):
        async with client.claim(ONE_GPU) as claim:
            await front.close()
            await asyncio.sleep(1.3)  # more than one renewal is due meanwhile
            assert not claim.lost.is_set()
            before = len(record.renewals)
            await front.open()
            await until(lambda: len(record.renewals) > before)
            await asyncio.sleep(2.0)
            assert not claim.lost.is_set()
            assert held(front) == ["train"]
        assert held(front) == []


async def test_a_registry_that_stays_away_for_a_ttl_means_that_the_claim_is_lost(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    living = short_lived(monkeypatch, ttl_seconds=1.0)
    async with living as (front, client, _), client.claim(ONE_GPU) as claim:
        await front.close()
        closed = time.monotonic()
        await seen(claim.lost)
        assert time.monotonic() - closed < patience(1.5)
        assert claim.loss is not None
        assert claim.loss.code == "CLAIM_EXPIRED"
        await front.open()


async def test_a_registry_that_stands_still_for_a_ttl_means_the_same_in_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    living = short_lived(monkeypatch, ttl_seconds=1.0)
    monkeypatch.setattr(aio, "RELEASE_SECONDS", 0.1)
    monkeypatch.setattr(Backoff, "next_delay", lambda *_: 60.0)
    async with living as (front, client, _), client.claim(ONE_GPU) as claim:
        await front.close()
        await asyncio.sleep(0.5)  # a renewal is refused a connection, and the next one comes as the TTL ends
        front.listen_in_silence()
        silent = time.monotonic()
        await seen(claim.lost)
        assert time.monotonic() - silent < patience(1.5)


async def test_a_release_without_an_answer_takes_bounded_time(
    front: Front, client: RegistryClient, gpu_node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert gpu_node.node_id
    monkeypatch.setattr(aio, "RELEASE_SECONDS", 0.5)
    async with client.claim(ONE_GPU):
        await front.close()
        began = time.monotonic()
    assert time.monotonic() - began < patience(3)
    await front.open()


# Waiting


async def test_a_job_waits_for_its_gpus(front: Front, client: RegistryClient, gpu_node: Node) -> None:
    assert gpu_node.node_id
    await front.service.claim(Job(job_id="first", gpu_count=2))

    async def free_later() -> None:
        await until(lambda: any(front.service.queue()))
        await front.service.release("first")

    freeing = asyncio.ensure_future(free_later())
    async with client.claim(ONE_GPU, wait=60) as claim:
        assert claim.view.state == "active"
    await freeing


async def test_a_wait_that_is_longer_than_one_request_asks_again_and_stays_one_entry(
    front: Front, client: RegistryClient, gpu_node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert gpu_node.node_id
    monkeypatch.setattr(aio, "LONGEST_WAIT_SECONDS", 1.0)
    await front.service.claim(Job(job_id="first", gpu_count=2))
    requests = []
    claim_slots = front.service.claim

    async def counting(job: Job, *, requester: Requester = ANYBODY) -> ClaimView | NoNode | Refusal:
        requests.append(job.wait_seconds)
        return await claim_slots(job, requester=requester)

    monkeypatch.setattr(front.service, "claim", counting)

    async def free_later() -> float:
        await until(lambda: len(requests) >= 3)
        (entry,) = front.service.queue()
        await front.service.release("first")
        return entry.waited_seconds

    freeing = asyncio.ensure_future(free_later())
    async with client.claim(ONE_GPU, wait=60):
        assert await freeing >= 1.9
    assert requests == [1.0, 1.0, 1.0]


async def test_a_wait_that_is_over_raises_with_the_reasons(
    front: Front, client: RegistryClient, gpu_node: Node
) -> None:
    assert gpu_node.node_id
    await front.service.claim(Job(job_id="first", gpu_count=2))
    with pytest.raises(NoAvailableNode) as refused:
        async with client.claim(ONE_GPU, wait=0.6):
            pass
    assert refused.value.counts == {"capacity_exceeded": 1}


async def test_what_no_node_could_ever_take_is_refused_at_once(
    client: RegistryClient, gpu_node: Node
) -> None:
    assert gpu_node.node_id
    began = time.monotonic()
    with pytest.raises(NoAvailableNode) as refused:
        async with client.claim(JobRequest(job_id="huge", gpu_count=200), wait=60):
            pass
    assert time.monotonic() - began < patience(5)
    assert refused.value.counts == {"gpu_unavailable": 1}


async def test_a_job_id_in_use_for_other_demands_is_refused(
    front: Front, client: RegistryClient, gpu_node: Node
) -> None:
    assert gpu_node.node_id
    async with client.claim(ONE_GPU):
        with pytest.raises(JobIdInUse, match="other demands"):
            async with client.claim(ONE_GPU.model_copy(update={"gpu_count": 2})):
                pass
        assert held(front) == ["train"]


async def test_a_wait_that_is_cancelled_leaves_no_claim_behind(
    front: Front, client: RegistryClient, gpu_node: Node
) -> None:
    assert gpu_node.node_id
    await front.service.claim(Job(job_id="first", gpu_count=2))

    async def work() -> None:
        async with client.claim(ALL_GPUS, wait=60):
            raise AssertionError("no GPU is free")

    task = asyncio.ensure_future(work())
    await until(lambda: any(front.service.queue()))
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await front.service.release("first")
    await until(lambda: all(not one.open_requests for one in front.service.queue()))
    assert held(front) == []


async def test_a_claim_that_was_granted_while_its_request_was_cancelled_is_released(
    front: Front, client: RegistryClient, gpu_node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The registry has granted it, and the answer never reached its caller."""
    assert gpu_node.node_id
    claim_slots, granted = front.service.claim, asyncio.Event()

    async def without_answer(job: Job, *, requester: Requester = ANYBODY) -> ClaimView | NoNode | Refusal:
        answer = await claim_slots(job, requester=requester)
        if not granted.is_set():
            granted.set()
            await asyncio.sleep(0.5)
        return answer

    monkeypatch.setattr(front.service, "claim", without_answer)

    async def work() -> None:
        async with client.claim(ONE_GPU):
            raise AssertionError("it was cancelled before")

    task = asyncio.ensure_future(work())
    await seen(granted)
    assert held(front) == ["train"]
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert held(front) == []
