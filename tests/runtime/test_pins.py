import base64
import ssl
import subprocess
from pathlib import Path

import pytest

from gpu_agent.runtime import pins
from gpu_agent.runtime.certificate import read_file
from gpu_agent.runtime.pins import PinError, parse, pin_of
from gpu_agent.runtime.tls_contexts import for_client, for_server
from tests.authority import Authority, self_signed
from tests.handshakes import shake_hands


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path / "authority")


def test_a_pin_is_what_openssl_says_of_the_key(tmp_path: Path) -> None:
    own = self_signed(tmp_path)
    line = (
        f"openssl x509 -in {own.cert_file} -pubkey -noout | openssl pkey -pubin -outform der "
        "| openssl dgst -sha256 -binary | base64"
    )
    told = subprocess.run(["sh", "-c", line], check=True, capture_output=True, text=True).stdout.strip()
    assert pin_of(read_file(own.cert_file)) == f"sha256//{told}"


def test_a_pin_is_read_as_it_is_written() -> None:
    written = "sha256//" + base64.b64encode(bytes(range(32))).decode()
    assert parse(f" {written}\n") == written


@pytest.mark.parametrize(
    "written",
    ["", "sha256//", "sha256//AAAA", "sha1//" + "A" * 43 + "=", "A" * 43 + "=", "sha256//" + "é" * 44],
)
def test_what_is_no_pin_is_refused_with_what_one_is(written: str) -> None:
    with pytest.raises(ValueError, match=r"^a pin is sha256// and 44 letters of base64"):
        parse(written)


def test_with_pins_alone_a_certificate_is_taken_by_its_key_whatever_else_it_says(
    authority: Authority, tmp_path: Path
) -> None:
    """A pin stands for authority, name and dates."""
    for own in (
        self_signed(tmp_path, "elsewhere.example"),
        authority.issue("elsewhere.example", from_days=-9, to_days=-1),
    ):
        held = frozenset({pin_of(read_file(own.cert_file))})
        assert shake_hands(for_client(ca_file=None, own=None, pins=held), for_server(own)) == "TLSv1.3"


def test_another_key_is_refused_and_its_pin_told(authority: Authority) -> None:
    one, other = authority.issue(), authority.issue()
    held = frozenset({pin_of(read_file(one.cert_file))})
    for ca_file in (None, authority.file):
        with pytest.raises(PinError) as refused:
            shake_hands(for_client(ca_file=ca_file, own=None, pins=held), for_server(other))
        assert refused.value.seen == pin_of(read_file(other.cert_file))


def test_of_several_pins_one_is_enough(authority: Authority) -> None:
    now, later = authority.issue(), authority.issue()
    held = frozenset(pin_of(read_file(one.cert_file)) for one in (now, later))
    client = for_client(ca_file=None, own=None, pins=held)
    for own in (now, later):
        assert shake_hands(client, for_server(own))


def test_with_an_authority_a_pin_is_asked_for_besides(authority: Authority) -> None:
    for own, code in ((authority.issue("elsewhere.example"), 62), (authority.issue(to_days=-0.5), 10)):
        held = frozenset({pin_of(read_file(own.cert_file))})
        with pytest.raises(ssl.SSLCertVerificationError) as refused:
            shake_hands(for_client(ca_file=authority.file, own=None, pins=held), for_server(own))
        assert refused.value.verify_code == code
    good = authority.issue()
    held = frozenset({pin_of(read_file(good.cert_file))})
    assert shake_hands(for_client(ca_file=authority.file, own=None, pins=held), for_server(good))


def test_a_peer_without_a_certificate_is_nobody() -> None:
    with pytest.raises(PinError, match="unknown"):
        pins._check(None, frozenset())
