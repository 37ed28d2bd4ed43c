"""Why an encrypted connection failed, in words for a person, with the next step.

The reasons are OpenSSL's: its numbers for a certificate, its names for the rest.
"""

import re
import ssl
from typing import Self

from gpu_agent.records import dataclass
from gpu_agent.runtime.tls.certificate import PinError

_SOURCE_LOCATION = re.compile(r"^\[[^\]]*\] ?|\(_ssl\.c:\d+\)$")
"""What Python puts around the words for which it has no name."""
_EXPIRED, _NOT_YET = 10, 9
_OTHER_NAME = frozenset({62, 64})
_SELF_SIGNED = 18
_UNKNOWN_AUTHORITY = frozenset({2, 19, 20, 21})
"""OpenSSL's numbers for what is wrong with a certificate."""
_TOO_OLD = ("PROTOCOL_VERSION", "UNSUPPORTED_PROTOCOL", "WRONG_SSL_VERSION", "NO_PROTOCOLS_AVAILABLE")
_NO_TLS = ("WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE", "HTTP_REQUEST", "UNEXPECTED_MESSAGE")
_HUNG_UP = ("UNEXPECTED_EOF", "EOF_OCCURRED", "UNKNOWN_ERROR")
_WANTS_OURS = ("CERTIFICATE_REQUIRED", "ALERT_HANDSHAKE_FAILURE")
_REFUSES_OURS = (
    "ALERT_UNKNOWN_CA",
    "ALERT_BAD_CERTIFICATE",
    "ALERT_CERTIFICATE_EXPIRED",
    "ALERT_CERTIFICATE_REVOKED",
    "ALERT_CERTIFICATE_UNKNOWN",
    "ALERT_UNSUPPORTED_CERTIFICATE",
    "ALERT_ACCESS_DENIED",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class TlsTerms:
    """What this side calls the things that a person can fix."""

    authority: str
    pin: str | None
    """None where no pin can be named."""
    own: str
    plain: str
    """How a URL without TLS begins."""


@dataclass(frozen=True, slots=True)
class TlsProblem:
    """What is the matter, and the next step."""

    what: str
    fix: str

    @classmethod
    def of(cls, sentence: str) -> Self:
        """Part a sentence of ours that ends in its next step."""
        what, _, fix = sentence.rpartition(": ")
        return cls(what, fix)

    def __str__(self) -> str:
        """Say both in one sentence."""
        return f"{self.what}: {self.fix}"


def explain_tls_error(error: OSError | ValueError, host: str, terms: TlsTerms) -> TlsProblem:
    """Say why a handshake with a host failed, or why the peer ended the connection right after it."""
    if isinstance(error, PinError):
        return TlsProblem(
            f"the registry's key has the pin {error.seen}, which is none of {terms.pin}",
            "if its operator says that this is its key now, add that pin; else somebody stands in between",
        )
    if isinstance(error, ssl.SSLCertVerificationError):
        return _of_certificate(error, host, terms)
    reason = openssl_reason(error).upper().replace(" ", "_")
    for names, trouble in _of_peer(terms):
        if any(name in reason for name in names):
            return trouble
    if isinstance(error, ConnectionResetError) or any(name in reason for name in _HUNG_UP):
        return TlsProblem(
            "what listens there hung up in the middle of the handshake",
            f"see whether it speaks TLS at all, what its log says, and if it wants {terms.own}",
        )
    return TlsProblem(
        f"no encrypted connection to {host} comes about ({openssl_reason(error)})",
        "see that a registry listens there, and what its log says (`tls_refused`)",
    )


def openssl_reason(error: OSError | ValueError) -> str:
    """Say what OpenSSL calls it, in small letters and without the place in a source where it was found."""
    reason = getattr(error, "reason", None) or getattr(error, "strerror", None) or str(error)
    return _SOURCE_LOCATION.sub("", str(reason)).replace("_", " ").strip().lower()


def _of_certificate(error: ssl.SSLCertVerificationError, host: str, terms: TlsTerms) -> TlsProblem:
    match error.verify_code:
        case code if code in _OTHER_NAME:
            return TlsProblem(
                f"the registry's certificate is not for {host}",
                "name the registry as its certificate does, or have one issued for this name",
            )
        case code if code == _EXPIRED:
            return TlsProblem(
                "the registry's certificate has expired",
                "have it renewed; and see that this machine's clock is right",
            )
        case code if code == _NOT_YET:
            return TlsProblem(
                "the registry's certificate is not valid yet",
                "see that this machine's clock is right; else have its operator put another one in place",
            )
        case code if code == _SELF_SIGNED:
            known = f", or its key's pin in {terms.pin}" if terms.pin else ""
            return TlsProblem(
                "the registry's certificate is not trusted: it was signed by itself alone",
                f"name that certificate in {terms.authority}{known}, if its operator vouches for it",
            )
        case code if code in _UNKNOWN_AUTHORITY:
            return TlsProblem(
                "the registry's certificate is not trusted: an authority unknown here issued it",
                f"name that authority's certificate in {terms.authority}, or install it on this machine",
            )
        case _:
            return TlsProblem(
                f"the registry's certificate is not trusted ({error.verify_message})",
                f"have another one issued, or name who vouches for it in {terms.authority}",
            )


def _of_peer(terms: TlsTerms) -> tuple[tuple[tuple[str, ...], TlsProblem], ...]:
    """What OpenSSL's names mean, the first that fits."""
    return (
        (
            _TOO_OLD,
            TlsProblem(
                "what listens there speaks only TLS older than 1.2",
                "have it brought up to TLS 1.2 or newer: nothing older is spoken here",
            ),
        ),
        (
            _NO_TLS,
            TlsProblem(
                "what listens there speaks no TLS",
                f"name the port that is encrypted, or write {terms.plain} if none is meant to be",
            ),
        ),
        (
            _WANTS_OURS,
            TlsProblem(
                "the registry asks for a certificate of this side's own",
                f"have one issued by the authority that it trusts, and name it in {terms.own}",
            ),
        ),
        (
            _REFUSES_OURS,
            TlsProblem(
                "the registry does not accept this side's certificate",
                f"see whether it has expired, and have one issued by the authority that the registry trusts "
                f"for {terms.own}",
            ),
        ),
    )
