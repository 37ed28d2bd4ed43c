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

from gpu_agent.runtime.certificate import read_der, read_file
from tests.authority import Authority, self_signed


def test_begin_end_and_key_are_those_that_another_library_reads(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    for made in (
        authority.issue("localhost", from_days=-3, to_days=40),
        authority.issue("an.example", to_days=-0.5),
        authority.issue("late.example", to_days=30_000),
        self_signed(tmp_path),
    ):
        found = read_file(made.cert_file)
        known = x509.load_pem_x509_certificate(made.cert_file.read_bytes())
        assert found.begins_at == known.not_valid_before_utc.timestamp()
        assert found.ends_at == known.not_valid_after_utc.timestamp()
        key = known.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        assert found.public_key_sha256 == hashlib.sha256(key).digest()


def test_the_key_is_told_as_openssl_prints_it(tmp_path: Path) -> None:
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
    assert hashlib.sha256(as_der.stdout).digest() == read_file(made.cert_file).public_key_sha256


@pytest.mark.parametrize(
    ("written", "year"), [(b"\x17\x0d490101000000Z", 2049), (b"\x17\x0d500101000000Z", 1950)]
)
def test_a_year_of_two_digits_is_before_2050(written: bytes, year: int) -> None:
    validity = b"\x30\x1e" + written + written
    signed = b"\x02\x01\x01" + b"\x30\x00" * 2 + validity + b"\x30\x00" * 2
    outer = b"\x30" + bytes([len(signed)]) + signed
    found = read_der(b"\x30" + bytes([len(outer)]) + outer)
    assert time.gmtime(found.ends_at).tm_year == year


@pytest.mark.parametrize("content", [b"", b"no certificate", b"-----BEGIN CERTIFICATE-----\n!\n"])
def test_a_file_without_a_certificate_says_so(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "file.pem"
    file.write_bytes(content)
    with pytest.raises(ValueError, match="holds no certificate"):
        read_file(file)


@given(st.binary(max_size=200))
def test_bytes_that_are_no_certificate_are_refused_and_nothing_worse(content: bytes) -> None:
    with pytest.raises(ValueError, match=r"^(it|its|a) "):
        read_der(content)


def test_a_certificate_with_any_byte_changed_or_cut_is_read_or_refused_and_nothing_worse(
    tmp_path: Path,
) -> None:
    der = ssl.PEM_cert_to_DER_cert(self_signed(tmp_path).cert_file.read_text())
    for at in range(len(der)):
        for changed in (der[:at], der[:at] + b"\xff" + der[at + 1 :], der[:at] + b"\x00" + der[at + 1 :]):
            with contextlib.suppress(ValueError):
                assert len(read_der(changed).public_key_sha256) == 32
