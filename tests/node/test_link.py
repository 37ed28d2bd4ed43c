import asyncio

import pytest
from websockets.asyncio.server import ServerConnection
from websockets.http11 import Request

from gpu_agent.node import link as link_module
from gpu_agent.session.events import Connected, Disconnected, MessageReceived
from gpu_agent.wire.messages import NodeControl
from tests.node.a_link import linked, say_goodbye, served_by
from tests.older_scheduler import OlderScheduler


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
    async with served_by(say_goodbye) as url, linked(url) as (_, heard):
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


async def test_closing_sends_what_is_unsent_says_the_code_and_reports_nothing_more() -> None:
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
        await link.ended(within_seconds=5)
        async with asyncio.timeout(5):
            assert await closed.get() == (1000, "leaving")
        assert frames == ["last words"]
        assert heard.events.empty()


async def test_a_peer_that_never_answers_a_close_costs_two_seconds_at_most() -> None:
    async with OlderScheduler() as scheduler, linked(scheduler.url) as (link, heard):
        assert await heard.next() == Connected()
        began = asyncio.get_running_loop().time()
        link.close(1000, "leaving")
        await link.ended(within_seconds=5)
        assert asyncio.get_running_loop().time() - began < 3


async def test_frames_that_are_no_messages_are_passed_over() -> None:
    async def handler(connection: ServerConnection) -> None:
        for frame in ("", "{", "[]", '{"type":"node_dance"}', '{"type":"node_status"}', b"\x00\xff"):
            await connection.send(frame)
        await connection.send('{"type":"node_control","command":"reregister"}')
        await connection.wait_closed()

    async with served_by(handler) as url, linked(url) as (link, heard):
        assert await heard.next() == Connected()
        assert await heard.next() == MessageReceived(NodeControl(command="reregister"))
        link.close(1000, "leaving")
        await link.ended(within_seconds=5)


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
        await link.ended(within_seconds=5)
    assert 0 < caplog.messages.count("frame_ignored") <= 5


async def test_a_frame_over_the_limit_ends_the_connection() -> None:
    async def handler(connection: ServerConnection) -> None:
        await connection.send("x" * (1024 * 1024 + 1))
        await connection.wait_closed()

    async with served_by(handler) as url, linked(url) as (_, heard):
        assert await heard.next() == Connected()
        assert isinstance(await heard.next(), Disconnected)


async def test_a_peer_that_takes_nothing_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
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


async def test_more_unsent_frames_than_may_wait_cut_the_peer_off() -> None:
    release = asyncio.Event()

    async def deaf(connection: ServerConnection) -> None:
        connection.transport.pause_reading()
        await release.wait()

    async with served_by(deaf) as url, linked(url) as (link, heard):
        assert await heard.next() == Connected()
        for _ in range(link_module.MOST_UNSENT + 1):
            link.send("x")
        assert isinstance(await heard.next(), Disconnected)
        release.set()
