import asyncio
import contextlib
import shutil
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from email.utils import formatdate
from pathlib import Path
from time import time
from urllib.parse import urlsplit

import pytest
from websockets.asyncio.server import ServerConnection
from websockets.http11 import Request

from gpu_agent.node.connection import handshake as opening
from gpu_agent.node.connection import link as link_module
from gpu_agent.runtime.proxy import Proxy
from gpu_agent.session.types import Connected, ConnectFailed, Disconnected, MessageReceived
from gpu_agent.wire.messages import NodeControl
from tests.connect_proxy import ConnectProxy
from tests.node.connection.link_harness import (
    answering,
    certificate_at,
    linked,
    refuse,
    served_by,
    unregister,
)
from tests.older_scheduler import OlderScheduler
from tests.server.api_harness import serving
from tests.server.harness import running
from tests.waiting import patience


async def test_frames_go_out_in_order_and_messages_come_in() -> None:
    got: asyncio.Queue[str | bytes] = asyncio.Queue()

    async def handler(connection: ServerConnection) -> None:
        await connection.send('{"type":"node_control","command":"refresh"}')
        async for frame in connection:
            await got.put(frame)

    async with served_by(handler) as url, linked(url) as (link, heard):
        assert await heard.next() == Connected()
        assert await heard.next() == MessageReceived(NodeControl(command="refresh"))
        for number in range(5):
            link.send(str(number))
        assert [await got.get() for _ in range(5)] == ["0", "1", "2", "3", "4"]


async def test_the_token_travels_in_the_authorization_header_and_nothing_is_compressed() -> None:
    seen: list[Request] = []

    async def handler(connection: ServerConnection) -> None:
        assert connection.request is not None
        seen.append(connection.request)

    async with served_by(handler, compression="deflate") as url:
        for token in ("s3cret", None):
            async with linked(url, token) as (_, heard):
                assert await heard.next() == Connected()
                assert isinstance(await heard.next(), Disconnected)
    assert seen[0].headers["Authorization"] == "Bearer s3cret"
    assert "s3cret" not in seen[0].path
    assert "Authorization" not in seen[1].headers
    assert "Sec-WebSocket-Extensions" not in seen[0].headers
    assert seen[0].headers["User-Agent"].startswith("gpu-agent/")


async def test_a_close_by_the_peer_is_reported_with_its_code_and_reason() -> None:
    async with served_by(unregister) as url, linked(url) as (_, heard):
        assert await heard.next() == Connected()
        lost = await heard.next()
    assert isinstance(lost, Disconnected)
    assert lost.code == 1001
    assert "restarting" in lost.detail


async def test_a_connection_that_is_cut_is_reported_without_a_code() -> None:
    async with OlderScheduler() as scheduler, linked(scheduler.url) as (_, heard):
        assert await heard.next() == Connected()
        scheduler.drop_connections()
        lost = await heard.next()
    assert isinstance(lost, Disconnected)
    assert lost.code is None


async def test_closing_sends_the_queued_frames_and_the_code_and_reports_nothing_more() -> None:
    frames: list[str | bytes] = []
    closed: asyncio.Queue[tuple[int | None, str | None]] = asyncio.Queue()

    async def handler(connection: ServerConnection) -> None:
        frames.extend([frame async for frame in connection])
        await closed.put((connection.close_code, connection.close_reason))

    async with served_by(handler) as url, linked(url) as (link, heard):
        assert await heard.next() == Connected()
        link.send("last words")
        link.close(1000, "leaving")
        link.close(1000, "again")
        await link.ended(within_seconds=patience(5))
        async with asyncio.timeout(patience(5)):
            assert await closed.get() == (1000, "leaving")
        assert frames == ["last words"]
        assert heard.events.empty()


