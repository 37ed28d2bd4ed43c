import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from email.utils import formatdate
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from websockets.asyncio.server import ServerConnection, serve

from gpu_agent.node.connection.handshake import (
    HandshakeFailure,
    open_websocket,
    retry_after_seconds,
    try_handshake,
)
from gpu_agent.node.connection.tls import Security
from gpu_agent.runtime.proxy import Proxy
from gpu_agent.runtime.tls.certificate import pin_of, read_certificate_file
from gpu_agent.runtime.tls.contexts import OwnCertificate, server_context
from gpu_agent.server.tls import Encryption, TlsFiles
from tests.authority import Authority, self_signed
from tests.connect_proxy import ConnectProxy
from tests.node.connection.link_harness import answering, refuse, served_by
from tests.server.harness import running

TOKEN = "gpun_00000000_s3cret"


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path / "authority")


@asynccontextmanager
async def listening(context: ssl.SSLContext | None, received: list[str] | None = None) -> AsyncIterator[int]:
    """A WebSocket server that records the tokens it receives."""

    async def record(connection: ServerConnection) -> None:
        if received is not None and connection.request is not None:
            received.append(connection.request.headers.get("Authorization", ""))
        await connection.wait_closed()

    async with serve(record, "127.0.0.1", 0, ssl=context) as server:
        yield next(iter(server.sockets)).getsockname()[1]


