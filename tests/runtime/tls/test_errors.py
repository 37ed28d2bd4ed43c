import ssl
from pathlib import Path

import pytest

from gpu_agent.runtime.tls.certificate import PinError
from gpu_agent.runtime.tls.contexts import client_context, server_context
from gpu_agent.runtime.tls.errors import TlsProblem, TlsTerms, explain_tls_error, openssl_reason
from tests.authority import Authority, self_signed
from tests.handshakes import shake_hands

TERMS = TlsTerms(authority="--ca-file", pin="--pin", own="--cert-file", plain="http://")


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path / "authority")


def explained(client: ssl.SSLContext, server: ssl.SSLContext) -> str:
    with pytest.raises(ssl.SSLError) as refused:
        shake_hands(client, server)
    return str(explain_tls_error(refused.value, "localhost", TERMS))


def test_a_certificate_that_is_wrong_says_how_and_what_to_do(authority: Authority, tmp_path: Path) -> None:
    client = client_context(ca_file=authority.file, own=None)
    stranger = Authority(tmp_path / "another")
    for own, words in (
        (authority.issue(to_days=-0.5), "has expired: have it renewed"),
        (authority.issue(from_days=1), "not valid yet: see that this machine's clock"),
        (
            authority.issue("elsewhere.example"),
            "is not for localhost: name the registry as its certificate does",
        ),
        (
            self_signed(tmp_path),
            "signed by itself alone: name that certificate in --ca-file, or its key's pin",
        ),
        (stranger.issue(), "an authority unknown here issued it: name that authority's certificate in --ca"),
    ):
        assert words in explained(client, server_context(own))


def test_another_key_than_the_pinned_is_reported_with_its_pin() -> None:
    said = str(explain_tls_error(PinError("sha256//x"), "localhost", TERMS))
    assert "has the pin sha256//x, which is none of --pin" in said


def test_where_no_pin_can_be_named_none_is_asked_for(authority: Authority, tmp_path: Path) -> None:
    with pytest.raises(ssl.SSLError) as refused:
        shake_hands(client_context(ca_file=authority.file, own=None), server_context(self_signed(tmp_path)))
    terms = TlsTerms(authority="--ca-file", pin=None, own="--cert-file", plain="http://")
    assert "pin" not in str(explain_tls_error(refused.value, "localhost", terms))


@pytest.mark.parametrize(
    ("reason", "words"),
    [
        ("WRONG_VERSION_NUMBER", "speaks no TLS: name the port that is encrypted, or write http://"),
        ("RECORD_LAYER_FAILURE", "speaks no TLS"),
        ("TLSV1_ALERT_PROTOCOL_VERSION", "only TLS older than 1.2"),
        ("UNSUPPORTED_PROTOCOL", "only TLS older than 1.2"),
        ("TLSV13_ALERT_CERTIFICATE_REQUIRED", "asks for a certificate of this side's own"),
        ("SSLV3_ALERT_HANDSHAKE_FAILURE", "asks for a certificate of this side's own"),
        ("TLSV1_ALERT_UNKNOWN_CA", "does not accept this side's certificate"),
        ("SSLV3_ALERT_CERTIFICATE_EXPIRED", "does not accept this side's certificate"),
        ("SOMETHING_ELSE", r"no encrypted connection to localhost comes about (something else)"),
    ],
)
def test_what_the_peer_does_is_explained(reason: str, words: str) -> None:
    error = ssl.SSLError(1, f"[SSL: {reason}]")
    error.reason = reason
    assert words in str(explain_tls_error(error, "localhost", TERMS))


def test_a_connection_that_ends_in_a_handshake_is_explained() -> None:
    eof = ssl.SSLEOFError(8, "[SSL: UNEXPECTED_EOF_WHILE_READING] EOF occurred")
    broken = ssl.SSLError(5, "[SYS] unknown error (_ssl.c:2427)")
    for error in (ConnectionResetError(), eof, broken):
        said = explain_tls_error(error, "localhost", TERMS)
        assert said.what == "what listens there hung up in the middle of the handshake"


def test_a_sentence_of_ours_is_parted_from_its_next_step() -> None:
    assert TlsProblem.of("a.pem at ws://x: cannot be read: check it") == TlsProblem(
        "a.pem at ws://x: cannot be read", "check it"
    )


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (ssl.SSLError(1, "[SSL] record layer failure (_ssl.c:1006)"), "record layer failure"),
        (
            ssl.SSLError(1, "[SSL: WRONG_VERSION_NUMBER] wrong version number (_ssl.c:992)"),
            "wrong version number",
        ),
        (OSError(104, "Connection reset by peer"), "connection reset by peer"),
    ],
)
def test_the_place_in_a_source_where_a_fault_was_found_is_left_out(error: OSError, words: str) -> None:
    """Else one violation would be logged once for each of them."""
    assert openssl_reason(error) == words