async def test_a_peer_that_never_answers_a_close_costs_two_seconds_at_most() -> None:
    async with OlderScheduler() as scheduler, linked(scheduler.url) as (link, heard):
        assert await heard.next() == Connected()
        began = asyncio.get_running_loop().time()
        link.close(1000, "leaving")
        await link.ended(within_seconds=patience(5))
        assert asyncio.get_running_loop().time() - began < patience(3)


async def test_frames_that_are_no_messages_are_ignored() -> None:
    async def handler(connection: ServerConnection) -> None:
        for frame in ("", "{", "[]", '{"type":"node_dance"}', '{"type":"node_status"}', b"\x00\xff"):
            await connection.send(frame)
        await connection.send('{"type":"node_control","command":"reregister"}')
        await connection.wait_closed()

    async with served_by(handler) as url, linked(url) as (link, heard):
        assert await heard.next() == Connected()
        assert await heard.next() == MessageReceived(NodeControl(command="reregister"))
        link.close(1000, "leaving")
        await link.ended(within_seconds=patience(5))


async def test_a_flood_of_frames_that_are_no_messages_is_a_few_lines_in_the_log(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("DEBUG", "gpu_agent")

    async def handler(connection: ServerConnection) -> None:
        for number in range(300):
            await connection.send((b"\x00", "{", f'{{"type":"node_dance_{number}"}}')[number % 3])
        await connection.send('{"type":"node_control","command":"reregister"}')
        await connection.wait_closed()

    async with served_by(handler) as url, linked(url) as (link, heard):
        assert await heard.next() == Connected()
        assert isinstance(await heard.next(), MessageReceived)
        link.close(1000, "leaving")
        await link.ended(within_seconds=patience(5))
    assert 0 < caplog.messages.count("frame_ignored") <= 5


async def test_a_frame_over_the_limit_ends_the_connection() -> None:
    async def handler(connection: ServerConnection) -> None:
        await connection.send("x" * (1024 * 1024 + 1))
        await connection.wait_closed()

    async with served_by(handler) as url, linked(url) as (_, heard):
        assert await heard.next() == Connected()
        assert isinstance(await heard.next(), Disconnected)


async def test_a_link_whose_peer_reads_nothing_is_aborted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link_module, "SEND_SECONDS", 0.1)
    release = asyncio.Event()

    async def deaf(connection: ServerConnection) -> None:
        connection.transport.pause_reading()
        await release.wait()

    async with served_by(deaf) as url, linked(url) as (link, heard):
        assert await heard.next() == Connected()
        for _ in range(40):
            link.send("x" * 1_000_000)
        assert isinstance(await heard.next(), Disconnected)
        release.set()


async def test_too_many_unsent_frames_abort_the_link() -> None:
    release = asyncio.Event()

    async def deaf(connection: ServerConnection) -> None:
        connection.transport.pause_reading()
        await release.wait()

    async with served_by(deaf) as url, linked(url) as (link, heard):
        assert await heard.next() == Connected()
        for _ in range(link_module.MAX_UNSENT + 1):
            link.send("x")
        assert isinstance(await heard.next(), Disconnected)
        release.set()


@asynccontextmanager
async def _saying(words: bytes, accepted: asyncio.Event | None = None) -> AsyncIterator[str]:
    """A server of no protocol: sends its bytes to any client and closes; without bytes it stays silent."""
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


async def test_closing_while_connecting_cancels_at_once() -> None:
    accepted = asyncio.Event()
    async with _saying(b"", accepted) as url, linked(url) as (link, heard):
        async with asyncio.timeout(patience(5)):
            await accepted.wait()
        link.close(1000, "leaving")
        await link.ended(within_seconds=patience(1))
        assert heard.events.empty()


