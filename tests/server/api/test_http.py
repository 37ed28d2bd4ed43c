"""HTTP as a client and a proxy rely on it, on a real socket: framing, refusals, compression, the stop."""

import asyncio
import gzip
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from email.utils import parsedate_to_datetime
from http import HTTPStatus

import httpx
import pytest

from gpu_agent.registry.actions import Refusal
from gpu_agent.registry.job import Job
from gpu_agent.server.api.compression import SMALLEST_BYTES
from gpu_agent.server.api.errors import STATUSES, problem_response
from gpu_agent.server.service import RegistryService
from tests.server.api_harness import answer_to_bytes, problem, serving
from tests.server.harness import Node, node, running, until
from tests.server.sse import following
from tests.waiting import patience

LENGTH_AND_CHUNKED = (
    b"POST /v1/claims HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
    b'Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n10\r\n{"job_id": "job"}\r\n0\r\n\r\n'
)
UNREADABLE = [
    (b"GET / HTTP/1.1\r\n\r\n", 400),  # no Host
    (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", 400),  # TLS
    (b"GET /\xff HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n", 400),
    (b"POST /v1/claims HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: x\r\n\r\n", 400),
    (b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nX: " + b"x" * 100_000, 431),
    (LENGTH_AND_CHUNKED, 400),
]


@pytest.mark.parametrize(
    ("request_bytes", "status"), UNREADABLE, ids=["host", "tls", "path", "length", "long", "both"]
)
async def test_an_unreadable_request_gets_a_problem_document_and_the_connection_closes(
    api: httpx.AsyncClient, request_bytes: bytes, status: int
) -> None:
    answer, headers, body = await answer_to_bytes(api, request_bytes)
    document = json.loads(body)
    assert (answer, document["status"], document["code"]) == (status, status, "REQUEST_UNREADABLE")
    assert headers["content-type"] == "application/problem+json"
    assert (headers["connection"], headers["content-length"]) == ("close", str(len(body)))
    assert document["detail"]


async def test_each_answer_is_dated_when_its_request_is_read(api: httpx.AsyncClient) -> None:
    before = int(time.time())
    answers = [await api.get("/healthz"), await api.get("/v1/nodes")]
    status, headers, _ = await answer_to_bytes(api, UNREADABLE[0][0])
    dates = [*(one.headers["date"] for one in answers), headers["date"]]
    assert status == HTTPStatus.BAD_REQUEST
    assert all(before <= parsedate_to_datetime(one).timestamp() <= time.time() for one in dates)


async def test_a_request_with_a_length_and_chunks_changes_nothing(
    service: RegistryService, api: httpx.AsyncClient, ready: Node
) -> None:
    assert ready.node_id
    await answer_to_bytes(api, LENGTH_AND_CHUNKED)
    assert service.claims() == []


async def test_what_follows_an_answer_unreadably_closes_the_connection(api: httpx.AsyncClient) -> None:
    status, _, body = await answer_to_bytes(
        api, b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n\x00\x01\r\n\r\n"
    )
    assert status == HTTPStatus.OK
    assert b"REQUEST_UNREADABLE" in body


async def test_no_content_has_no_type_and_no_length(api: httpx.AsyncClient, ready: Node) -> None:
    assert ready.node_id
    await api.post("/v1/claims", json={"job_id": "job-1"})
    gone = await api.delete("/v1/claims/job-1")
    assert (gone.status_code, gone.content) == (204, b"")
    assert not {"content-type", "content-length", "transfer-encoding"} & set(gone.headers)


@pytest.mark.parametrize("code", [code for code, status in STATUSES.items() if status in (429, 503)])
def test_every_refusal_for_now_says_when_to_try_again(code: str) -> None:
    response = problem_response(STATUSES[code], code, "later")
    assert int(response.headers["Retry-After"]) >= 1


# Compression


@asynccontextmanager
async def large_list(service: RegistryService, api: httpx.AsyncClient) -> AsyncIterator[bytes]:
    """A list of nodes that is worth compressing, as it is without compression."""
    async with node(service) as big:
        await big.become_ready(labels={f"label-{number}": "x" * 100 for number in range(200)})
        plain = await api.get("/v1/nodes", headers={"Accept-Encoding": "identity"})
        assert "content-encoding" not in plain.headers
        assert len(plain.content) > SMALLEST_BYTES
        yield plain.content


@pytest.mark.parametrize("accepted", ["gzip", "deflate, GZIP;q=0.5", "br, *"])
async def test_a_large_answer_is_compressed_for_a_client_that_accepts_it(
    service: RegistryService, api: httpx.AsyncClient, accepted: str
) -> None:
    async with large_list(service, api) as plain:
        async with api.stream("GET", "/v1/nodes", headers={"Accept-Encoding": accepted}) as answer:
            raw = b"".join([piece async for piece in answer.aiter_raw()])
        assert (answer.headers["content-encoding"], answer.headers["vary"]) == ("gzip", "Accept-Encoding")
        assert len(raw) < len(plain) / 4
        assert json.loads(gzip.decompress(raw))["count"] == json.loads(plain)["count"] == 1


@pytest.mark.parametrize("accepted", ["identity", "gzip;q=0", "gzip;q=0.0, *", "br"])
async def test_a_client_that_does_not_accept_gzip_gets_none(
    service: RegistryService, api: httpx.AsyncClient, accepted: str
) -> None:
    async with large_list(service, api):
        answer = await api.get("/v1/nodes", headers={"Accept-Encoding": accepted})
        assert "content-encoding" not in answer.headers
        assert answer.json()["count"] == 1


async def test_small_answers_and_event_streams_are_not_compressed(
    service: RegistryService, api: httpx.AsyncClient
) -> None:
    small = await api.get("/v1/nodes", headers={"Accept-Encoding": "gzip"})
    assert "content-encoding" not in small.headers
    async with following(api) as stream, node(service) as new:
        assert "content-encoding" not in stream.response.headers
        await new.register()
        assert await stream.until("node_registered")


# The stop


async def test_a_request_that_arrives_while_the_registry_stops_is_busy_and_says_when_to_try_again() -> None:
    async with running() as service, serving(service) as api, node(service) as ready:
        await ready.become_ready()
        await service.stop()
        for answer in (
            await api.post("/v1/claims", json={"job_id": "job-1"}),
            await api.post("/v1/claims/renew", json={"claims": [{"job_id": "job-1"}]}),
            await api.delete("/v1/claims/job-1"),
            await api.post(f"/v1/nodes/{ready.node_id}/cordon", json={}),
            await api.post("/v1/tokens", json={"kind": "join"}),
        ):
            if answer.status_code == HTTPStatus.OK:
                assert answer.json()["results"][0]["code"] == "REGISTRY_BUSY"
                continue
            assert (answer.status_code, problem(answer)["code"]) == (503, "REGISTRY_BUSY")
            assert int(answer.headers["Retry-After"]) >= 1


async def test_a_job_that_waits_while_the_registry_stops_is_refused_as_busy() -> None:
    async with running() as service, serving(service) as api, node(service) as ready:
        await ready.become_ready()
        await api.post("/v1/claims", json={"job_id": "job-1", "gpu_count": 1})
        job = {"job_id": "job-2", "gpu_count": 1, "wait_seconds": 60}
        waiting = asyncio.ensure_future(api.post("/v1/claims", json=job))
        await until(lambda: any(service.queue()), what="job-2 in the queue")
        await service.stop()
        answer = await asyncio.wait_for(waiting, patience(5))
        assert (answer.status_code, problem(answer)["code"]) == (503, "REGISTRY_BUSY")


async def test_a_stopped_registry_refuses_claims(
    service: RegistryService,
) -> None:
    await service.stop()
    refused = await service.claim(Job(job_id="job-1"))
    assert isinstance(refused, Refusal)
    assert refused.code == "REGISTRY_BUSY"
