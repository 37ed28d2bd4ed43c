"""What a client reads and does besides claims, what it raises, and how it follows events."""

import asyncio
import subprocess
import sys
import traceback
from contextlib import aclosing
from typing import Any, NoReturn

import httpx
import pytest

from gpu_agent.client import (
    Busy,
    ClaimSuperseded,
    Forbidden,
    JobRequest,
    NoAvailableNode,
    NotFound,
    RegistryClient,
    RegistryError,
    Unreachable,
)
from gpu_agent.client.errors import refusal_of
from gpu_agent.registry.tokens import Role
from tests.client.harness import ALL_GPUS, ONE_GPU, Front, fronted, two_gpus
from tests.programs import free_port
from tests.server.api_harness import operator_token
from tests.server.harness import Node, node
from tests.waiting import patience, until

# Reads and actions


async def test_nodes_are_read_and_acted_on(client: RegistryClient, gpu_node: Node) -> None:
    node_id = gpu_node.node_id
    assert [node.node_id async for node in client.nodes()] == [node_id]
    assert [node.node_id async for node in client.nodes(statuses=["offline"])] == []
    assert [node.node_id async for node in client.nodes(labels={"zone": "a=b&c"})] == []
    assert [node.node_id async for node in client.nodes(connected=True, gpu_name="h100")] == [node_id]
    assert [node.node_id async for node in client.find_nodes("h100", show="free")] == [node_id]
    assert [node.node_id async for node in client.find_nodes(show="attention")] == []
    assert (await client.fleet()).nodes["ready"] == 1
    assert [len(one.points) for one in await client.gpu_history(node_id)] == [1, 1]
    assert (await client.cordon(node_id, reason="a new fan")).cordoned == "a new fan"
    assert (await client.explain_node(node_id)).refuses_every_job
    assert (await client.uncordon(node_id)).cordoned is None
    cordoned = await client.cordon(node_id, gpu_uuid="GPU-1", reason="hot")
    assert [gpu.uuid for gpu in cordoned.gpus if gpu.cordoned] == ["GPU-1"]
    await client.uncordon(node_id, gpu_uuid="GPU-1")
    drained = await client.drain(node_id, deadline_seconds=600, reason="new driver")
    assert drained.status in ("draining", "offline")
    await client.resume(node_id, reason="the driver is in")
    assert (await client.node(node_id)).node_id == node_id
    resumed = [one for one in await client.node_events(node_id) if one.event == "resume_requested"]
    assert resumed[-1].fields["reason"] == "the driver is in"
    assert "node_registered" in [event.event for event in await client.node_events(node_id)]
    await client.remove(node_id)
    with pytest.raises(NotFound) as gone:
        await client.node(node_id)
    assert gone.value.code == "UNKNOWN_NODE"


async def test_jobs_are_explained_and_selected_for_without_a_claim(
    client: RegistryClient, gpu_node: Node
) -> None:
    assert (await client.select(ONE_GPU)).node_id == gpu_node.node_id
    assert (await client.explain(ONE_GPU)).eligible == (gpu_node.node_id,)
    with pytest.raises(NoAvailableNode) as none:
        await client.select(JobRequest(job_id="j", required_models=("m2",)))
    assert none.value.counts == {"model_not_available": 1}
    assert [one async for one in client.claims()] == []
    assert {one.name for one in await client.thresholds()} >= {"claim_ttl_seconds"}
    assert await client.exclusions() == ()


async def test_claims_are_listed_shown_renewed_and_released_without_a_block(
    front: Front, client: RegistryClient, gpu_node: Node
) -> None:
    assert gpu_node.node_id
    waiting = asyncio.ensure_future(client.claim(ALL_GPUS, wait=30).__aenter__())
    async with client.claim(JobRequest(job_id="a/b c", gpu_count=2)) as claim:
        assert [one.claim_id async for one in client.claims()] == [claim.claim_id]
        assert (await client.claim_of("a/b c")).state == "active"
        assert (await client.renew("a/b c", claim.claim_id, ttl_seconds=77)).ttl_seconds == 77
        wrong, right = await client.renew_all([("a/b c", "f" * 32), ("a/b c", claim.claim_id)])
        assert (wrong.code, right.ok) == ("CLAIM_SUPERSEDED", True)
        with pytest.raises(ClaimSuperseded):
            await client.release("a/b c", "f" * 32)
        await until(lambda: any(front.service.queue()))
        assert [one.job_id for one in await client.queue()] == ["other"]
        await client.release("a/b c", claim.claim_id)
    assert (await waiting).job_id == "other"
    assert [one.state async for one in client.claims(ended=True)].count("released") == 1


async def test_a_claim_without_a_block_is_the_callers_to_renew_and_release(
    front: Front, gpu_node: Node
) -> None:
    async with RegistryClient(front.url) as client:
        claim = await client.create_claim(ONE_GPU)
        assert (claim.node_id, claim.state) == (gpu_node.node_id, "active")
        assert (await client.create_claim(ONE_GPU)).claim_id == claim.claim_id
    async with RegistryClient(front.url) as restarted:
        assert (await restarted.renew("train", claim.claim_id)).claim_id == claim.claim_id
        await restarted.release("train", claim.claim_id)
        assert [one async for one in restarted.claims()] == []