async def test_a_server_that_is_silent_in_the_handshake_is_a_failed_attempt(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(opening, "OPEN_SECONDS", 0.1)
    async with _saying(b"") as url, linked(url) as (_, heard):
        assert await heard.next() == ConnectFailed("no WebSocket came up within 0.1 s")


async def test_a_closed_port_is_a_failed_attempt() -> None:
    async with OlderScheduler() as scheduler:
        url = scheduler.url
    async with linked(url) as (_, heard):
        failed = await heard.next()
    place = f"127.0.0.1:{urlsplit(url).port}"
    assert failed == ConnectFailed(f"the registry at {place} cannot be reached: Connection refused")


@pytest.mark.parametrize("status", [401, 403, 404, 503])
async def test_an_http_answer_is_reported_with_its_status(status: int) -> None:
    async with served_by(refuse, process_request=answering(status)) as url, linked(url) as (_, heard):
        assert await heard.next() == ConnectFailed(f"the registry answered HTTP {status}", http_status=status)


@pytest.mark.parametrize("auth_on", [True, False])
async def test_a_registrys_operator_port_differs_from_a_refused_token(*, auth_on: bool) -> None:
    """An agent that was sent to 8081 asked for another join token, again and again."""
    async with running(auth_on=auth_on) as service, serving(service) as operators:
        url = f"ws://{operators.base_url.netloc.decode()}/ws/node"
        async with linked(url) as (_, heard):
            failed = await heard.next()
    assert isinstance(failed, ConnectFailed)
    assert failed.detail == (
        "operators are served there, not nodes: name the registry's port for nodes, 8080 by default"
    )
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
    assert "redirects to another place, which no agent follows" in failed.detail


async def test_what_speaks_no_http_is_no_registry() -> None:
    async with _saying(b"SSH-2.0-OpenSSH_9.9\r\n\r\n") as url, linked(url) as (_, heard):
        failed = await heard.next()
    assert isinstance(failed, ConnectFailed)
    assert failed.detail.startswith("what answers there is no registry")


@pytest.mark.skipif(shutil.which("openssl") is None, reason="needs openssl to make a certificate")
async def test_tls_is_spoken_with_registries_whose_certificate_is_trusted_and_no_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    certificate, key = certificate_at(tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    async with served_by(unregister, ssl=context) as url:
        secure = url.replace("ws://127.0.0.1", "wss://localhost")
        async with linked(secure) as (_, heard):
            failed = await heard.next()
        assert isinstance(failed, ConnectFailed)
        assert "was signed by itself alone" in failed.detail
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
        async with linked(secure) as (_, heard):
            assert await heard.next() == Connected()
            assert isinstance(await heard.next(), Disconnected)


async def test_a_link_goes_through_the_proxy_that_it_is_given_encrypted_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    certificate, key = certificate_at(tmp_path)
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    async with ConnectProxy(user="me:s3cret") as proxy, served_by(unregister, ssl=context) as url:
        secure = url.replace("ws://127.0.0.1", "wss://localhost")
        async with linked(secure, proxy=Proxy.parse(proxy.url("me:s3cret@"))) as (_, heard):
            assert await heard.next() == Connected()
            assert isinstance(await heard.next(), Disconnected)
        assert [asked.partition(":")[0] for asked in proxy.asked] == ["localhost"]


async def test_the_environment_names_no_proxy_for_a_link(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("WS_PROXY", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "SOCKS_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    async with served_by(unregister) as url, linked(url) as (_, heard):
        assert await heard.next() == Connected()


async def test_a_proxy_without_a_tunnel_fails_the_attempt_by_its_own_name() -> None:
    """Its 407 is no word of the registry's about our token."""
    async with ConnectProxy(user="me:s3cret") as proxy:
        wrong = Proxy.parse(proxy.url("me:wrong@"))
        async with linked("ws://registry.invalid:8080/ws/node", "gpun_x", proxy=wrong) as (_, heard):
            failed = await heard.next()
    assert isinstance(failed, ConnectFailed)
    assert failed.http_status is None
    assert f"the proxy http://me:[redacted]@127.0.0.1:{proxy.port} opens no tunnel" in failed.detail
