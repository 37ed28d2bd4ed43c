""""""

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

from gpu_agent.node.connection.handshake import HandshakeFailure, open_websocket, retry_after_seconds
from gpu_agent.node.connection.proxy import Proxy
from gpu_agent.node.connection.tls import Security
from gpu_agent.runtime.tls.certificate import pin_of, read_certificate_file
from gpu_agent.runtime.tls.contexts import OwnCertificate, server_context
from gpu_agent.server.tls import Encryption, TlsFiles
from tests.authority import Authority, self_signed
from tests.connect_proxy import ConnectProxy
from tests.server.harness import running

TOKEN = "gpun_00000000_s3cret"


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path / "authority")


@asynccontextmanager
async def listening(context: ssl.SSLContext | None, heard: list[str] | None = None) -> AsyncIterator[int]:
    """A WebSocket server that keeps what tokens it is shown."""

    async def keep(connection: ServerConnection) -> None:
        if heard is not None and connection.request is not None:
            heard.append(connection.request.headers.get("Authorization", ""))
        await connection.wait_closed()

    async with serve(keep, "127.0.0.1", 0, ssl=context) as server:
        yield next(iter(server.sockets)).getsockname()[1]


@asynccontextmanager
async def saying(
    words: bytes, heard: list[bytes], context: ssl.SSLContext | None = None
) -> AsyncIterator[int]:
    """A server that answers whatever it hears with these words, and keeps what it heard."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heard.append(await reader.read(4096))
        writer.write(words)
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0, ssl=context) as server:
        yield server.sockets[0].getsockname()[1]


async def told(port: int, security: Security, *, scheme: str = "wss", token: str | None = TOKEN) -> str:
    """Try, and say what became of it: "open", or the sentence of the failure."""
    came = await open_websocket(f"{scheme}://localhost:{port}/ws/node", token, security=security)
    if isinstance(came, HandshakeFailure):
        assert TOKEN not in repr(came)
        return came.failure.detail
    await came.close()
    return "open"


def pins_of(*own: OwnCertificate) -> frozenset[str]:
    return frozenset(pin_of(read_certificate_file(one.cert_file)) for one in own)


async def test_a_registry_is_known_by_an_authority_or_by_its_pin(
    authority: Authority, tmp_path: Path
) -> None:
    heard: list[str] = []
    own = self_signed(tmp_path, "elsewhere.example")
    async with listening(server_context(own), heard) as port:
        assert await told(port, Security(pins=pins_of(own))) == "open"
        assert "signed by itself alone" in await told(port, Security())
    async with listening(server_context(authority.issue()), heard) as port:
        assert await told(port, Security(ca_file=authority.file)) == "open"
        assert "an authority unknown here issued it" in await told(port, Security())
    assert heard == [f"Bearer {TOKEN}"] * 2


async def test_whoever_has_another_key_than_the_pinned_hears_not_one_byte(
    authority: Authority, tmp_path: Path
) -> None:
    heard: list[bytes] = []
    security = Security(ca_file=authority.file, pins=pins_of(self_signed(tmp_path)))
    async with saying(b"HTTP/1.1 200 OK\r\n\r\n", heard, server_context(authority.issue())) as port:
        said = await told(port, security)
    assert "which is none of `tls_pin`" in said
    assert set(heard) <= {b""}


async def test_a_broken_file_is_told_at_once_and_there_is_no_haste(tmp_path: Path) -> None:
    absent = tmp_path / "absent.pem"
    came = await open_websocket("wss://localhost:9/", None, security=Security(ca_file=absent))
    assert isinstance(came, HandshakeFailure)
    assert came.failure.lasting
    assert f"{absent} cannot be read" in came.failure.detail
    assert came.trouble is not None


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
async def test_a_registry_that_asks_for_a_certificate_is_understood(
    authority: Authority, tmp_path: Path, version: ssl.TLSVersion
) -> None:
    stranger = Authority(tmp_path / "stranger")
    encryption = Encryption(TlsFiles(own=authority.issue(), client_ca_file=authority.file))
    encryption.context.maximum_version = version
    async with running(tls=encryption) as service:
        port = service.node_address.port
        for own, words in (
            (authority.issue("node"), "open"),
            (None, "asks for a certificate of this side's own: have one issued"),
            (stranger.issue("node"), "does not accept this side's certificate"),
            (authority.issue("node", from_days=-9, to_days=-1), "does not accept this side's certificate"),
        ):
            assert words in await told(port, Security(ca_file=authority.file, own=own))


async def test_what_speaks_otherwise_than_it_is_spoken_to_is_told(authority: Authority) -> None:
    heard: list[bytes] = []
    trusting = Security(ca_file=authority.file)
    async with saying(b"HTTP/1.1 400 Bad Request\r\n\r\n", heard) as port:
        assert "speaks no TLS" in await told(port, trusting)
    async with running(tls=Encryption(TlsFiles(own=authority.issue()))) as service:
        said = await told(service.node_address.port, trusting, scheme="ws")
    assert said == "that port is encrypted: write wss:// in the registry's URL"


async def test_tls_that_is_too_old_is_told(authority: Authority) -> None:
    old = server_context(authority.issue())
    with pytest.warns(DeprecationWarning, match="TLSv1"):
        old.minimum_version = ssl.TLSVersion.TLSv1
    with pytest.warns(DeprecationWarning, match="TLSv1_1"):
        old.maximum_version = ssl.TLSVersion.TLSv1_1
    old.set_ciphers("ALL:@SECLEVEL=0")
    async with listening(old) as port:  # hangs up without a word, as asyncio's do
        said = await told(port, Security(ca_file=authority.file))
    assert "what listens there hung up in the middle of the handshake: see whether it speaks TLS" in said


async def test_a_token_does_not_leave_this_machine_unencrypted_unless_the_danger_is_named() -> None:
    """Behind a proxy nobody is this machine."""
    heard: list[str] = []
    async with ConnectProxy() as proxy, listening(None, heard) as port:
        url, through = f"ws://localhost:{port}/ws/node", Proxy.parse(proxy.url())
        came = await open_websocket(url, TOKEN, proxy=through)
        assert isinstance(came, HandshakeFailure)
        assert came.failure.lasting
        assert "not encrypted, and who listens on the way" in came.failure.detail
        assert heard == []
        for token, security in ((None, Security()), (TOKEN, Security(insecure_plaintext=True))):
            came = await open_websocket(url, token, proxy=through, security=security)
            assert not isinstance(came, HandshakeFailure)
            await came.close()
    assert heard == ["", f"Bearer {TOKEN}"]


async def test_on_this_machine_a_token_may_go_unencrypted() -> None:
    async with listening(None) as port:
        assert await told(port, Security(), scheme="ws") == "open"


@pytest.mark.parametrize("status", ["301 Moved Permanently", "302 Found", "307 Temporary Redirect"])
async def test_nobody_is_sent_on_to_another_place(authority: Authority, status: str) -> None:
    heard: list[bytes] = []
    elsewhere: list[str] = []
    async with listening(None, elsewhere) as other:
        words = f"HTTP/1.1 {status}\r\nLocation: ws://localhost:{other}/ws/node\r\nContent-Length: 0\r\n\r\n"
        async with saying(words.encode(), heard, server_context(authority.issue())) as port:
            said = await told(port, Security(ca_file=authority.file))
    assert "sends agents to another place, where none goes" in said
    assert len(heard) == 1
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
def test_the_first_that_makes_sense_counts(written: list[str], seconds: float | None) -> None:
    assert retry_after_seconds(written, now=NOW) == seconds


_WORDS = st.sampled_from(["Mon,", "1", "Jan", "2024", "99999999999999999999", "00:00:00", "+9999", "-0", ":"])


@given(st.lists(st.text(max_size=20) | st.lists(_WORDS, max_size=8).map(" ".join), max_size=3))
def test_nothing_that_a_peer_writes_raises(written: list[str]) -> None:
    seconds = retry_after_seconds(written, now=NOW)
    assert seconds is None or seconds >= 0
