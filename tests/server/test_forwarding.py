"""A standby of a registry answers as its leader does: it forwards every request, once, and its answer."""

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from pathlib import Path

import httpx
import pytest

from gpu_agent.registry.tokens import Role
from gpu_agent.runtime.address import Address
from gpu_agent.server.api import events
from gpu_agent.server.api.auth import MAX_BODY_BYTES
from gpu_agent.server.api.instance import OWN_PATHS
from gpu_agent.server.event_log import RegistryEventLog
from gpu_agent.server.leadership import forward
from gpu_agent.server.leadership.forward import LeaderApi
from gpu_agent.server.service import RegistryService
from gpu_agent.server.tls import Encryption, TlsFiles
from tests.authority import Authority
from tests.server.api_harness import ROUTES, bearer, filled, logged, operator_token, problem
from tests.server.harness import Node, node, running, until
from tests.server.instances import SECRET, InstanceUnderTest, client, instance
from tests.server.sse import Parser, following
from tests.waiting import patience

NOT_COMPARED = {*OWN_PATHS, "/v1/backup"}
"""What each instance answers of itself, and what names a temporary file."""
JSON = {"Content-Type": "application/json"}
Peer = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


class Pair:
    """A leader, and a standby that forwards to it, with a client of each."""

    def __init__(self, leader: InstanceUnderTest, standby: InstanceUnderTest) -> None:
        self.leader, self.standby = leader, standby
        self.direct = httpx.AsyncClient(base_url=leader.url, trust_env=False)
        self.through = httpx.AsyncClient(base_url=standby.url, trust_env=False)


@asynccontextmanager
async def paired(service: RegistryService) -> AsyncIterator[Pair]:
    async with instance() as leader, instance(leader=leader.api, copy=service) as standby:
        leader.lead(service)
        pair = Pair(leader, standby)
        async with pair.direct, pair.through:
            yield pair


@pytest.fixture
async def pair(service: RegistryService) -> AsyncIterator[Pair]:
    async with paired(service) as pair:
        yield pair


