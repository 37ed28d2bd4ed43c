import asyncio
import socket

import pytest

from gpu_agent.node import reaching
from gpu_agent.node.reaching import reach


async def test_the_first_address_that_answers_is_taken() -> None:
    server = await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        opened = await reach("localhost", port)  # may have an IPv6 address that refuses
        assert opened.getpeername()[:2] == ("127.0.0.1", port)
        opened.close()


async def test_a_silent_peer_will_be_given_up_by_the_kernel() -> None:
    server = await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", 0)
    async with server:
        opened = await reach("127.0.0.1", server.sockets[0].getsockname()[1])
        assert opened.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
        if hasattr(socket, "TCP_USER_TIMEOUT"):
            assert opened.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 30_000
        opened.close()


async def test_a_refused_connection_says_so() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        with pytest.raises(ConnectionRefusedError):
            await reach("127.0.0.1", unused.getsockname()[1])


async def test_a_host_that_does_not_answer_costs_its_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reaching, "CONNECT_SECONDS", 0.05)
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        address = listener.getsockname()
        held = []
        for _ in range(8):  # fill the queue of a listener that accepts nobody
            waiting = socket.socket()
            waiting.settimeout(0)
            waiting.connect_ex(address)
            held.append(waiting)
        with pytest.raises(TimeoutError, match=r"no answer within 0\.05 s"):
            await reach(*address)
        for waiting in held:
            waiting.close()


async def test_a_name_that_cannot_be_a_name_is_an_ordinary_failure() -> None:
    with pytest.raises(OSError, match="no host name"):
        await reach("a" * 70 + ".example", 1)


async def test_a_resolver_that_hangs_costs_its_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reaching, "RESOLVE_SECONDS", 0.05)
    released = asyncio.Event()
    loop = asyncio.get_running_loop()

    def hang(*_: object, **__: object) -> list[object]:
        asyncio.run_coroutine_threadsafe(released.wait(), loop).result(30)
        return []

    monkeypatch.setattr(socket, "getaddrinfo", hang)
    with pytest.raises(TimeoutError, match="looking up dead took over"):
        await reach("dead", 1)
    released.set()
    await asyncio.sleep(0)
