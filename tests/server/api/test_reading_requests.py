"""What is read as a request, and what is refused, byte by byte on a real socket."""

import asyncio
import json
from collections.abc import Sequence
from http import HTTPStatus
from typing import Any

import httpx
import pytest

from gpu_agent.server.api.connection import MOST_HEAD_BYTES, MOST_HEADERS
from gpu_agent.server.service import RegistryService
from tests.server.api_harness import answer_to_bytes, dialled
from tests.server.harness import Node, known, placed, until
from tests.waiting import patience

BODY = b'{"job_id": "job"}'
CLAIM = (
    b"POST /v1/claims HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
    b"Accept:\t*/* \r\nContent-Length: 17\r\n\r\n" + BODY
)
CHUNKED = (
    b"POST /v1/claims HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
    b"Transfer-Encoding: chunked\r\n\r\n11\r\n" + BODY + b"\r\n0\r\n\r\n"
)
QUEUE = b"GET /v1/queue HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"
EVENTS = b"GET /v1/events?follow=false HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"


def accepts(header: bytes) -> bytes:
    """The claim with another header in the place of its `Accept`."""
    return CLAIM.replace(b"Accept:\t*/* ", header)


def coded(coding: bytes) -> bytes:
    return CHUNKED.replace(b"chunked", coding)


TOO_LONG = b"x" * (MOST_HEAD_BYTES + 2048)
REFUSED = {
    "no host": (CLAIM.replace(b"Host", b"Hose"), 400),
    "two hosts": (accepts(b"host: 127.0.0.1"), 400),
    "two lengths": (accepts(b"Content-Length: 1"), 400),
    "the same length twice": (accepts(b"Content-Length: 17"), 400),
    "a list of lengths": (CLAIM.replace(b": 17", b": 17, 17"), 400),
    "a length with a sign": (CLAIM.replace(b": 17", b": +17"), 400),
    "a length and chunks": (accepts(b"Transfer-Encoding: chunked"), 400),
    "chunks and a length": (CHUNKED.replace(b"chunked\r\n", b"chunked\r\nContent-Length: 17\r\n"), 400),
    "no chunks at the end": (coded(b"gzip"), 501),
    "two codings": (coded(b"gzip, chunked"), 501),
    "a coding without a name": (coded(b",chunked"), 501),
    "codings in two headers": (coded(b"identity\r\nTransfer-Encoding: chunked"), 501),
    "chunks and then another coding": (coded(b"chunked\r\nTransfer-Encoding: identity"), 400),
    "almost chunked": (coded(b"xchunked"), 501),
    "chunks in HTTP/1.0": (CHUNKED.replace(b"HTTP/1.1", b"HTTP/1.0"), 501),
    "HTTP/2.0": (CLAIM.replace(b"HTTP/1.1", b"HTTP/2.0"), 505),
    "HTTP/0.9": (CLAIM.replace(b"HTTP/1.1", b"HTTP/0.9"), 505),
    "no version": (CLAIM.replace(b" HTTP/1.1", b""), 505),
    "a bare carriage return": (accepts(b"Accept: a\rb"), 400),
    "a bare line feed": (accepts(b"Accept: a\nX: b"), 400),
    "line feeds alone": (CLAIM.replace(b"\r\n", b"\n"), 400),
    "a folded line": (accepts(b"Accept: a\r\n b"), 400),
    "a space before the colon": (accepts(b"Accept : a"), 400),
    "a space before the colon of a length": (CLAIM.replace(b"Length:", b"Length :"), 400),
    "a line without a colon": (accepts(b"Accept"), 400),
    "a null in a header": (accepts(b"Accept: a\0b"), 400),
    "a control character in a header": (accepts(b"Accept: a\x01b"), 400),
    "a null in the path": (CLAIM.replace(b"/claims", b"/claims\0"), 400),
    "a byte beyond ASCII in the path": (CLAIM.replace(b"/claims", b"/claims\xff"), 400),
    "a space in the path": (CLAIM.replace(b"/claims", b"/claims x"), 400),
    "a fragment": (CLAIM.replace(b"/claims", b"/claims#x"), 400),
    "no path": (CLAIM.replace(b"/v1/claims", b"http://127.0.0.1"), 400),
    "a tunnel": (CLAIM.replace(b"POST /v1/claims", b"CONNECT 127.0.0.1:80"), 400),
    "no method of HTTP": (CLAIM.replace(b"POST", b"post"), 400),
    "the size of a chunk with a sign": (CHUNKED.replace(b"11\r\n{", b"+11\r\n{"), 400),
    "the size of a chunk in another base": (CHUNKED.replace(b"11\r\n{", b"0x11\r\n{"), 400),
    "more than the chunk's size": (CHUNKED.replace(b"11\r\n{", b"10\r\n{"), 400),
    "a line feed after a chunk's size": (CHUNKED.replace(b"11\r\n{", b"11\n{"), 400),
    "a bare carriage return in a trailer": (CHUNKED.replace(b"0\r\n\r\n", b"0\r\nX: a\rb\r\n\r\n"), 400),
    "a long header": (accepts(b"X: " + TOO_LONG), 431),
    "a long path": (CLAIM.replace(b"/claims", b"/claims?" + TOO_LONG), 431),
    "many headers": (accepts(b"\r\n".join(b"X-%d: x" % n for n in range(10 * MOST_HEADERS))), 431),
    "long trailers": (CHUNKED.replace(b"0\r\n\r\n", b"0\r\nX: " + TOO_LONG), 431),
}


