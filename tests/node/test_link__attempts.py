import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from email.utils import formatdate
from time import time

import pytest

from gpu_agent.node import opening
from gpu_agent.session.events import ConnectFailed
from tests.node.a_link import answering, linked, refuse, served_by
from tests.older_scheduler import OlderScheduler
from tests.server.api import serving
from tests.server.harness import running


@asynccontextmanager
async def _saying(words: bytes, accepted: asyncio.Event | None = None) -> AsyncIterator[str]:
    """A server of no protocol: says its words to whoever comes and hangs up; without words it holds on."""
    held: list[asyncio.StreamWriter] = []

    async def serve_one(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        held.append(writer)
        writer.write(words)
        if words:
            writer.close()
        if accepted is not None:
            accepted.set()

    async with await asyncio.start_server(serve_one, "127.0.0.1", 0) as server:
        yield f"ws://127.0.0.1:{server.sockets[0].getsockname()[1]}/ws/node"
        for writer in held:
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()


async def test_closing_while_connecting_gives_up_at_once() -> None:
    accepted = asyncio.Event()
    async with _saying(b"", accepted) as url, linked(url) as (link, heard):
        async with asyncio.timeout(5):
            await accepted.wait()
        link.close(1000, "leaving")
        await link.ended(within_seconds=1)
        assert heard.events.empty()


async def test_a_server_that_is_silent_in_the_handshake_is_a_failed_attempt(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(opening, "OPEN_SECONDS", 0.1)
    async with _saying(b"") as url, linked(url) as (_, heard):
        assert await heard.next() == ConnectFailed("no WebSocket came up within 0.1 s")


async def test_nobody_there_is_a_failed_attempt() -> None:
    async with OlderScheduler() as scheduler:
        url = scheduler.url
    async with linked(url) as (_, heard):
        failed = await heard.next()
    assert failed == ConnectFailed("the registry cannot be reached: Connection refused")


@pytest.mark.parametrize("status", [401, 403, 404, 503])
async def test_an_http_answer_is_reported_with_its_status(status: int) -> None:
    async with served_by(refuse, process_request=answering(status)) as url, linked(url) as (_, heard):
        assert await heard.next() == ConnectFailed(f"the registry answered HTTP {status}", http_status=status)


@pytest.mark.parametrize("auth_on", [True, False])
async def test_a_registrys_other_port_is_told_from_one_that_refuses_a_token(*, auth_on: bool) -> None:
    """An agent that was sent to 8081 asked for another join token, again and again."""
    async with running(auth_on=auth_on) as service, serving(service) as operators:
        url = f"ws://{operators.base_url.netloc.decode()}/ws/node"
        async with linked(url) as (_, heard):
            failed = await heard.next()
    assert isinstance(failed, ConnectFailed)
    assert failed.detail == "operators are served there, not nodes: name the registry's port for nodes"
    assert failed.http_status is None, "no credential is to blame"


@pytest.mark.parametrize(
    ("written", "seconds"), [("7", 7.0), ("soon", None), ("-1", None), ("9" * 400, 999_999_999.0)]
)
async def test_retry_after_is_read_where_it_makes_sense(written: str, seconds: float | None) -> None:
    refusing = answering(503, Retry_After=written)
    async with served_by(refuse, process_request=refusing) as url, linked(url) as (_, heard):
        failed = await heard.next()
    assert isinstance(failed, ConnectFailed)
    assert failed.retry_after_seconds == seconds


@pytest.mark.parametrize(
    ("status", "header", "seconds"),
    [(503, "Retry-After", 5.0), (302, "Location", None), (101, "Upgrade", None)],
)
async def test_a_header_that_comes_twice_is_a_failed_attempt(
    status: int, header: str, seconds: float | None
) -> None:
    words = f"HTTP/1.1 {status} X\r\n{header}: 5\r\n{header}: 6\r\nContent-Length: 0\r\n\r\n"
    async with _saying(words.encode()) as url, linked(url) as (_, heard):
        failed = await heard.next()
    assert isinstance(failed, ConnectFailed)
    assert failed.retry_after_seconds == seconds


async def test_retry_after_may_be_a_date() -> None:
    refusing = answering(503, Retry_After=formatdate(time() + 90, usegmt=True))
    async with served_by(refuse, process_request=refusing) as url, linked(url) as (_, heard):
        failed = await heard.next()
    assert isinstance(failed, ConnectFailed)
    assert failed.retry_after_seconds == pytest.approx(90, abs=5)


async def test_a_redirect_is_not_followed() -> None:
    refusing = answering(302, Location="ws://elsewhere.example/ws/node")
    async with served_by(refuse, process_request=refusing) as url, linked(url, "s3cret") as (_, heard):
        failed = await heard.next()
    assert isinstance(failed, ConnectFailed)
    assert "sends agents to another place, where none goes" in failed.detail


async def test_what_speaks_no_http_is_no_registry() -> None:
    async with _saying(b"SSH-2.0-OpenSSH_9.9\r\n\r\n") as url, linked(url) as (_, heard):
        failed = await heard.next()
    assert isinstance(failed, ConnectFailed)
    assert failed.detail.startswith("what answers there is no registry")
