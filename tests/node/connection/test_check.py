"""The connectivity check against a registry, and against servers that are none."""

import asyncio
import socket
import ssl
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from email.utils import formatdate
from pathlib import Path

import pytest

from gpu_agent.node.connection import check
from gpu_agent.node.connection.check import STEPS, Tokens, check_connection
from gpu_agent.node.connection.tls import DEFAULT, Security
from gpu_agent.runtime.check_results import CheckResult, CheckStatus
from gpu_agent.runtime.proxy import Proxy
from gpu_agent.runtime.tls.certificate import pin_of, read_certificate_file
from gpu_agent.runtime.tls.contexts import server_context
from gpu_agent.server.tls import Encryption, TlsFiles
from gpu_agent.wire.api import NewToken
from tests.authority import Authority, self_signed
from tests.connect_proxy import REFUSED, ConnectProxy
from tests.programs import free_port
from tests.server.api_harness import serving
from tests.server.harness import node, running, url

UNKNOWN_TOKEN = "gpuj_00000000_abcdefghijklmnopqrstuvwxyz0123456789ABCDEFG"


async def checked(
    address: str, proxy: Proxy | None = None, *, security: Security = DEFAULT, **tokens: str
) -> dict[str, CheckResult]:
    way = check_connection(address, Tokens(**tokens), proxy, security=security)
    findings = [finding async for finding in way]
    assert [finding.check for finding in findings] == list(STEPS)
    assert all(finding.fix for finding in findings if finding.verdict in (CheckStatus.WARN, CheckStatus.FAIL))
    return {finding.check: finding for finding in findings}