@pytest.mark.parametrize(("data", "status"), REFUSED.values(), ids=REFUSED)
async def test_what_rfc_9112_forbids_is_refused_and_nothing_behind_it_is_read(
    service: RegistryService, api: httpx.AsyncClient, ready: Node, data: bytes, status: int
) -> None:
    assert ready.node_id
    answer, headers, body = await answer_to_bytes(api, data + CLAIM)
    document = json.loads(body)  # one answer alone
    assert (answer, document["status"], document["code"]) == (status, status, "REQUEST_UNREADABLE")
    assert (headers["connection"], headers["content-length"]) == ("close", str(len(body)))
    assert service.claims() == []


UPGRADE = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAEAAEAAAAIAAAAA"
ACCEPTED = {
    "as most clients write it": CLAIM,
    "chunks": CHUNKED,
    "chunks in capitals": coded(b"Chunked"),
    "an extension of a chunk": CHUNKED.replace(b"11\r\n{", b'11;a="b"\r\n{'),
    "trailers": CHUNKED.replace(b"0\r\n\r\n", b"0\r\nX-Sum: 1\r\n\r\n"),
    "empty lines before it": b"\r\n\r\n" + CLAIM,
    "a whole URL": CLAIM.replace(b"/v1", b"http://127.0.0.1/v1"),
    "a letter beyond ASCII in a header": accepts(b"X: \xff"),
    "spaces behind a value": CLAIM.replace(b"application/json", b"application/json \t"),
    "as long a head as is always read": accepts(b"X: " + b"x" * (MOST_HEAD_BYTES - 200)),
    "an upgrade to what is not spoken": accepts(UPGRADE),
    "chunks with an upgrade": CHUNKED.replace(b"Transfer", UPGRADE + b"\r\nTransfer"),
}


@pytest.mark.parametrize("data", ACCEPTED.values(), ids=ACCEPTED)
@pytest.mark.parametrize("piece_bytes", [1 << 20, 7])
async def test_whatever_rfc_9112_allows_is_read_at_once_or_in_pieces_and_so_is_what_follows(
    api: httpx.AsyncClient, ready: Node, data: bytes, piece_bytes: int
) -> None:
    assert ready.node_id
    if len(data) > 1000:
        piece_bytes *= 1000
    async with dialled(api) as (reader, writer):
        stream = data + QUEUE
        for at in range(0, len(stream), piece_bytes):
            writer.write(stream[at : at + piece_bytes])
            await writer.drain()
            await asyncio.sleep(0)
        status, claimed = await read_answer(reader)
        assert (status, claimed["job_id"]) == (200, "job")
        assert await read_answer(reader) == (200, {"jobs": [], "count": 0})


async def test_a_client_that_waits_for_100_continue_gets_it(api: httpx.AsyncClient, ready: Node) -> None:
    assert ready.node_id
    async with dialled(api) as (reader, writer):
        writer.write(accepts(b"Expect: 100-continue").removesuffix(BODY))
        async with asyncio.timeout(patience(5)):
            assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        writer.write(BODY)
        assert (await read_answer(reader))[0] == HTTPStatus.OK