@asynccontextmanager
async def played(peer: Peer) -> AsyncIterator[LeaderApi]:
    """What takes the place of a leader, and speaks to each connection as `peer` does."""
    speaking: dict[asyncio.Task[None], asyncio.StreamWriter] = {}

    async def speak(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        speaking[task] = writer
        with suppress(ConnectionError, asyncio.IncompleteReadError):
            await peer(reader, writer)

    server = await asyncio.start_server(speak, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    try:
        yield LeaderApi(f"http://127.0.0.1:{port}", None, SECRET)
    finally:
        server.close()
        for task, writer in speaking.items():
            task.cancel()
            writer.transport.abort()
        await asyncio.wait(speaking)


async def head_of(reader: asyncio.StreamReader) -> bytes:
    return await reader.readuntil(b"\r\n\r\n")


def essential(answer: httpx.Response) -> tuple[int, dict[str, str], bytes]:
    headers = {name: value for name, value in answer.headers.items() if name != "date"}
    return answer.status_code, headers, answer.content


@pytest.mark.parametrize(("method", "path"), [one for one in ROUTES if one[1] not in NOT_COMPARED])
async def test_every_route_answers_through_a_standby_as_it_does_directly(
    method: str, path: str, pair: Pair
) -> None:
    directly, through = [
        essential(await one.request(method, filled(path), json={})) for one in (pair.direct, pair.through)
    ]
    assert through == directly


async def test_a_job_is_claimed_renewed_and_released_through_a_standby(pair: Pair, ready: Node) -> None:
    job = {"job_id": "team/7 ü"}
    claim = (await pair.through.post("/v1/claims", json=job)).json()
    path = "/v1/claims/team%2F7%20%C3%BC"
    assert (await pair.through.post(f"{path}/renew", json={})).json()["claim_id"] == claim["claim_id"]
    assert problem(await pair.through.delete(f"{path}?claim_id=0"))["code"] == "CLAIM_SUPERSEDED"
    released = await pair.through.delete(f"{path}?claim_id={claim['claim_id']}")
    assert (released.status_code, released.content) == (204, b"")
    assert (await pair.direct.get("/v1/claims")).json()["count"] == 0
    assert ready.node_id


async def test_a_compressed_answer_passes_as_it_is(pair: Pair) -> None:
    async def read(api: httpx.AsyncClient) -> tuple[str, bytes]:
        async with api.stream("GET", "/openapi.json", headers={"Accept-Encoding": "gzip"}) as answer:
            return answer.headers["content-encoding"], b"".join([one async for one in answer.aiter_raw()])

    assert await read(pair.through) == await read(pair.direct)


async def test_a_reader_goes_on_at_another_instance_where_it_was(
    pair: Pair, service: RegistryService
) -> None:
    parser = Parser()
    async with following(pair.through, parser) as stream, node(service) as new:
        await new.become_ready()
        first = await stream.until("node_registered")
    assert parser.last_id is not None
    async with following(pair.direct) as witness, following(pair.through, parser) as stream:
        await service.cordon(new.node_id, reason="r")
        await witness.until("node_cordoned")
        rest = await stream.until("node_cordoned")
    ids = [int(one.id or 0) for one in (*first, *rest)]
    assert ids == list(range(ids[0], ids[-1] + 1))


@pytest.mark.parametrize("chunked", [False, True])
async def test_a_body_that_is_too_large_is_refused_by_the_leader(pair: Pair, *, chunked: bool) -> None:
    async def pieces() -> AsyncIterator[bytes]:
        for _ in range(40):
            yield b" " * (MAX_BODY_BYTES // 16)

    for api in (pair.direct, pair.through):
        body = pieces() if chunked else b" " * (MAX_BODY_BYTES + 1)
        refused = await api.post("/v1/dispatch/select", content=body, headers=JSON)
        assert (refused.status_code, problem(refused)["code"]) == (413, "BODY_TOO_LARGE")


async def test_the_largest_body_arrives_whole(pair: Pair, ready: Node) -> None:
    job = json.dumps({"job_id": "large"})
    body = (job + " " * (MAX_BODY_BYTES - len(job))).encode()

    async def pieces() -> AsyncIterator[bytes]:
        for at in range(0, len(body), 10_000):
            yield body[at : at + 10_000]

    for content in (body, pieces()):
        claim = await pair.through.post("/v1/claims", content=content, headers=JSON)
        assert (claim.status_code, claim.json()["job_id"]) == (200, "large")
    assert ready.node_id


async def test_the_leader_judges_the_clients_own_token_and_logs_its_address(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    async with running(auth_on=True) as service, paired(service) as pair:
        reader = bearer(await operator_token(service, Role.READ))
        from_elsewhere = httpx.AsyncHTTPTransport(local_address="127.0.0.2")
        async with httpx.AsyncClient(transport=from_elsewhere, base_url=pair.standby.url) as api:
            assert (await api.get("/v1/nodes", headers=reader)).status_code == 200
            assert (await api.post("/v1/claims", json={}, headers=reader)).status_code == 403
            assert (await api.get("/v1/nodes", headers=bearer("gpuo_00000000_guess"))).status_code == 401
    assert [one["address"] for one in logged(caplog, "operator_unauthorized")] == ["127.0.0.2"]


async def test_a_forwarded_address_is_believed_of_an_instance_alone(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.WARNING)
    async with running(auth_on=True) as service, paired(service) as pair:
        for mark in ("10.0.0.9", "guess 10.0.0.9", f"{SECRET}x 10.0.0.9"):
            await pair.direct.get("/v1/nodes", headers={"X-Gpu-Agent-Forwarded": mark})
        web_page = {"X-Gpu-Agent-Forwarded": f"guess {SECRET}", "Host": "evil.example"}
        refused = await pair.direct.get("/docs", headers=web_page)
        assert problem(refused)["code"] == "HOST_NOT_ALLOWED"
    assert [one["address"] for one in logged(caplog, "operator_unauthorized")] == ["127.0.0.1"]


async def test_a_standby_forwards_no_page_of_a_foreign_name(pair: Pair) -> None:
    refused = await pair.through.get("/docs", headers={"Host": "evil.example"})
    assert (refused.status_code, problem(refused)["code"]) == (403, "HOST_NOT_ALLOWED")


async def test_a_job_stops_waiting_when_its_client_leaves_the_standby(
    pair: Pair, service: RegistryService, ready: Node
) -> None:
    await service.drain(ready.node_id)
    waiting = asyncio.ensure_future(
        pair.through.post("/v1/claims", json={"job_id": "a", "wait_seconds": 60}, timeout=60)
    )
    await until(lambda: service.queue_place("a"), what="a job in the queue")
    waiting.cancel()
    with suppress(asyncio.CancelledError):
        await waiting
    await until(lambda: next(service.queue()).open_requests == 0, what="the request ended")


async def test_two_instances_that_take_each_other_for_the_leader_forward_once() -> None:
    async with instance() as one, instance() as other, client(one) as api:
        one.leader, other.leader = other.api, one.api
        refused = await api.post("/v1/claims", json={"job_id": "a"})
    assert (refused.status_code, problem(refused)["code"]) == (503, "REGISTRY_BUSY")
    assert refused.headers["retry-after"] == "1"
    assert "to which this request was forwarded does not lead any more" in refused.json()["detail"]


async def test_without_a_leader_every_request_is_refused_for_now() -> None:
    async with instance() as standby, client(standby) as api:
        refused = await api.get("/v1/nodes")
    assert (refused.status_code, problem(refused)["code"]) == (503, "REGISTRY_BUSY")
    assert refused.headers["retry-after"] == "1"


async def test_a_leader_that_is_down_is_logged_and_nothing_was_sent(caplog: pytest.LogCaptureFixture) -> None:
    listener = Address("127.0.0.1", 0).bind()
    gone = LeaderApi("http://{}:{}".format(*listener.getsockname()), None, SECRET)
    listener.close()
    async with instance(leader=gone) as standby, client(standby) as api:
        refused = await api.post("/v1/claims", json={"job_id": "a"})
    assert (refused.status_code, problem(refused)["code"]) == (503, "REGISTRY_BUSY")
    (seen,) = logged(caplog, "leader_unreachable")
    assert seen["url"] == gone.url


@pytest.mark.parametrize(
    ("method", "status", "code"), [("POST", 502, "OUTCOME_UNKNOWN"), ("GET", 503, "REGISTRY_BUSY")]
)
async def test_a_request_whose_answer_is_lost_is_not_sent_twice(method: str, status: int, code: str) -> None:
    received: list[bytes] = []

    async def die(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        received.append(await head_of(reader))
        writer.close()

    async with played(die) as api, instance(leader=api) as standby, client(standby) as one:
        lost = await one.request(method, "/v1/claims", json={"job_id": "a"})
    assert (lost.status_code, problem(lost)["code"]) == (status, code)
    assert len(received) == 1


@pytest.mark.parametrize("framing", [b"Content-Length: 100", b"Transfer-Encoding: chunked"])
async def test_an_answer_that_breaks_off_is_not_taken_for_a_whole_one(framing: bytes) -> None:
    async def die(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await head_of(reader)
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n%b\r\n\r\n5\r\n[1,2," % framing)
        await writer.drain()
        writer.close()

    async with played(die) as api, instance(leader=api) as standby, client(standby) as one:
        with pytest.raises(httpx.RemoteProtocolError):
            await one.get("/v1/nodes")


async def test_a_connection_to_the_leader_is_used_again_but_not_after_a_head() -> None:
    received: list[list[bytes]] = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        mine: list[bytes] = []
        received.append(mine)
        while True:
            mine.append((await head_of(reader)).split()[0])
            body = b"" if mine[-1] == b"HEAD" else b"{}"
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n" + body)

    async with played(answer) as api, instance(leader=api) as standby, client(standby) as one:
        for method in ("GET", "GET", "HEAD", "GET"):
            assert (await one.request(method, "/v1/nodes")).status_code == 200
    assert received == [[b"GET", b"GET", b"HEAD"], [b"GET"]]


async def test_an_answer_before_the_end_of_a_body_is_passed_on_at_once() -> None:
    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await head_of(reader)
        writer.write(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 401 Unauthorized\r\nContent-Length: 0\r\n\r\n")
        await asyncio.Event().wait()

    async with played(refuse) as api, instance(leader=api) as standby, client(standby) as one:
        refused = await one.post("/v1/claims", content=b" " * MAX_BODY_BYTES, headers=JSON)
    assert refused.status_code == 401


async def test_no_more_of_an_answer_is_read_than_its_client_takes() -> None:
    arrived = asyncio.Event()
    written = 0

    async def pour(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal written
        await head_of(reader)
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000000\r\n\r\n")
        while written < 1_000_000_000:
            writer.write(b"x" * 65536)
            written += 65536
            try:
                await asyncio.wait_for(writer.drain(), patience(0.5))
            except TimeoutError:
                arrived.set()
                await writer.drain()

    async with played(pour) as api, instance(leader=api) as standby:
        reader, writer = await asyncio.open_connection(standby.address.host, standby.address.port)
        writer.write(b"GET /v1/nodes HTTP/1.1\r\nHost: localhost\r\n\r\n")
        await asyncio.wait_for(arrived.wait(), patience(10))
        assert written < 50_000_000
        writer.close()
        assert reader is not None


@asynccontextmanager
async def frozen_leader() -> AsyncIterator[tuple[LeaderApi, asyncio.Event]]:
    """A leader that answers nothing, and what is set once it was asked."""
    arrived = asyncio.Event()

    async def freeze(reader: asyncio.StreamReader, _writer: asyncio.StreamWriter) -> None:
        await head_of(reader)
        arrived.set()
        await asyncio.Event().wait()

    async with played(freeze) as api:
        yield api, arrived


@pytest.mark.parametrize("leads_itself", [False, True])
async def test_a_frozen_leader_is_waited_for_until_another_one_leads(
    service: RegistryService, *, leads_itself: bool
) -> None:
    async with (
        frozen_leader() as (frozen, arrived),
        instance(leader=frozen) as standby,
        instance() as other,
        client(standby) as api,
    ):
        waiting = asyncio.ensure_future(api.post("/v1/claims", json={"job_id": "a"}, timeout=60))
        await asyncio.wait_for(arrived.wait(), patience(5))
        standby.leader = None if leads_itself else other.api
        (standby if leads_itself else other).lead(service)
        lost = await asyncio.wait_for(waiting, patience(5))
        assert (lost.status_code, problem(lost)["code"]) == (502, "OUTCOME_UNKNOWN")
        assert (await api.get("/v1/claims")).json()["count"] == 0


async def test_an_endless_answer_of_a_leader_that_lost_the_lead_is_cut_off(pair: Pair) -> None:
    headers = {"Accept": "text/event-stream"}
    async with (
        pair.through.stream("GET", "/v1/endpoints", headers=headers) as answer,
        instance() as successor,
    ):
        pieces = answer.aiter_raw()
        await anext(pieces)
        pair.standby.leader = successor.api
        with pytest.raises(httpx.RemoteProtocolError):
            async for _ in pieces:
                pass


async def test_a_stream_of_events_comes_from_the_standbys_own_copy_and_needs_no_leader(
    pair: Pair, service: RegistryService
) -> None:
    async with node(service) as new, following(pair.through) as stream:
        pair.standby.leader = None
        await new.become_ready()
        await stream.until("node_registered")


@pytest.mark.parametrize("at", ["standby", "leader"])
async def test_a_reader_that_is_ahead_of_an_instance_waits_for_it(
    pair: Pair, service: RegistryService, at: str, *, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A standby may have read an event in etcd before the leader has heard that it is stored."""
    api = pair.through if at == "standby" else pair.direct
    reach, waits = RegistryEventLog.reach, asyncio.Event()

    async def note(log: RegistryEventLog, event_id: int, *, within_seconds: float) -> bool:
        waits.set()
        return await reach(log, event_id, within_seconds=within_seconds)

    monkeypatch.setattr(RegistryEventLog, "reach", note)
    async with node(service) as new:
        await new.become_ready()
        seen = service.event_log.last_id + 1
        headers = {"Last-Event-ID": str(seen)}

        async def ahead() -> tuple[list[int], list[str]]:
            parser = Parser()
            parser.last_id = headers["Last-Event-ID"]
            async with following(api, parser) as stream:
                heard = await stream.until("node_uncordoned")
            return [int(one.id or 0) for one in heard], [one.name for one in heard]

        reading = asyncio.ensure_future(ahead())
        await asyncio.wait_for(waits.wait(), patience(5))
        await service.cordon(new.node_id, reason="r")
        await service.uncordon(new.node_id)
        numbers, names = await reading
    assert min(numbers) == seen + 1
    assert "events_missed" not in names


@pytest.mark.parametrize("is_current", [False, True])
async def test_a_reader_that_stays_ahead_is_refused_unless_the_copy_has_all(
    pair: Pair, service: RegistryService, monkeypatch: pytest.MonkeyPatch, *, is_current: bool
) -> None:
    """A stream that begins behind its reader repeats events, and says that others were missed."""
    monkeypatch.setattr(events, "BEHIND_SECONDS", 0.05)
    pair.standby.copy_is_current = is_current
    query: dict[str, str | int] = {"after": service.event_log.last_id + 5, "follow": "false"}
    answer = await pair.through.get("/v1/events", params=query)
    if is_current:  # no instance has that event
        assert "events_missed" in answer.text
    else:
        assert (answer.status_code, problem(answer)["code"]) == (503, "REGISTRY_BUSY")


async def test_a_renewed_key_of_the_leader_cuts_nothing_off(
    pair: Pair, service: RegistryService, ready: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(forward, "LOOK_SECONDS", 0.01)
    await service.drain(ready.node_id)
    job = {"job_id": "a", "wait_seconds": 60}
    waiting = asyncio.ensure_future(pair.through.post("/v1/claims", json=job, timeout=60))
    await until(lambda: service.queue_place("a"), what="a job in the queue")
    pair.standby.leader = replace(pair.leader.api, pin="renewed")
    assert (await pair.through.get("/v1/nodes")).status_code == 200
    async with node(service) as new:
        await new.become_ready()
        assert (await asyncio.wait_for(waiting, patience(10))).status_code == 200


async def test_the_leaders_key_must_have_its_pin(
    service: RegistryService, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    of_leader, of_standby = (
        Encryption(TlsFiles(own=Authority(tmp_path / name).issue())) for name in ("leader", "standby")
    )
    async with instance(tls=of_leader) as leader, instance(leader=leader.api) as standby:
        leader.lead(service)
        async with client(standby) as api:
            assert (await api.get("/v1/nodes")).status_code == 200
            assert not logged(caplog, "leader_unreachable")
            standby.leader = LeaderApi(leader.url, of_standby.pin, SECRET)
            refused = await api.post("/v1/claims", json={"job_id": "a"})
            assert (refused.status_code, problem(refused)["code"]) == (503, "REGISTRY_BUSY")
    (seen,) = logged(caplog, "leader_unreachable")
    assert str(seen["problem"]).startswith(f"the key there has the pin {of_leader.pin}, which is none")