@asynccontextmanager
async def answering(status: str, context: ssl.SSLContext | None = None, **headers: str) -> AsyncIterator[int]:
    """A server that answers each request with this status and these headers."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with_headers = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in headers.items())
        if await reader.read(4096):
            writer.write(f"HTTP/1.1 {status}\r\nContent-Length: 2\r\n{with_headers}\r\nno".encode())
            await writer.drain()
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context) as server:
        yield server.sockets[0].getsockname()[1]


async def test_a_join_token_that_a_registry_knows_is_accepted_and_not_spent() -> None:
    async with running(auth_on=True) as service:
        made = await service.tokens.create_join(uses=1)
        assert isinstance(made, NewToken)
        found = await checked(url(service), join=made.token)
        assert found["credential"] == CheckResult("credential", CheckStatus.OK, "the join token is accepted")
        assert [found[name].verdict for name in ("DNS", "TCP", "WebSocket", "clock")] == [CheckStatus.OK] * 4
        assert found["TLS"].verdict is CheckStatus.SKIPPED
        async with node(service, token=made.token) as first:
            await first.become_ready()
        assert len(list(service.nodes())) == 1


async def test_the_node_token_goes_first_and_a_refused_one_is_reported() -> None:
    async with running(auth_on=True) as service:
        made = await service.tokens.create_join(uses=None)
        assert isinstance(made, NewToken)
        async with node(service, token=made.token) as first:
            own = (await first.register())["node_token"]
        found = await checked(url(service), node=own, join=made.token)
        assert found["credential"].detail == "the node token is accepted"
        found = await checked(url(service), node=UNKNOWN_TOKEN, join=made.token)
    assert found["credential"].verdict is CheckStatus.WARN
    assert "the join token is accepted; the node token is refused" in found["credential"].detail


async def test_an_unknown_token_fails_in_the_registrys_own_words() -> None:
    async with running(auth_on=True) as service:
        found = await checked(url(service), join=UNKNOWN_TOKEN)
    assert found["credential"].verdict is CheckStatus.FAIL
    assert "does not know that token" in found["credential"].detail
    assert "ask" not in found["credential"].detail, "the advice occurs once, as the fix"
    assert "/etc/gpu-agent/join-token" in (found["credential"].fix or "")
    assert UNKNOWN_TOKEN not in repr(found)
    assert found["clock"].verdict is CheckStatus.OK


async def test_a_missing_token_says_how_to_get_one() -> None:
    async with running(auth_on=True) as service:
        found = await checked(url(service))
    assert found["credential"].verdict is CheckStatus.FAIL
    assert "gpu-agent registry token create" in (found["credential"].fix or "")


async def test_a_registry_without_auth_is_a_warning_and_receives_no_token() -> None:
    async with running() as service:
        found = await checked(url(service), join=UNKNOWN_TOKEN)
    assert found["credential"].verdict is CheckStatus.WARN
    assert "auth is off" in found["credential"].detail


async def test_an_unknown_host_fails_and_skips_the_other_steps() -> None:
    found = await checked("ws://no-such-host.invalid:8080/ws/node")
    assert found["DNS"].verdict is CheckStatus.FAIL
    assert "no-such-host.invalid cannot be looked up" in found["DNS"].detail
    assert {found[name].detail for name in STEPS[1:]} == {"not tried, since DNS failed"}


async def test_a_closed_port_comes_with_its_likely_cause() -> None:
    found = await checked(f"ws://127.0.0.1:{free_port()}/ws/node")
    assert "(Connection refused)" in found["TCP"].detail
    assert found["DNS"].detail == "127.0.0.1 is an address already"
    assert found["WebSocket"].detail == "not tried, since TCP failed"


async def test_a_host_that_does_not_answer_costs_its_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gpu_agent.runtime.proxy.CONNECT_SECONDS", 0.05)
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        address = listener.getsockname()
        held = [socket.socket() for _ in range(4)]
        for one in held:
            one.setblocking(False)  # noqa: FBT003 - the socket module's own signature
            one.connect_ex(address)
        found = await checked(f"ws://127.0.0.1:{address[1]}/ws/node")
        for one in held:
            one.close()
    assert "no answer" in found["TCP"].detail


async def test_what_is_no_registry_fails_at_the_handshake() -> None:
    async with answering("404 Not Found") as port:
        found = await checked(f"ws://127.0.0.1:{port}/elsewhere")
    assert found["WebSocket"].verdict is CheckStatus.FAIL
    assert "HTTP 404" in found["WebSocket"].detail
    assert "/ws/node" in (found["WebSocket"].fix or "")


async def test_the_operators_port_is_named_without_its_answer() -> None:
    async with running() as service, serving(service) as operators:
        found = await checked(f"ws://{operators.base_url.netloc.decode()}/ws/node")
    assert found["WebSocket"].detail == (
        "operators are served there, not nodes: name the registry's port for nodes, 8080 by default"
    )


async def test_a_full_registry_is_a_warning_and_receives_no_token() -> None:
    async with answering("503 Service Unavailable", Retry_After="7") as port:
        found = await checked(f"ws://127.0.0.1:{port}/ws/node", join=UNKNOWN_TOKEN)
    assert found["WebSocket"].verdict is CheckStatus.WARN
    assert "try again in 7 s" in found["WebSocket"].detail
    assert found["credential"].verdict is CheckStatus.SKIPPED


@pytest.mark.parametrize(("seconds", "side"), [(-90, "ahead of"), (90, "behind")])
async def test_a_wrong_clock_is_reported_by_how_much(seconds: float, side: str) -> None:
    async with answering("401 Unauthorized", Date=formatdate(time.time() + seconds, usegmt=True)) as port:
        found = await checked(f"ws://127.0.0.1:{port}/ws/node")
    assert found["clock"].verdict is CheckStatus.WARN
    assert side in found["clock"].detail


async def test_an_answer_without_a_time_says_nothing_of_clocks() -> None:
    async with answering("401 Unauthorized") as port:
        found = await checked(f"ws://127.0.0.1:{port}/ws/node")
    assert found["clock"].verdict is CheckStatus.SKIPPED


async def test_a_proxy_that_is_away_is_named() -> None:
    found = await checked("ws://registry.invalid/ws/node", Proxy("127.0.0.1", free_port()))
    assert found["TCP"].verdict is CheckStatus.FAIL
    assert "the proxy http://127.0.0.1:" in found["TCP"].detail


@pytest.mark.parametrize(("scheme", "step"), [("wss", "TLS"), ("ws", "WebSocket")])
async def test_a_proxy_that_opens_no_way_fails_its_step(scheme: str, step: str) -> None:
    async with ConnectProxy(answer=REFUSED) as proxy:
        found = await checked(f"{scheme}://registry.invalid/ws/node", Proxy.parse(proxy.url()))
    assert found[step].verdict is CheckStatus.FAIL
    assert f"the proxy http://127.0.0.1:{proxy.port} opens no tunnel" in found[step].detail


@pytest.fixture
def authority(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Authority:
    """One that this process trusts as it does the system's."""
    made = Authority(tmp_path / "authority")
    monkeypatch.setenv("SSL_CERT_FILE", str(made.file))
    return made


async def test_a_trusted_certificate_comes_with_its_expiry(authority: Authority) -> None:
    async with answering("401 Unauthorized", server_context(authority.issue())) as port:
        found = await checked(f"wss://localhost:{port}/ws/node")
    assert found["TLS"].verdict is CheckStatus.OK
    assert found["TLS"].detail.startswith("the certificate is for localhost and ends in ")
    assert found["WebSocket"].verdict is CheckStatus.OK


@pytest.mark.parametrize(
    ("name", "days", "words"),
    [
        ("localhost", {"from_days": -9, "to_days": -1}, "has expired"),
        ("localhost", {"from_days": 2, "to_days": 9}, "not valid yet"),
        ("elsewhere.example", {"to_days": 9}, "is not for localhost; its pin"),
    ],
)
async def test_a_certificate_that_is_wrong_says_how(
    name: str, days: Mapping[str, float], words: str, authority: Authority
) -> None:
    async with answering("401 Unauthorized", server_context(authority.issue(name, **days))) as port:
        found = await checked(f"wss://localhost:{port}/ws/node")
    assert found["TLS"].verdict is CheckStatus.FAIL
    assert words in found["TLS"].detail
    assert found["WebSocket"].detail == "not tried, since TLS failed"


