"""Plain requests, read without a parser: the same requests as `h11` reads, and the same answers."""

import asyncio
import json
from collections.abc import Sequence
from typing import Any

import h11
import httpx
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from gpu_agent.server.api.plain_requests import MOST_PLAIN_BYTES, PlainRequest, read_plain
from gpu_agent.server.service import RegistryService
from tests.server.harness import Node, known, placed, until
from tests.waiting import patience

CLAIM = b'{"job_id": "job"}'
PLAIN = (
    b"POST /v1/claims?a=b HTTP/1.1\r\nHost: 127.0.0.1:1\r\nContent-Type: application/json\r\n"
    b"Accept:\t*/* \r\nConnection: Keep-Alive\r\nContent-Length: 17\r\n\r\n" + CLAIM
)
LEFT_TO_THE_PARSER = {
    "in parts": PLAIN[:-1],
    "two at once": PLAIN + PLAIN,
    "a head alone": PLAIN[:-17],
    "another version": PLAIN.replace(b"HTTP/1.1", b"HTTP/1.0"),
    "another method": PLAIN.replace(b"POST", b"HEAD"),
    "a whole URL": PLAIN.replace(b"/v1", b"http://127.0.0.1/v1"),
    "no host": PLAIN.replace(b"Host", b"Hose"),
    "two hosts": PLAIN.replace(b"Accept:\t*/*", b"host: other"),
    "two lengths": PLAIN.replace(b"Accept:\t*/*", b"content-length: 1"),
    "a length with a sign": PLAIN.replace(b" 17\r", b" +17\r"),
    "chunks": PLAIN.replace(b"Accept:\t*/*", b"Transfer-Encoding: chunked"),
    "a continuation": PLAIN.replace(b"Accept:\t*/*", b"Expect: 100-continue"),
    "an upgrade": PLAIN.replace(b"Accept:\t*/*", b"Upgrade: websocket"),
    "the last one": PLAIN.replace(b"Keep-Alive", b"close"),
    "a folded line": PLAIN.replace(b"Accept:\t*/*", b"Accept: a\r\n b"),
    "a bare line feed": PLAIN.replace(b"Accept:\t*/*", b"Accept: a\nX: b"),
    "a bare carriage return": PLAIN.replace(b"Accept:\t*/*", b"Accept: a\rb"),
    "a space before the colon": PLAIN.replace(b"Accept:", b"Accept :"),
    "a letter beyond ASCII": PLAIN.replace(b"*/*", b"\xff"),
    "a null": PLAIN.replace(b"*/*", b"a\0b"),
    "too long": PLAIN.replace(b"*/*", b"x" * MOST_PLAIN_BYTES),
}


def read_by_h11(data: bytes) -> PlainRequest:
    """Read one whole request; raises where it is none."""
    reader = h11.Connection(h11.SERVER)
    reader.receive_data(data)
    body, request = b"", None
    while not isinstance(event := reader.next_event(), h11.EndOfMessage):
        if isinstance(event, h11.Request):
            request = event
        else:
            assert isinstance(event, h11.Data)
            body += event.data
    assert request is not None
    assert reader.trailing_data == (b"", False)
    return PlainRequest(request.method.decode(), request.target, list(request.headers), body)


def test_a_plain_request_is_read_as_the_parser_reads_it() -> None:
    assert read_plain(PLAIN) == read_by_h11(PLAIN)
    assert read_plain(PLAIN.replace(b"Connection: Keep-Alive\r\n", b"")) is not None
    without_body = b"DELETE /v1/claims/a%20b HTTP/1.1\r\nhost: x\r\n\r\n"
    assert read_plain(without_body) == read_by_h11(without_body)


@pytest.mark.parametrize("data", LEFT_TO_THE_PARSER.values(), ids=LEFT_TO_THE_PARSER)
def test_whatever_is_unusual_is_left_to_the_parser(data: bytes) -> None:
    assert data != PLAIN
    assert read_plain(data) is None


@given(st.lists(st.tuples(st.integers(0, len(PLAIN)), st.integers(0, 2), st.binary(max_size=3)), max_size=4))
@example([(0, 0, b"\r\n")])
def test_no_damaged_request_is_read_otherwise_than_by_the_parser(edits: list[tuple[int, int, bytes]]) -> None:
    data = PLAIN
    for at, removed, inserted in edits:
        data = data[:at] + inserted + data[at + removed :]
    plain = read_plain(data)
    assert plain is None or plain == read_by_h11(data)


def claim(job_id: str, *, wait_seconds: int = 0) -> bytes:
    body = json.dumps({"job_id": job_id, "wait_seconds": wait_seconds}).encode()
    head = b"POST /v1/claims HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
    return head + b"Content-Length: %d\r\n\r\n" % len(body) + body


QUEUE = b"GET /v1/queue HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"


async def read_answer(reader: asyncio.StreamReader) -> tuple[int, dict[str, Any]]:
    async with asyncio.timeout(patience(5)):
        head = await reader.readuntil(b"\r\n\r\n")
        length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
        return int(head.split()[1]), json.loads(await reader.readexactly(length))


@pytest.mark.parametrize("behind", [(QUEUE,), (QUEUE, claim("late")), (QUEUE + claim("late"),)])
async def test_requests_behind_one_that_waits_are_answered_after_it_in_their_order(
    service: RegistryService, api: httpx.AsyncClient, ready: Node, behind: Sequence[bytes]
) -> None:
    assert ready.node_id
    slots = known(service, ready.node_id).max_concurrent_jobs or 4
    for number in range(slots):
        await placed(service, f"fills-{number}")
    reader, writer = await asyncio.open_connection(api.base_url.host, api.base_url.port)
    writer.write(claim("waits", wait_seconds=60))
    await until(lambda: service.queue_place("waits") == 1, what="a place in the queue")
    for one in behind:
        writer.write(one)
        await writer.drain()
        await api.get("/v1/queue")  # so that each comes in a read of its own
    for number in range(slots):
        await service.release(f"fills-{number}")
    status, first = await read_answer(reader)
    assert (status, first["job_id"]) == (200, "waits")
    assert await read_answer(reader) == (200, {"jobs": [], "count": 0})
    if claim("late") in b"".join(behind):
        status, last = await read_answer(reader)
        assert (status, last["job_id"]) == (200, "late")
    writer.close()


async def test_an_answer_of_unknown_length_comes_in_chunks(api: httpx.AsyncClient) -> None:
    reader, writer = await asyncio.open_connection(api.base_url.host, api.base_url.port)
    writer.write(b"GET /v1/events?follow=false HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
    async with asyncio.timeout(patience(5)):
        head = await reader.readuntil(b"\r\n\r\n")
        rest = await reader.readuntil(b"0\r\n\r\n")
    assert b"transfer-encoding: chunked" in head
    assert b"retry: 2000" in rest
    writer.write(QUEUE)
    assert await read_answer(reader) == (200, {"jobs": [], "count": 0})
    writer.close()
