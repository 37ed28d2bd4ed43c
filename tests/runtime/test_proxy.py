import asyncio
import logging
import socket
from pathlib import Path

import pytest

from gpu_agent.node.settings import load
from gpu_agent.runtime import proxy as proxy_module
from gpu_agent.runtime import proxy as reaching
from gpu_agent.runtime.config.load import SettingsError
from gpu_agent.runtime.proxy import Proxy, ProxyError, connect_directly, connect_tcp, tunnel
from tests.connect_proxy import ASKS, REFUSED, ConnectProxy
from tests.programs import free_port

REGISTRY = {"registry_url": "ws://10.0.0.1:8080/ws/node"}


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(await reader.read(100))
    writer.close()


async def said_through(proxy: Proxy | None) -> bytes:
    async with await asyncio.start_server(echo, "127.0.0.1", 0) as server:
        opened = await connect_tcp(proxy, "127.0.0.1", server.sockets[0].getsockname()[1])
        with opened:
            loop = asyncio.get_running_loop()
            await loop.sock_sendall(opened, b"hello")
            return await loop.sock_recv(opened, 100)


# What is written


@pytest.mark.parametrize(
    ("written", "shown", "authorization"),
    [
        ("http://proxy:3128", "http://proxy:3128", None),
        ("http://[::1]:3128/", "http://[::1]:3128", None),
        ("http://me:s3cret%40@proxy:1", "http://me:[redacted]@proxy:1", "Basic bWU6czNjcmV0QA=="),
    ],
)
def test_a_proxy_is_read_and_shows_no_password(written: str, shown: str, authorization: str | None) -> None:
    proxy = Proxy.parse(written)
    assert (str(proxy), proxy.authorization) == (shown, authorization)
    assert "s3cret" not in repr(proxy)


@pytest.mark.parametrize(
    ("written", "said"),
    [
        ("socks5://me:s3cret@proxy:1080", "only an HTTP proxy"),
        ("https://me:s3cret@proxy:3128", "only an HTTP proxy"),
        ("me:s3cret@proxy:3128", "only an HTTP proxy"),
        ("http://me:s3cret@proxy", "names no port"),
        ("http://me:s3cret@proxy:0", "names no port"),
        ("http://me:s3cret@proxy:70000", "proxy: "),
        ("http://me:s3cret@proxy:1/path", "nothing else"),
        ("http://s3cret@proxy:1", "a user without a password"),
        ("http://me:s3cret", "no URL with a host and a port"),
        ("http://me:s3cret\u2100@proxy:1", "no URL with a host and a port"),
        ("http://me:[s3cret]@proxy:1", "no URL with a host and a port"),
    ],
)
def test_what_is_no_proxy_is_refused_without_being_repeated(written: str, said: str) -> None:
    with pytest.raises(SettingsError, match=said) as refused:
        load({**REGISTRY, "proxy": written})
    assert "s3cret" not in str(refused.value)


def test_no_variable_but_our_own_names_a_proxy(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "agent.toml").touch()
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "WS_PROXY", "WSS_PROXY", "SOCKS_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    assert load(REGISTRY, config=tmp_path / "agent.toml").proxy is None
    monkeypatch.setenv("GPU_AGENT_PROXY", "http://proxy:3128")
    assert load(REGISTRY, config=tmp_path / "agent.toml").proxy == Proxy("proxy", 3128)
    monkeypatch.setenv("GPU_AGENT_PROXY", "")
    assert load(REGISTRY, config=tmp_path / "agent.toml").proxy is None


# The way through it


async def test_a_connection_goes_through_the_proxy_to_the_host() -> None:
    async with ConnectProxy() as proxy:
        assert await said_through(Proxy.parse(proxy.url())) == b"hello"
        (asked,) = proxy.asked
        assert asked.startswith("127.0.0.1:")


async def test_without_a_proxy_the_connection_is_direct() -> None:
    assert await said_through(None) == b"hello"


async def test_a_proxy_receives_user_and_password() -> None:
    async with ConnectProxy(user="me:s3cret") as proxy:
        assert await said_through(Proxy.parse(proxy.url("me:s3cret@"))) == b"hello"


