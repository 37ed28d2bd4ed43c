"""What this program reads of a certificate: when it begins and ends, its public key, and the pin of that key.

The standard library gives the dates only after a handshake, and the key not at all, so the few DER fields
before the key are walked (RFC 5280). OpenSSL decides whether to trust a certificate. A pin is `sha256//` and
the base64 of the SHA-256 of `SubjectPublicKeyInfo`, as curl's `--pinnedpubkey` takes it; a renewal that keeps
the key keeps the pin.
"""

import base64
import calendar
import hashlib
import ssl
import time
from collections.abc import Iterator
from pathlib import Path

from gpu_agent.records import dataclass

PIN_PREFIX = "sha256//"
_SEQUENCE, _VERSION, _UTC_TIME, _GENERALIZED_TIME = 0x30, 0xA0, 0x17, 0x18
_TIME = "%Y%m%d%H%M%SZ"
_LONG_FORM = 0x80
_MAX_BYTES = 1024 * 1024
_BEGIN, _END = "-----BEGIN CERTIFICATE-----", "-----END CERTIFICATE-----"
_DIGEST_BYTES = 32


@dataclass(frozen=True, slots=True)
class Certificate:
    """Times are seconds since 1970."""

    begins_at: float
    ends_at: float
    public_key_sha256: bytes
    """Of the key's `SubjectPublicKeyInfo`, as RFC 7469 and curl pin it: a renewal may keep it."""


class PinError(ssl.SSLError):
    """A peer whose key is none of the pinned ones; `seen` is the pin of the key that it has."""

    def __init__(self, seen: str) -> None:
        super().__init__(f"the key there has the pin {seen}, which is none of those named")
        self.seen = seen


def parse_der(der: bytes) -> Certificate:
    """Read one certificate; raises `ValueError` for what is none."""
    (_, outer), *_ = _parts(der)
    (_, signed), *_ = _parts(outer)
    parts = [part for part in _raw_parts(signed) if part[0] != _VERSION]
    try:
        _serial, _algorithm, _issuer, validity, _subject, key = parts[:6]
    except ValueError:
        raise ValueError("it ends before its public key") from None
    if validity[0] != _SEQUENCE or key[0] != _SEQUENCE:
        raise ValueError("its fields do not stand where they should")
    (begins, ends) = [_moment(tag, value) for tag, value in _parts(_value(validity))]
    return Certificate(begins, ends, hashlib.sha256(key).digest())


def read_certificate_file(path: Path) -> Certificate:
    """Read the first certificate of a PEM file; raises `OSError`, and `ValueError` for what is none."""
    with path.open("rb") as file:
        text = file.read(_MAX_BYTES).decode("ascii", "replace")
    begin, end = text.find(_BEGIN), text.find(_END)
    if begin < 0 or end < begin:
        raise ValueError("it holds no certificate in PEM")
    return parse_der(ssl.PEM_cert_to_DER_cert(text[begin : end + len(_END)]))


def parse_pin(written: str) -> str:
    """Return a pin as it is compared; raises `ValueError` for what is none."""
    kind, _, digest = written.strip().partition("//")
    try:
        decoded = base64.b64decode(digest, validate=True)
    except ValueError:  # what is no ASCII, or no base64
        decoded = b""
    if f"{kind}//" != PIN_PREFIX or len(decoded) != _DIGEST_BYTES:
        raise ValueError(
            f"a pin is {PIN_PREFIX} and 44 letters of base64: the registry's log and `gpu-agent doctor` "
            "show it"
        )
    return _written(decoded)


def pin_of(certificate: Certificate) -> str:
    """Return the pin of a certificate's key."""
    return _written(certificate.public_key_sha256)


def require_pins(context: ssl.SSLContext, pins: frozenset[str]) -> None:
    """Make every handshake of a context fail, with a `PinError`, at a peer whose key is none of these."""

    class PinnedObject(ssl.SSLObject):
        def do_handshake(self) -> None:
            """Shake hands, then look whom with."""
            super().do_handshake()
            _check(self.getpeercert(binary_form=True), pins)

    class PinnedSocket(ssl.SSLSocket):
        def do_handshake(self, block: bool = False) -> None:  # noqa: FBT001, FBT002 - the library's signature
            """Shake hands, then look whom with."""
            super().do_handshake(block)
            _check(self.getpeercert(binary_form=True), pins)

    context.sslobject_class = PinnedObject
    context.sslsocket_class = PinnedSocket


def _parts(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield tag and value of each part; raises `ValueError`."""
    for part in _raw_parts(data):
        yield part[0], _value(part)


def _raw_parts(data: bytes) -> Iterator[bytes]:
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
    if not 1 <= digits <= 4 or len(data) < 2 + digits:  # noqa: PLR2004 - four bytes hold any length
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


def _check(der: bytes | None, pins: frozenset[str]) -> None:
    try:
        seen = pin_of(parse_der(der or b""))
    except ValueError as error:
        seen = f"unknown ({error})"
    if seen not in pins:
        raise PinError(seen)


def _written(digest: bytes) -> str:
    return PIN_PREFIX + base64.b64encode(digest).decode("ascii")
