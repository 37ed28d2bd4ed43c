import asyncio
import socket
from collections.abc import Mapping
from pathlib import Path

import pytest

from gpu_agent.node import rehearsal
from gpu_agent.node.proxy import Proxy
from gpu_agent.node.tls import Security
from gpu_agent.runtime.certificate import read_file
from gpu_agent.runtime.findings import Verdict
from gpu_agent.runtime.pins import pin_of
from gpu_agent.runtime.tls_contexts import for_server
from gpu_agent.server.tls import Encryption, TlsFiles
from tests.authority import Authority, self_signed
from tests.connect_proxy import ConnectProxy
from tests.node.walking import NOBODYS, answering, walked
from tests.server.harness import running, url


@pytest.fixture
def authority(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Authority:
    """One that this process trusts as it does the system's."""
    made = Authority(tmp_path / "authority")
    monkeypatch.setenv("SSL_CERT_FILE", str(made.file))
    return made


async def test_a_trusted_certificate_is_told_with_its_end(authority: Authority) -> None:
    async with answering("401 Unauthorized", for_server(authority.issue())) as port:
        found = await walked(f"wss://localhost:{port}/ws/node")
    assert found["TLS"].verdict is Verdict.OK
    assert found["TLS"].detail.startswith("the certificate is for localhost and ends in ")
    assert found["WebSocket"].verdict is Verdict.OK


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
    async with answering("401 Unauthorized", for_server(authority.issue(name, **days))) as port:
        found = await walked(f"wss://localhost:{port}/ws/node")
    assert found["TLS"].verdict is Verdict.FAIL
    assert words in found["TLS"].detail
    assert found["WebSocket"].detail == "not tried, since TLS failed"


async def test_a_certificate_of_an_unknown_authority_is_not_trusted(
    authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    context = for_server(authority.issue())
    monkeypatch.delenv("SSL_CERT_FILE")
    async with answering("401 Unauthorized", context) as port:
        found = await walked(f"wss://localhost:{port}/ws/node")
    assert "is not trusted" in found["TLS"].detail
    assert "`tls_ca_file`" in (found["TLS"].mend or "")


async def test_a_key_that_is_pinned_is_enough_and_its_pin_is_told(tmp_path: Path) -> None:
    own = self_signed(tmp_path, "elsewhere.example")
    pin = pin_of(read_file(own.cert_file))
    async with answering("401 Unauthorized", for_server(own)) as port:
        url = f"wss://localhost:{port}/ws/node"
        found = await walked(url)
        assert found["TLS"].verdict is Verdict.FAIL
        assert f"signed by itself alone; its pin is {pin}" in found["TLS"].detail
        found = await walked(url, security=Security(pins=frozenset({pin})))
    assert found["TLS"].verdict is Verdict.OK
    assert "has a key that `tls_pin` names" in found["TLS"].detail
    assert found["WebSocket"].verdict is Verdict.OK


async def test_a_file_that_cannot_be_used_is_what_is_to_be_mended(tmp_path: Path) -> None:
    async with answering("401 Unauthorized") as port:
        url = f"wss://localhost:{port}/ws/node"
        found = await walked(url, security=Security(ca_file=tmp_path / "absent.pem"))
    assert f"{tmp_path / 'absent.pem'} cannot be read" in found["TLS"].detail


async def test_a_registry_that_wants_a_certificate_of_ours_says_so(tmp_path: Path) -> None:
    ours = Authority(tmp_path / "ours")
    encryption = Encryption(TlsFiles(own=ours.issue(), client_ca_file=ours.file))
    async with running(tls=encryption) as service:
        url = f"wss://localhost:{service.node_address.port}/ws/node"
        found = await walked(url, security=Security(ca_file=ours.file))
        assert found["WebSocket"].detail == "the registry asks for a certificate of this side's own"
        found = await walked(url, security=Security(ca_file=ours.file, own=ours.issue("node")))
        assert found["WebSocket"].verdict is Verdict.OK


async def test_a_token_that_is_not_sent_in_the_clear_is_told_so() -> None:
    async with ConnectProxy() as proxy, running(auth_on=True) as service:
        through = Proxy.parse(proxy.url())
        found = await walked(url(service), through, join=NOBODYS)
        assert found["TLS"].verdict is Verdict.WARN
        assert "so it was not sent" in found["credential"].detail
        loud = Security(insecure_plaintext=True)
        found = await walked(url(service), through, security=loud, join=NOBODYS)
        assert "does not know that token" in found["credential"].detail


async def test_a_certificate_that_ends_soon_is_a_warning(authority: Authority) -> None:
    async with answering("401 Unauthorized", for_server(authority.issue(to_days=3.5))) as port:
        found = await walked(f"wss://localhost:{port}/ws/node")
    assert found["TLS"].verdict is Verdict.WARN
    assert "ends in 3 days" in found["TLS"].detail or "ends in 4 days" in found["TLS"].detail


async def test_tls_where_none_is_spoken_is_told_to_be_left_away() -> None:
    async with answering("401 Unauthorized") as port:
        found = await walked(f"wss://localhost:{port}/ws/node")
    assert "speaks no TLS" in found["TLS"].detail
    assert "ws://" in (found["TLS"].mend or "")


async def test_tls_that_nobody_answers_costs_its_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rehearsal, "TLS_SECONDS", 0.05)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        found = await walked(f"wss://localhost:{silent.getsockname()[1]}/ws/node")
    assert "no TLS handshake within" in found["TLS"].detail


async def test_tokens_that_travel_readable_beyond_this_machine_are_a_warning() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asked:
        try:
            asked.connect(("192.0.2.1", 9))
        except OSError:
            pytest.skip("this machine has no address but loopback's")
        own = asked.getsockname()[0]
    server = await asyncio.start_server(lambda _, writer: writer.close(), own, 0)
    async with server:
        found = await walked(f"ws://{own}:{server.sockets[0].getsockname()[1]}/ws/node")
    assert found["TLS"].verdict is Verdict.WARN


async def test_the_way_through_a_proxy_is_walked_as_the_link_goes_it(authority: Authority) -> None:
    """The registry's name is the proxy's to look up."""
    async with (
        ConnectProxy() as proxy,
        answering("401 Unauthorized", for_server(authority.issue())) as port,
    ):
        found = await walked(f"wss://localhost:{port}/ws/node", Proxy.parse(proxy.url()), join=NOBODYS)
        assert set(proxy.asked) == {f"localhost:{port}"}
    assert found["TCP"].detail == f"connected to 127.0.0.1 port {proxy.port}, the proxy"
    assert [found[step].verdict for step in ("DNS", "TCP", "TLS", "WebSocket")] == [Verdict.OK] * 4