async def test_a_claim_without_a_block_survives_a_call_that_is_cancelled(
    front: Front, client: RegistryClient, gpu_node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same job was claimed before, and its job runs: nothing may release it."""
    assert gpu_node.node_id
    claim = await client.create_claim(ONE_GPU)
    arrived, claim_again = asyncio.Event(), front.service.claim

    async def never_answered(*words: Any, **options: Any) -> object:  # noqa: ANN401 - as the service takes them
        await claim_again(*words, **options)
        arrived.set()
        return await asyncio.Event().wait()

    monkeypatch.setattr(front.service, "claim", never_answered)
    asking = asyncio.ensure_future(client.create_claim(ONE_GPU))
    async with asyncio.timeout(patience(5)):
        await arrived.wait()
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    assert [one.claim_id async for one in client.claims()] == [claim.claim_id]


async def test_a_jobs_own_wait_counts_where_the_call_states_none(
    front: Front, client: RegistryClient, gpu_node: Node
) -> None:
    assert gpu_node.node_id
    patient = JobRequest(job_id="other", gpu_count=2, wait_seconds=60)
    first = await client.create_claim(ONE_GPU)
    waiting = asyncio.ensure_future(client.create_claim(patient))
    in_block = asyncio.ensure_future(client.claim(patient.model_copy(update={"job_id": "b"})).__aenter__())
    await until(lambda: len(list(front.service.queue())) == 2)
    await client.release("train", first.claim_id)
    second = await waiting
    await client.release("other", second.claim_id)
    assert (await in_block).job_id == "b"


async def test_a_wait_that_is_stated_twice_is_refused(client: RegistryClient) -> None:
    job = JobRequest(job_id="other", wait_seconds=60)
    with pytest.raises(ValueError, match="twice"):
        await client.create_claim(job, wait=1)
    with pytest.raises(ValueError, match="twice"):
        await client.claim(job, wait=1).__aenter__()


# Refusals


async def test_a_token_without_the_role_is_forbidden_and_so_is_another_owners_claim() -> None:
    async with fronted(auth_on=True) as front:
        read = await operator_token(front.service, Role.READ)
        async with RegistryClient(front.url, token=read) as client:
            assert [one async for one in client.nodes()] == []
            with pytest.raises(Forbidden) as refused:
                await client.claim(ONE_GPU).__aenter__()
            assert refused.value.status == 403
        async with RegistryClient(front.url) as stranger:
            with pytest.raises(Forbidden) as refused:
                await stranger.queue()
            assert refused.value.code == "UNAUTHORIZED"


async def test_a_registry_that_never_answers_is_unreachable_after_the_retries() -> None:
    async with RegistryClient(f"http://127.0.0.1:{free_port()}", retry_seconds=0.3) as client:
        with pytest.raises(Unreachable, match="is it running"):
            await client.queue()
        with pytest.raises(Unreachable):
            await anext(client.events())


async def test_a_stream_says_once_that_it_waits_for_a_registry_and_that_one_answers_again(
    front: Front, caplog: pytest.LogCaptureFixture
) -> None:
    async with RegistryClient(front.url, retry_seconds=patience(10)) as client:
        await front.close()
        watching = asyncio.ensure_future(anext(client.watch_endpoints()))
        await until(lambda: bool(caplog.messages))
        await asyncio.sleep(0.6)  # the time in which it asks once more
        assert not watching.done()
        await front.open()
        assert await watching == ()
    waits, answers = caplog.messages
    assert waits.startswith(f"waiting: no registry answers at {front.url} (")
    assert answers == "the registry answers again"


async def test_a_request_is_sent_again_while_the_registry_restarts(front: Front) -> None:
    async with RegistryClient(front.url, retry_seconds=patience(10)) as client:
        await front.close()
        asking = asyncio.ensure_future(client.queue())
        await asyncio.sleep(0.3)
        assert not asking.done()
        await front.open()
        assert await asking == ()


@pytest.mark.parametrize(
    "url", ["registry:8081", "ftp://registry", "http://", "http://registry:8081/v1", "https://r?x=1"]
)
def test_what_is_no_address_is_refused_before_anything_is_sent(url: str) -> None:
    with pytest.raises(ValueError, match="no address"):
        RegistryClient(url)


def test_a_token_is_not_sent_readably_over_a_network_unless_asked_for() -> None:
    with pytest.raises(ValueError, match="not encrypted"):
        RegistryClient("http://registry:8081", token="t")
    RegistryClient("http://registry:8081", token="t", insecure_plaintext=True)
    RegistryClient("http://127.0.0.1:8081", token="t")
    RegistryClient("http://[::1]:8081", token="t")
    RegistryClient("https://registry:8081", token="t")


async def test_a_token_may_be_the_whole_content_of_its_file() -> None:
    async with fronted(auth_on=True) as front:
        token = await operator_token(front.service, Role.READ)
        async with RegistryClient(front.url, token=f"{token}\n") as client:
            assert await client.queue() == ()


@pytest.mark.parametrize(
    "token", ["", "\n", "gpuo_1_s3cret\ngpuo_2_s3cret", "gpuo_1_s3cret\x00", "gpuo_s3crét", "Bearer s3cret"]
)
def test_what_is_no_token_is_refused_at_once_and_not_quoted(token: str) -> None:
    with pytest.raises(ValueError, match="no token has") as refused:
        RegistryClient("https://registry:8081", token=token)
    assert "s3cr" not in "".join(traceback.format_exception(refused.value))


async def test_a_request_that_breaks_http_here_is_sent_once_and_not_quoted(
    client: RegistryClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[object] = []

    def refuse(*words: object, **_: object) -> NoReturn:
        asked.append(words)
        raise httpx.LocalProtocolError("Illegal header value b'Bearer s3cret'")

    monkeypatch.setattr(httpx.AsyncHTTPTransport, "handle_async_request", refuse)
    for asking in (client.queue(), anext(client.events())):
        with pytest.raises(RegistryError) as refused:
            await asking
        assert not isinstance(refused.value, Unreachable)
        assert refused.value.code == "INVALID_REQUEST"
        assert "s3cret" not in "".join(traceback.format_exception(refused.value))
    assert len(asked) == 2


def test_a_busy_registry_says_when_to_ask_again() -> None:
    content = b'{"status": 503, "title": "t", "code": "REGISTRY_BUSY", "detail": "the disk is slow"}'
    busy = refusal_of(content, status=503, retry_after="1")
    assert isinstance(busy, Busy)
    assert (busy.message, busy.code, busy.retry_after_seconds) == ("the disk is slow", "REGISTRY_BUSY", 1.0)


def test_what_answers_without_a_problem_document_is_no_registry() -> None:
    answer = refusal_of(b"<html>Bad gateway", status=502, retry_after=None)
    assert isinstance(answer, Unreachable)
    assert "502" in answer.message


async def test_an_answer_that_cannot_be_read_says_so(
    front: Front, client: RegistryClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert front.url

    async def odd(*_: object, **__: object) -> httpx.Response:
        return httpx.Response(200, content=b'{"jobs": 3}')

    monkeypatch.setattr(httpx.AsyncClient, "request", odd)
    with pytest.raises(RegistryError, match="upgrade") as unreadable:
        await client.queue()
    assert unreadable.value.code == "INVALID_ANSWER"


# Events


async def test_events_go_on_behind_the_last_one_over_a_restart_of_the_port(
    front: Front, client: RegistryClient
) -> None:
    seen: list[int] = []

    async def follow() -> None:
        async with aclosing(client.events(after=0)) as events:
            async for event in events:
                assert event.id is not None
                seen.append(event.id)

    following = asyncio.ensure_future(follow())
    async with two_gpus(front.service):
        await until(lambda: len(seen) >= 2)
        await front.close()
        async with two_gpus(front.service):
            await front.open()
            last = front.service.event_log.next_id() - 1
            await until(lambda: bool(seen) and seen[-1] >= last)
    assert seen[:last] == list(range(1, last + 1))
    following.cancel()


async def test_events_are_those_of_one_node_where_one_is_named(
    front: Front, client: RegistryClient, gpu_node: Node
) -> None:
    async with aclosing(client.events(after=0, node_id=gpu_node.node_id)) as events:
        first = await anext(events)
    assert first.node_id == gpu_node.node_id
    assert front.url


# Workers


async def test_workers_are_listed_and_watched_over_a_restart_of_the_port(
    front: Front, client: RegistryClient
) -> None:
    async with node(front.service) as worker, asyncio.timeout(patience(20)):
        await worker.become_ready(endpoint="http://10.0.0.1:8000", labels={"zone": "a"})
        (one,) = await client.endpoints(model="m", labels={"zone": "a"})
        assert (one.endpoint, one.free_slots) == ("http://10.0.0.1:8000", 4)
        assert await client.endpoints(model="other") == ()
        async with aclosing(client.watch_endpoints(model="m")) as lists:
            assert [one.node_id for one in await anext(lists)] == [worker.node_id]
            await front.close()
            await front.service.cordon(worker.node_id, reason="r")
            await front.open()
            assert await anext(lists) == ()


# What an import costs


def test_without_httpx_the_import_says_what_to_install() -> None:
    program = "import sys; sys.modules['httpx'] = None; import gpu_agent.client"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "pip install 'gpu-agent[client]'" in done.stderr


def test_the_command_line_loads_no_httpx() -> None:
    program = (
        "import sys; from gpu_agent.cli.main import main; import gpu_agent.cli.registry.claims; "
        "sys.exit('httpx' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