@pytest.mark.parametrize("job_id", [b"a%20b", b"a%2Fb", b"a%zz", b"%"])
async def test_percent_signs_are_a_path_also_where_they_encode_nothing(
    api: httpx.AsyncClient, job_id: bytes
) -> None:
    async with dialled(api) as (reader, writer):
        writer.write(b"DELETE /v1/claims/" + job_id + b" HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
        status, document = await read_answer(reader)
    assert (status, document["code"]) == (404, "CLAIM_NOT_FOUND")


async def test_http_1_0_gets_an_answer_without_chunks_that_ends_with_the_connection(
    api: httpx.AsyncClient,
) -> None:
    status, headers, body = await answer_to_bytes(api, QUEUE.replace(b"HTTP/1.1", b"HTTP/1.0"))
    assert (status, headers["connection"], json.loads(body)["count"]) == (200, "close", 0)
    assert headers["content-length"] == str(len(body))
    status, headers, body = await answer_to_bytes(api, EVENTS.replace(b"HTTP/1.1", b"HTTP/1.0"))
    assert (status, headers["connection"]) == (200, "close")
    assert "transfer-encoding" not in headers
    assert body.startswith(b"retry: 2000\n")


# Several requests on one connection


def claim(job_id: str, *, wait_seconds: int = 0) -> bytes:
    body = json.dumps({"job_id": job_id, "wait_seconds": wait_seconds}).encode()
    head = b"POST /v1/claims HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
    return head + b"Content-Length: %d\r\n\r\n" % len(body) + body


async def read_answer(reader: asyncio.StreamReader) -> tuple[int, dict[str, Any]]:
    async with asyncio.timeout(patience(5)):
        head = await reader.readuntil(b"\r\n\r\n")
        length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
        return int(head.split()[1]), json.loads(await reader.readexactly(length))


async def fill(service: RegistryService, ready: Node) -> list[str]:
    """Place jobs until the node is full."""
    assert ready.node_id
    filling = [f"fills-{number}" for number in range(known(service, ready.node_id).max_concurrent_jobs or 4)]
    for job_id in filling:
        await placed(service, job_id)
    return filling


@pytest.mark.parametrize("behind", [(QUEUE,), (QUEUE, claim("late")), (QUEUE + claim("late"),)])
@pytest.mark.parametrize("writes", ["one", "many"])
async def test_requests_behind_one_that_waits_are_answered_after_it_in_their_order(
    service: RegistryService, api: httpx.AsyncClient, ready: Node, behind: Sequence[bytes], writes: str
) -> None:
    filling = await fill(service, ready)
    async with dialled(api) as (reader, writer):
        writer.write(claim("waits", wait_seconds=60) + (b"".join(behind) if writes == "one" else b""))
        await until(lambda: service.queue_place("waits") == 1, what="a place in the queue")
        for one in () if writes == "one" else behind:
            writer.write(one)
            await writer.drain()
            await api.get("/v1/queue")  # so that each comes in a read of its own
        for job_id in filling:
            await service.release(job_id)
        status, first = await read_answer(reader)
        assert (status, first["job_id"]) == (200, "waits")
        assert await read_answer(reader) == (200, {"jobs": [], "count": 0})
        if claim("late") in b"".join(behind):
            status, last = await read_answer(reader)
            assert (status, last["job_id"]) == (200, "late")


async def test_many_requests_in_one_write_are_all_answered_in_their_order(api: httpx.AsyncClient) -> None:
    async with dialled(api) as (reader, writer):
        writer.write(b"".join(QUEUE.replace(b"queue", b"%d" % number) for number in range(500)))
        for number in range(500):
            status, document = await read_answer(reader)
            assert (status, f"/v1/{number}" in document["detail"]) == (404, True)


def waiting_claims() -> int:
    return sum(task.get_name() == "claim disconnect" for task in asyncio.all_tasks())


async def test_a_client_that_leaves_ends_its_wait_though_a_request_is_behind_it(
    service: RegistryService, api: httpx.AsyncClient, ready: Node
) -> None:
    await fill(service, ready)
    async with dialled(api) as (_, writer):
        writer.write(claim("waits", wait_seconds=60) + QUEUE)
        await until(lambda: service.queue_place("waits") == 1, what="a place in the queue")
        assert waiting_claims() == 1
    await until(lambda: waiting_claims() == 0, what="no request that waits")


async def test_what_is_unreadable_behind_a_request_that_waits_is_refused_after_its_answer(
    service: RegistryService, api: httpx.AsyncClient, ready: Node
) -> None:
    filling = await fill(service, ready)
    async with dialled(api) as (reader, writer):
        writer.write(claim("waits", wait_seconds=60) + QUEUE + b"\0\r\n\r\n" + claim("late"))
        await until(lambda: service.queue_place("waits") == 1, what="a place in the queue")
        for job_id in filling:
            await service.release(job_id)
        answers = [await read_answer(reader) for _ in range(3)]
        assert [status for status, _ in answers] == [200, 200, 400]
        assert answers[2][1]["code"] == "REQUEST_UNREADABLE"
        async with asyncio.timeout(patience(5)):
            assert await reader.read() == b""
    assert [one.job_id for one in service.claims()] == ["waits"]


async def test_an_answer_of_unknown_length_comes_in_chunks(api: httpx.AsyncClient) -> None:
    async with dialled(api) as (reader, writer):
        writer.write(EVENTS)
        async with asyncio.timeout(patience(5)):
            head = await reader.readuntil(b"\r\n\r\n")
            rest = await reader.readuntil(b"0\r\n\r\n")
        assert b"transfer-encoding: chunked" in head
        assert b"retry: 2000" in rest
        writer.write(QUEUE)
        assert await read_answer(reader) == (200, {"jobs": [], "count": 0})
