"""What this house reads of a certificate: when it begins and ends, and which public key it is for.

The standard library tells that only of a certificate that a handshake has brought, and the key not at
all; so the few fields that lie before the key are walked (RFC 5280, DER). Judges nothing: whether to
trust a certificate is for OpenSSL to say.
"""

import calendar
import hashlib
import ssl
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_SEQUENCE, _VERSION, _UTC_TIME, _GENERALIZED_TIME = 0x30, 0xA0, 0x17, 0x18
_TIME = "%Y%m%d%H%M%SZ"
_LONG_FORM = 0x80
_LARGEST_BYTES = 1024 * 1024
_BEGIN, _END = "-----BEGIN CERTIFICATE-----", "-----END CERTIFICATE-----"


@dataclass(frozen=True, slots=True)
class Certificate:
    """Times are seconds since 1970."""

    begins_at: float
    ends_at: float
    public_key_sha256: bytes
    """Of the key's `SubjectPublicKeyInfo`, as RFC 7469 and curl pin it: a renewal may keep it."""


def read_der(der: bytes) -> Certificate:
    """Read one certificate; raises `ValueError` for what is none."""
    (_, outer), *_ = _parts(der)
    (_, signed), *_ = _parts(outer)
    parts = [part for part in _whole_parts(signed) if part[0] != _VERSION]
    try:
        _serial, _algorithm, _issuer, validity, _subject, key = parts[:6]
    except ValueError:
        raise ValueError("it ends before its public key") from None
    if validity[0] != _SEQUENCE or key[0] != _SEQUENCE:
        raise ValueError("its fields do not stand where they should")
    (begins, ends) = [_moment(tag, value) for tag, value in _parts(_value(validity))]
    return Certificate(begins, ends, hashlib.sha256(key).digest())


def read_file(path: Path) -> Certificate:
    """Read the first certificate of a PEM file; raises `OSError`, and `ValueError` for what is none."""
    with path.open("rb") as file:
        text = file.read(_LARGEST_BYTES).decode("ascii", "replace")
    begin, end = text.find(_BEGIN), text.find(_END)
    if begin < 0 or end < begin:
        raise ValueError("it holds no certificate in PEM")
    return read_der(ssl.PEM_cert_to_DER_cert(text[begin : end + len(_END)]))


def _parts(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield tag and value of each part; raises `ValueError`."""
    for part in _whole_parts(data):
        yield part[0], _value(part)


def _whole_parts(data: bytes) -> Iterator[bytes]:
    at = 0
    while at < len(data):
        head, length = _extent(data[at:])
        end = at + head + length
        if end > len(data):
            raise ValueError("it is cut off")
        yield data[at:end]
        at = end
    if not data:
        raise ValueError("it is empty where it should not be")


def _value(part: bytes) -> bytes:
    head, _ = _extent(part)
    return part[head:]


def _extent(data: bytes) -> tuple[int, int]:
    """Return how long the head of a part is, and how long its value."""
    try:
        first = data[1]
    except IndexError:
        raise ValueError("it is cut off") from None
    if first < _LONG_FORM:
        return 2, first
    digits = first - _LONG_FORM
    if not 1 <= digits <= 4 or len(data) < 2 + digits:  # noqa: PLR2004 - four bytes tell any length there is
        raise ValueError("a length in it is none")
    return 2 + digits, int.from_bytes(data[2 : 2 + digits], "big")


def _moment(tag: int, value: bytes) -> float:
    """Read a time; one of two digits for its year lies between 1950 and 2049 (RFC 5280, 4.1.2.5.1)."""
    if tag == _UTC_TIME:
        value = (b"20" if value < b"5" else b"19") + value
    elif tag != _GENERALIZED_TIME:
        raise ValueError("it has no times where they should stand")
    try:
        return float(calendar.timegm(time.strptime(value.decode("ascii"), _TIME)))
    except ValueError:
        raise ValueError("a time in it is none") from None
