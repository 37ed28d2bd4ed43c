import base64
import contextlib
import hashlib
import ssl
import subprocess
import time
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import given
from hypothesis import strategies as st

from gpu_agent.runtime.tls import certificate as pins
from gpu_agent.runtime.tls.certificate import PinError, parse_der, parse_pin, pin_of, read_certificate_file
from gpu_agent.runtime.tls.contexts import client_context, server_context
from tests.authority import Authority, self_signed
from tests.handshakes import shake_hands


def test_begin_end_and_key_are_those_that_another_library_reads(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    for made in (
        authority.issue("localhost", from_days=-3, to_days=40),
        authority.issue("an.example", to_days=-0.5),
        authority.issue("late.example", to_days=30_000),
        self_signed(tmp_path),
    ):
        found = read_certificate_file(made.cert_file)
        known = x509.load_pem_x509_certificate(made.cert_file.read_bytes())
        assert found.begins_at == known.not_valid_before_utc.timestamp()
        assert found.ends_at == known.not_valid_after_utc.timestamp()
        key = known.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        assert found.public_key_sha256 == hashlib.sha256(key).digest()


def test_the_key_is_that_which_openssl_prints(tmp_path: Path) -> None:
    made = self_signed(tmp_path)
    cut_out = subprocess.run(
        ["openssl", "x509", "-in", str(made.cert_file), "-pubkey", "-noout"], check=True, capture_output=True
    )
    as_der = subprocess.run(
        ["openssl", "pkey", "-pubin", "-outform", "der"],
        input=cut_out.stdout,
        check=True,
        capture_output=True,
    )
    assert hashlib.sha256(as_der.stdout).digest() == read_certificate_file(made.cert_file).public_key_sha256


@pytest.mark.parametrize(
    ("written", "year"), [(b"\x17\x0d490101000000Z", 2049), (b"\x17\x0d500101000000Z", 1950)]
)
def test_a_year_of_two_digits_is_before_2050(written: bytes, year: int) -> None:
    validity = b"\x30\x1e" + written + written
    signed = b"\x02\x01\x01" + b"\x30\x00" * 2 + validity + b"\x30\x00" * 2
    outer = b"\x30" + bytes([len(signed)]) + signed
    found = parse_der(b"\x30" + bytes([len(outer)]) + outer)
    assert time.gmtime(found.ends_at).tm_year == year


@pytest.mark.parametrize("content", [b"", b"no certificate", b"-----BEGIN CERTIFICATE-----\n!\n"])
def test_a_file_without_a_certificate_says_so(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "file.pem"
    file.write_bytes(content)
    with pytest.raises(ValueError, match="holds no certificate"):
        read_certificate_file(file)


@given(st.binary(max_size=200))
def test_bytes_that_are_no_certificate_are_refused_and_nothing_worse(content: bytes) -> None:
    with pytest.raises(ValueError, match=r"^(it|its|a) "):
        parse_der(content)


def test_a_certificate_with_any_byte_changed_or_cut_is_read_or_refused_and_nothing_worse(
    tmp_path: Path,
) -> None:
    der = ssl.PEM_cert_to_DER_cert(self_signed(tmp_path).cert_file.read_text())
    for at in range(len(der)):
        for changed in (der[:at], der[:at] + b"\xff" + der[at + 1 :], der[:at] + b"\x00" + der[at + 1 :]):
            with contextlib.suppress(ValueError):
                assert len(parse_der(changed).public_key_sha256) == 32


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path / "authority")


def test_a_pin_is_what_openssl_says_of_the_key(tmp_path: Path) -> None:
    own = self_signed(tmp_path)
    line = (
        f"openssl x509 -in {own.cert_file} -pubkey -noout | openssl pkey -pubin -outform der "
        "| openssl dgst -sha256 -binary | base64"
    )
    printed = subprocess.run(["sh", "-c", line], check=True, capture_output=True, text=True).stdout.strip()
    assert pin_of(read_certificate_file(own.cert_file)) == f"sha256//{printed}"


def test_a_pin_is_read_as_it_is_written() -> None:
    written = "sha256//" + base64.b64encode(bytes(range(32))).decode()
    assert parse_pin(f" {written}\n") == written


@pytest.mark.parametrize(
    "written",
    ["", "sha256//", "sha256//AAAA", "sha1//" + "A" * 43 + "=", "A" * 43 + "=", "sha256//" + "é" * 44],
)
def test_what_is_no_pin_is_refused_with_what_one_is(written: str) -> None:
    with pytest.raises(ValueError, match=r"^a pin is sha256// and 44 letters of base64"):
        parse_pin(written)


def test_with_pins_alone_a_certificate_is_taken_by_its_key_whatever_else_it_says(
    authority: Authority, tmp_path: Path
) -> None:
    """A pin stands for authority, name and dates."""
    for own in (
        self_signed(tmp_path, "elsewhere.example"),
        authority.issue("elsewhere.example", from_days=-9, to_days=-1),
    ):
        held = frozenset({pin_of(read_certificate_file(own.cert_file))})
        assert (
            shake_hands(client_context(ca_file=None, own=None, pins=held), server_context(own)) == "TLSv1.3"
        )


def test_another_key_is_refused_and_its_pin_named(authority: Authority) -> None:
    one, other = authority.issue(), authority.issue()
    held = frozenset({pin_of(read_certificate_file(one.cert_file))})
    for ca_file in (None, authority.file):
        with pytest.raises(PinError) as refused:
            shake_hands(client_context(ca_file=ca_file, own=None, pins=held), server_context(other))
        assert refused.value.seen == pin_of(read_certificate_file(other.cert_file))


def test_of_several_pins_one_is_enough(authority: Authority) -> None:
    now, later = authority.issue(), authority.issue()
    held = frozenset(pin_of(read_certificate_file(one.cert_file)) for one in (now, later))
    client = client_context(ca_file=None, own=None, pins=held)
    for own in (now, later):
        assert shake_hands(client, server_context(own))


def test_with_an_authority_a_pin_is_asked_for_besides(authority: Authority) -> None:
    for own, code in ((authority.issue("elsewhere.example"), 62), (authority.issue(to_days=-0.5), 10)):
        held = frozenset({pin_of(read_certificate_file(own.cert_file))})
        with pytest.raises(ssl.SSLCertVerificationError) as refused:
            shake_hands(client_context(ca_file=authority.file, own=None, pins=held), server_context(own))
        assert refused.value.verify_code == code
    good = authority.issue()
    held = frozenset({pin_of(read_certificate_file(good.cert_file))})
    assert shake_hands(client_context(ca_file=authority.file, own=None, pins=held), server_context(good))


def test_a_peer_without_a_certificate_is_refused() -> None:
    with pytest.raises(PinError, match="unknown"):
        pins._check(None, frozenset())