@pytest.mark.parametrize("user", ["", "me:wrong@"])
async def test_a_proxy_that_wants_other_credentials_says_how_to_write_them(user: str) -> None:
    async with ConnectProxy(user="me:s3cret") as proxy:
        with pytest.raises(ProxyError, match="asks for a user and a password that it knows") as refused:
            await said_through(Proxy.parse(proxy.url(user)))
        assert "wrong" not in str(refused.value)


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (REFUSED, r"opens no tunnel to 127\.0\.0\.1:\d+: it answers HTTP 403"),
        (ASKS, "asks for a user"),
        (b"SSH-2.0-OpenSSH_9.2\r\n", "not as an HTTP proxy does"),
        (b"HTTP/1.1 200 OK\r\n", "not as an HTTP proxy does"),
        (b"HTTP/1.1 200 OK\r\nX: " + b"x" * 100_000, "not as an HTTP proxy does"),
        (b"", "not as an HTTP proxy does"),
    ],
    ids=["forbidden", "asks", "no proxy", "torn", "endless", "silent"],
)
async def test_a_proxy_without_a_tunnel_is_named_with_its_answer(answer: bytes, said: str) -> None:
    async with ConnectProxy(answer=answer) as proxy:
        with pytest.raises(ProxyError, match=said) as refused:
            await said_through(Proxy.parse(proxy.url()))
        assert f"http://127.0.0.1:{proxy.port}" in str(refused.value)


async def test_a_proxy_that_is_not_there_is_named() -> None:
    with pytest.raises(ProxyError, match=r"the proxy http://\S+ cannot be reached \(Connection refused"):
        await said_through(Proxy("127.0.0.1", free_port()))


async def test_a_proxy_that_never_answers_costs_its_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(proxy_module, "ANSWER_SECONDS", 0.1)

    no_answer = socket.create_server(("127.0.0.1", 0))
    with no_answer, pytest.raises(ProxyError, match="opened no tunnel within"):
        await said_through(Proxy(*no_answer.getsockname()))


async def test_the_hosts_first_bytes_stay_unread() -> None:
    """A host may speak in the same packet as the proxy's answer."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.settimeout(0)
        theirs.sendall(b"HTTP/1.0 200 OK\r\n\r\nSSH-2.0")
        await tunnel(ours, Proxy("proxy", 1), host="::1", port=22)
        assert await asyncio.get_running_loop().sock_recv(ours, 100) == b"SSH-2.0"
        assert theirs.recv(1000).startswith(b"CONNECT [::1]:22 HTTP/1.1\r\nHost: [::1]:22\r\n")


async def test_no_password_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    proxy = Proxy.parse("http://me:s3cret@127.0.0.1:9")
    logging.getLogger("test").warning("%s %r", proxy, proxy)
    assert "s3cret" not in caplog.text


async def test_the_first_address_that_answers_is_taken() -> None:
    server = await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        opened = await connect_directly("localhost", port)  # may have an IPv6 address that refuses
        assert opened.getpeername()[:2] == ("127.0.0.1", port)
        opened.close()


async def test_the_kernel_drops_a_silent_peer() -> None:
    server = await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", 0)
    async with server:
        opened = await connect_directly("127.0.0.1", server.sockets[0].getsockname()[1])
        assert opened.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
        if hasattr(socket, "TCP_USER_TIMEOUT"):
            assert opened.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 20_000
        opened.close()


async def test_a_refused_connection_says_so() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        with pytest.raises(ConnectionRefusedError):
            await connect_directly("127.0.0.1", unused.getsockname()[1])


async def test_a_host_that_does_not_answer_costs_its_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reaching, "CONNECT_SECONDS", 0.05)
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        address = listener.getsockname()
        held = []
        for _ in range(8):  # fill the queue of a listener that accepts no connection
            waiting = socket.socket()
            waiting.settimeout(0)
            waiting.connect_ex(address)
            held.append(waiting)
        with pytest.raises(TimeoutError, match=r"no answer within 0\.05 s"):
            await connect_directly(*address)
        for waiting in held:
            waiting.close()


async def test_a_name_that_cannot_be_a_name_is_an_ordinary_failure() -> None:
    with pytest.raises(OSError, match="no host name"):
        await connect_directly("a" * 70 + ".example", 1)


async def test_a_resolver_that_hangs_costs_its_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reaching, "RESOLVE_SECONDS", 0.05)
    released = asyncio.Event()
    loop = asyncio.get_running_loop()

    def hang(*_: object, **__: object) -> list[object]:
        asyncio.run_coroutine_threadsafe(released.wait(), loop).result(30)
        return []

    monkeypatch.setattr(socket, "getaddrinfo", hang)
    with pytest.raises(TimeoutError, match="looking up dead took over"):
        await connect_directly("dead", 1)
    released.set()
    await asyncio.sleep(0)