@asynccontextmanager
async def saying(
    words: bytes, received: list[bytes], context: ssl.SSLContext | None = None
) -> AsyncIterator[int]:
    """A server that answers anything with these bytes, and records what it received."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        received.append(await reader.read(4096))
        writer.write(words)
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0, ssl=context) as server:
        yield server.sockets[0].getsockname()[1]


async def outcome_of(port: int, security: Security, *, scheme: str = "wss", token: str | None = TOKEN) -> str:
    """Try, and return "open", or the sentence of the failure."""
    result = await open_websocket(f"{scheme}://localhost:{port}/ws/node", token, security=security)
    if isinstance(result, HandshakeFailure):
        assert TOKEN not in repr(result)
        return result.failure.detail
    await result.close()
    return "open"


def pins_of(*own: OwnCertificate) -> frozenset[str]:
    return frozenset(pin_of(read_certificate_file(one.cert_file)) for one in own)


async def test_a_registry_is_known_by_an_authority_or_by_its_pin(
    authority: Authority, tmp_path: Path
) -> None:
    received: list[str] = []
    own = self_signed(tmp_path, "elsewhere.example")
    async with listening(server_context(own), received) as port:
        assert await outcome_of(port, Security(pins=pins_of(own))) == "open"
        assert "signed by itself alone" in await outcome_of(port, Security())
    async with listening(server_context(authority.issue()), received) as port:
        assert await outcome_of(port, Security(ca_file=authority.file)) == "open"
        assert "an authority unknown here issued it" in await outcome_of(port, Security())
    assert received == [f"Bearer {TOKEN}"] * 2


async def test_a_peer_with_another_key_than_the_pinned_receives_not_one_byte(
    authority: Authority, tmp_path: Path
) -> None:
    received: list[bytes] = []
    security = Security(ca_file=authority.file, pins=pins_of(self_signed(tmp_path)))
    async with saying(b"HTTP/1.1 200 OK\r\n\r\n", received, server_context(authority.issue())) as port:
        said = await outcome_of(port, security)
    assert "which is none of `tls_pin`" in said
    assert set(received) <= {b""}


async def test_a_broken_file_is_a_lasting_failure(tmp_path: Path) -> None:
    absent = tmp_path / "absent.pem"
    result = await open_websocket("wss://localhost:9/", None, security=Security(ca_file=absent))
    assert isinstance(result, HandshakeFailure)
    assert result.failure.lasting
    assert f"{absent} cannot be read" in result.failure.detail
    assert result.tls_problem is not None


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
async def test_a_registry_that_asks_for_a_certificate_is_understood(
    authority: Authority, tmp_path: Path, version: ssl.TLSVersion
) -> None:
    other = Authority(tmp_path / "other")
    encryption = Encryption(TlsFiles(own=authority.issue(), client_ca_file=authority.file))
    encryption.context.maximum_version = version
    async with running(tls=encryption) as service:
        port = service.node_address.port
        for own, words in (
            (authority.issue("node"), "open"),
            (None, "asks for a certificate of this side's own: have one issued"),
            (other.issue("node"), "does not accept this side's certificate"),
            (authority.issue("node", from_days=-9, to_days=-1), "does not accept this side's certificate"),
        ):
            assert words in await outcome_of(port, Security(ca_file=authority.file, own=own))


async def test_plaintext_and_tls_at_the_wrong_port_are_named(authority: Authority) -> None:
    received: list[bytes] = []
    trusting = Security(ca_file=authority.file)
    async with saying(b"HTTP/1.1 400 Bad Request\r\n\r\n", received) as port:
        assert "speaks no TLS" in await outcome_of(port, trusting)
    async with running(tls=Encryption(TlsFiles(own=authority.issue()))) as service:
        said = await outcome_of(service.node_address.port, trusting, scheme="ws")
    assert said == "that port is encrypted: write wss:// in the registry's URL"


async def test_tls_that_is_too_old_is_named(authority: Authority) -> None:
    old = server_context(authority.issue())
    with pytest.warns(DeprecationWarning, match="TLSv1"):
        old.minimum_version = ssl.TLSVersion.TLSv1
    with pytest.warns(DeprecationWarning, match="TLSv1_1"):
        old.maximum_version = ssl.TLSVersion.TLSv1_1
    old.set_ciphers("ALL:@SECLEVEL=0")
    async with listening(old) as port:  # hangs up without a word, as asyncio's do
        said = await outcome_of(port, Security(ca_file=authority.file))
    assert "what listens there hung up in the middle of the handshake: see whether it speaks TLS" in said


async def test_no_token_leaves_this_machine_in_plaintext_unless_the_settings_allow_it() -> None:
    """Behind a proxy no host is this machine."""
    received: list[str] = []
    async with ConnectProxy() as proxy, listening(None, received) as port:
        url, through = f"ws://localhost:{port}/ws/node", Proxy.parse(proxy.url())
        result = await open_websocket(url, TOKEN, proxy=through)
        assert isinstance(result, HandshakeFailure)
        assert result.failure.lasting
        assert "not encrypted, and anyone on the network path could" in result.failure.detail
        assert received == []
        for token, security in ((None, Security()), (TOKEN, Security(insecure_plaintext=True))):
            result = await open_websocket(url, token, proxy=through, security=security)
            assert not isinstance(result, HandshakeFailure)
            await result.close()
    assert received == ["", f"Bearer {TOKEN}"]


async def test_on_this_machine_a_token_may_go_unencrypted() -> None:
    async with listening(None) as port:
        assert await outcome_of(port, Security(), scheme="ws") == "open"


@pytest.mark.parametrize("status", ["301 Moved Permanently", "302 Found", "307 Temporary Redirect"])
async def test_no_redirect_is_followed(authority: Authority, status: str) -> None:
    received: list[bytes] = []
    elsewhere: list[str] = []
    async with listening(None, elsewhere) as other:
        words = f"HTTP/1.1 {status}\r\nLocation: ws://localhost:{other}/ws/node\r\nContent-Length: 0\r\n\r\n"
        async with saying(words.encode(), received, server_context(authority.issue())) as port:
            said = await outcome_of(port, Security(ca_file=authority.file))
    assert "redirects to another place, which no agent follows" in said
    assert len(received) == 1
    assert elsewhere == []


NOW = 1_795_517_679.0


@pytest.mark.parametrize(
    ("written", "seconds"),
    [
        ([], None),
        (["7"], 7.0),
        ([" 7 "], 7.0),
        ([formatdate(NOW + 90, usegmt=True)], 90.0),
        ([formatdate(NOW - 90, usegmt=True)], 0.0),
        (["5", "6"], 5.0),
        (["soon", "", "6"], 6.0),
        (["-1"], None),
        (["1.5"], None),
        (["٣"], None),
        (["9" * 400], 999_999_999.0),
        (["Mon, 01 Jan 99999999999999999999 00:00:00 GMT"], None),
        (["Mon, 01 Jan 2024 00:00:00 +99999999999999999999"], None),
        (["Mon, 99 Foo 2024 25:61:61 GMT"], None),
    ],
)
def test_the_first_valid_header_counts(written: list[str], seconds: float | None) -> None:
    assert retry_after_seconds(written, now=NOW) == seconds


_WORDS = st.sampled_from(["Mon,", "1", "Jan", "2024", "99999999999999999999", "00:00:00", "+9999", "-0", ":"])


@given(st.lists(st.text(max_size=20) | st.lists(_WORDS, max_size=8).map(" ".join), max_size=3))
def test_nothing_that_a_peer_writes_raises(written: list[str]) -> None:
    seconds = retry_after_seconds(written, now=NOW)
    assert seconds is None or seconds >= 0


async def test_a_tried_handshake_sends_no_frame() -> None:
    received: list[object] = []

    async def listen(connection: ServerConnection) -> None:
        received.extend([frame async for frame in connection])

    async with served_by(listen) as url:
        failure, date = await try_handshake(url, "s3cret")
    assert (failure, received) == (None, [])
    assert date is not None


async def test_a_refused_handshake_has_its_status_and_its_text() -> None:
    async with served_by(refuse, process_request=answering(401)) as url:
        failure, date = await try_handshake(url, None)
    assert failure is not None
    assert (failure.failure.http_status, failure.text) == (401, "no")
    assert date is not None


async def test_a_handshake_with_a_closed_port_says_why() -> None:
    failure, date = await try_handshake("ws://127.0.0.1:9/ws/node", None)
    assert failure is not None
    assert "cannot be reached" in failure.failure.detail
    assert date is None
