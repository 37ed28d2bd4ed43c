import socket
import ssl
from pathlib import Path

import pytest

from gpu_agent.node.connection import tls
from gpu_agent.node.connection.tls import (
    PlaintextError,
    Security,
    context_for,
    is_readable,
    refuse_plaintext,
    unverified_context,
    wants_tls,
)
from gpu_agent.runtime.proxy import Proxy
from gpu_agent.runtime.tls.contexts import TlsFileError, server_context
from tests.authority import Authority, self_signed
from tests.handshakes import shake_hands

URL = "wss://localhost/ws/node"


async def test_the_files_are_read_for_every_attempt(tmp_path: Path) -> None:
    one, other = Authority(tmp_path / "one"), Authority(tmp_path / "other")
    known = tmp_path / "ca.pem"
    security = Security(ca_file=known)
    for authority in (one, other):
        known.write_bytes(authority.file.read_bytes())
        context = await context_for(URL, security)
        assert context is not None
        assert shake_hands(context, server_context(authority.issue()))
    known.write_text("half a file")
    with pytest.raises(TlsFileError, match=rf"{known} holds no certificate"):
        await context_for(URL, security)


async def test_without_encryption_nothing_is_read(tmp_path: Path) -> None:
    assert await context_for("ws://localhost/", Security(ca_file=tmp_path / "absent")) is None


async def test_a_disk_that_does_not_answer_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tls, "READ_SECONDS", 0.0)
    with pytest.raises(TlsFileError, match="disk with the files for TLS does not answer"):
        await context_for(URL, Security())


def test_a_certificate_is_read_without_verification(tmp_path: Path) -> None:
    assert shake_hands(unverified_context(), server_context(self_signed(tmp_path, "elsewhere.example")))
    assert unverified_context().verify_mode is ssl.CERT_NONE


@pytest.mark.parametrize(
    ("url", "peer", "proxy", "readable"),
    [
        ("ws://h/", ("127.0.0.1", 80), None, False),
        ("ws://h/", ("127.8.8.8", 80), None, False),
        ("ws://h/", ("::1", 80, 0, 0), None, False),
        ("ws://h/", ("::ffff:127.0.0.1", 80, 0, 0), None, False),
        ("ws://h/", ("fe80::1%eth0", 80, 0, 2), None, True),
        ("ws://localhost/", ("10.0.0.1", 80), None, True),
        ("ws://localhost/", ("127.0.0.1", 3128), Proxy("127.0.0.1", 3128), True),
        ("wss://h/", ("10.0.0.1", 443), None, False),
        ("ws://h/", ("", 0), None, True),
    ],
)
def test_what_leaves_this_machine_unencrypted_is_is_readable(
    url: str, peer: tuple[object, ...], proxy: Proxy | None, *, readable: bool
) -> None:
    assert is_readable(url, peer, proxy) is readable


def test_a_sockets_peer_address_is_understood() -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as listener,
        socket.create_connection(listener.getsockname()) as opened,
    ):
        assert not is_readable("ws://h/", opened.getpeername(), None)


def test_a_token_in_plaintext_is_refused_unless_the_settings_allow_it() -> None:
    with pytest.raises(PlaintextError, match=r"ws://10\.0\.0\.1:8080 is not encrypted.*insecure_plaintext"):
        refuse_plaintext("ws://10.0.0.1:8080/ws/node", Security())
    refuse_plaintext("ws://10.0.0.1:8080/ws/node", Security(insecure_plaintext=True))


@pytest.mark.parametrize(
    ("url", "status", "body", "wanted"),
    [
        ("ws://h/", 400, b"This port is encrypted: name it with wss:// or https://.\n", True),
        ("ws://h/", 400, b"Client sent an HTTP request to an HTTPS server.\n", True),
        ("ws://h/", 400, b"no such thing", False),
        ("ws://h/", 400, None, False),
        ("ws://h/", 404, b"https", False),
        ("wss://h/", 400, b"https", False),
    ],
)
def test_a_port_that_is_encrypted_is_known_by_what_it_answers(
    url: str, status: int, body: bytes | None, *, wanted: bool
) -> None:
    assert wants_tls(url, status, body) is wanted
