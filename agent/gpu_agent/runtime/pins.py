"""Pins: who is known by a public key, and by nothing that somebody else says of it.

A pin is `sha256//` and the base64 of the key's SHA-256 (`SubjectPublicKeyInfo`), as curl takes it
(`--pinnedpubkey`). It outlives a renewal that keeps the key. Compares only: reads no file and opens nothing.
"""

import base64
import ssl

from gpu_agent.runtime.certificate import Certificate, read_der

PREFIX = "sha256//"
_DIGEST_BYTES = 32


class PinError(ssl.SSLError):
    """A peer whose key is none of the pinned ones; `seen` is the pin of the key that it has."""

    def __init__(self, seen: str) -> None:
        super().__init__(f"the key there has the pin {seen}, which is none of those named")
        self.seen = seen


def parse(written: str) -> str:
    """Return a pin as it is compared; raises `ValueError` for what is none."""
    kind, _, digest = written.strip().partition("//")
    try:
        decoded = base64.b64decode(digest, validate=True)
    except ValueError:  # what is no ASCII, or no base64
        decoded = b""
    if f"{kind}//" != PREFIX or len(decoded) != _DIGEST_BYTES:
        raise ValueError(
            f"a pin is {PREFIX} and 44 letters of base64: the registry's log and `gpu-agent doctor` tell it"
        )
    return _written(decoded)


def pin_of(certificate: Certificate) -> str:
    """Return the pin of a certificate's key."""
    return _written(certificate.public_key_sha256)


def hold_to(context: ssl.SSLContext, pins: frozenset[str]) -> None:
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


def _check(der: bytes | None, pins: frozenset[str]) -> None:
    try:
        seen = pin_of(read_der(der or b""))
    except ValueError as error:
        seen = f"unknown ({error})"
    if seen not in pins:
        raise PinError(seen)


def _written(digest: bytes) -> str:
    return PREFIX + base64.b64encode(digest).decode("ascii")