async def test_a_certificate_of_an_unknown_authority_is_not_trusted(
    authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    context = server_context(authority.issue())
    monkeypatch.delenv("SSL_CERT_FILE")
    async with answering("401 Unauthorized", context) as port:
        found = await checked(f"wss://localhost:{port}/ws/node")
    assert "is not trusted" in found["TLS"].detail
    assert "`tls_ca_file`" in (found["TLS"].fix or "")


async def test_a_pinned_key_is_enough_and_its_pin_is_reported(tmp_path: Path) -> None:
    own = self_signed(tmp_path, "elsewhere.example")
    pin = pin_of(read_certificate_file(own.cert_file))
    async with answering("401 Unauthorized", server_context(own)) as port:
        url = f"wss://localhost:{port}/ws/node"
        found = await checked(url)
        assert found["TLS"].verdict is CheckStatus.FAIL
        assert f"signed by itself alone; its pin is {pin}" in found["TLS"].detail
        found = await checked(url, security=Security(pins=frozenset({pin})))
    assert found["TLS"].verdict is CheckStatus.OK
    assert "has a key that `tls_pin` names" in found["TLS"].detail
    assert found["WebSocket"].verdict is CheckStatus.OK


async def test_a_file_that_cannot_be_used_fails_its_step(tmp_path: Path) -> None:
    async with answering("401 Unauthorized") as port:
        url = f"wss://localhost:{port}/ws/node"
        found = await checked(url, security=Security(ca_file=tmp_path / "absent.pem"))
    assert f"{tmp_path / 'absent.pem'} cannot be read" in found["TLS"].detail


async def test_a_registry_that_requires_a_client_certificate_says_so(tmp_path: Path) -> None:
    ours = Authority(tmp_path / "ours")
    encryption = Encryption(TlsFiles(own=ours.issue(), client_ca_file=ours.file))
    async with running(tls=encryption) as service:
        url = f"wss://localhost:{service.node_address.port}/ws/node"
        found = await checked(url, security=Security(ca_file=ours.file))
        assert found["WebSocket"].detail == "the registry asks for a certificate of this side's own"
        found = await checked(url, security=Security(ca_file=ours.file, own=ours.issue("node")))
        assert found["WebSocket"].verdict is CheckStatus.OK


async def test_a_token_that_is_not_sent_in_plaintext_is_reported() -> None:
    async with ConnectProxy() as proxy, running(auth_on=True) as service:
        through = Proxy.parse(proxy.url())
        found = await checked(url(service), through, join=UNKNOWN_TOKEN)
        assert found["TLS"].verdict is CheckStatus.WARN
        assert "so it was not sent" in found["credential"].detail
        loud = Security(insecure_plaintext=True)
        found = await checked(url(service), through, security=loud, join=UNKNOWN_TOKEN)
        assert "does not know that token" in found["credential"].detail


async def test_a_certificate_that_ends_soon_is_a_warning(authority: Authority) -> None:
    async with answering("401 Unauthorized", server_context(authority.issue(to_days=3.5))) as port:
        found = await checked(f"wss://localhost:{port}/ws/node")
    assert found["TLS"].verdict is CheckStatus.WARN
    assert "ends in 3 days" in found["TLS"].detail or "ends in 4 days" in found["TLS"].detail


async def test_tls_at_a_plaintext_port_says_to_write_ws() -> None:
    async with answering("401 Unauthorized") as port:
        found = await checked(f"wss://localhost:{port}/ws/node")
    assert "speaks no TLS" in found["TLS"].detail
    assert "ws://" in (found["TLS"].fix or "")


async def test_tls_without_an_answer_costs_its_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check, "TLS_SECONDS", 0.05)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        found = await checked(f"wss://localhost:{silent.getsockname()[1]}/ws/node")
    assert "no TLS handshake within" in found["TLS"].detail


async def test_tokens_in_plaintext_beyond_this_machine_are_a_warning() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asked:
        try:
            asked.connect(("192.0.2.1", 9))
        except OSError:
            pytest.skip("this machine has no address but loopback's")
        own = asked.getsockname()[0]
    server = await asyncio.start_server(lambda _, writer: writer.close(), own, 0)
    async with server:
        found = await checked(f"ws://{own}:{server.sockets[0].getsockname()[1]}/ws/node")
    assert found["TLS"].verdict is CheckStatus.WARN


async def test_the_check_goes_through_the_proxy_as_the_link_does(authority: Authority) -> None:
    """The registry's name is the proxy's to look up."""
    async with (
        ConnectProxy() as proxy,
        answering("401 Unauthorized", server_context(authority.issue())) as port,
    ):
        found = await checked(f"wss://localhost:{port}/ws/node", Proxy.parse(proxy.url()), join=UNKNOWN_TOKEN)
        assert set(proxy.asked) == {f"localhost:{port}"}
    assert found["TCP"].detail == f"connected to 127.0.0.1 port {proxy.port}, the proxy"
    assert [found[step].verdict for step in ("DNS", "TCP", "TLS", "WebSocket")] == [CheckStatus.OK] * 4
