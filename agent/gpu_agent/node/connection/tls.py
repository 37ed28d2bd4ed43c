"""How the agent authenticates its registry and itself: the TLS context, built for each attempt.

The files are read each time, so that a renewed certificate counts from the next attempt on and ends no
session. No token goes in plaintext to another machine unless the settings name the danger.
"""

import re
import ssl
from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from urllib.parse import urlsplit

from gpu_agent.node.connection.proxy import Proxy
from gpu_agent.runtime.tasks import in_thread
from gpu_agent.runtime.tls.contexts import OwnCertificate, TlsFileError
from gpu_agent.runtime.tls.contexts import client_context as contexts_client_context
from gpu_agent.runtime.tls.errors import TlsTerms

READ_SECONDS = 3.0
"""How long the disk may take to give the files."""

TERMS = TlsTerms(
    authority="`tls_ca_file`", pin="`tls_pin`", own="`tls_cert_file` and `tls_key_file`", plain="ws://"
)
_BAD_REQUEST = 400
_ENCRYPTED = re.compile(rb"https|wss|encrypted|tls|ssl", re.IGNORECASE)
"""What servers say to whoever speaks in the clear to a port that is encrypted."""


class ClearTextError(Exception):
    """A token would travel where others can read it: a sentence with the next step."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Security:
    """What the settings say of TLS."""

    ca_file: Path | None = None
    """Vouches for the registry; None takes the system's authorities, or the pins alone."""
    pins: frozenset[str] = frozenset()
    """The registry has one of these keys; with no `ca_file` nothing else is asked of it."""
    own: OwnCertificate | None = None
    """What the agent proves itself with, besides its token."""
    insecure_plaintext: bool = False
    """Danger: a token may travel where others can read it."""

    @property
    def pinned_alone(self) -> bool:
        """Whether a pin stands for authority, name and dates."""
        return bool(self.pins) and self.ca_file is None


DEFAULT = Security()
"""The system's authorities, and no token in the clear."""


async def context_for(url: str, security: Security) -> ssl.SSLContext | None:
    """Make what a handshake is set up with, None for `ws://`; raises `TlsFileError`."""
    if urlsplit(url).scheme != "wss":
        return None
    try:
        return await in_thread("tls-files", lambda: client_context(security), deadline_seconds=READ_SECONDS)
    except TimeoutError:
        raise TlsFileError(
            "the disk with the files for TLS does not answer: see whether it can be reached"
        ) from None


def client_context(security: Security) -> ssl.SSLContext:
    """Make a context out of the files as they are now; raises `TlsFileError`."""
    return contexts_client_context(ca_file=security.ca_file, own=security.own, pins=security.pins)


def unverified_context() -> ssl.SSLContext:
    """Make a context that trusts whoever is there, to look at the certificate and to send nothing."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context


def in_the_clear(url: str, peer: Sequence[object], proxy: Proxy | None) -> bool:
    """Say whether others can read what is sent over an open way: it leaves this machine, not encrypted."""
    return urlsplit(url).scheme == "ws" and (proxy is not None or not _is_loopback(str(peer[0])))


def refuse_clear_text(url: str, security: Security) -> None:
    """Raise `ClearTextError` unless the settings let a token travel where others can read it."""
    if not security.insecure_plaintext:
        raise ClearTextError(
            f"ws://{urlsplit(url).netloc} is not encrypted, and who listens on the way to that machine could "
            "take this node's token, so it was not sent: write wss:// where the registry has a certificate; "
            "on a network where you trust every machine, set insecure_plaintext = true"
        )


def wants_tls(url: str, status: int, body: bytes | bytearray | None) -> bool:
    """Say whether an answer in the clear comes from a port that is encrypted."""
    return urlsplit(url).scheme == "ws" and status == _BAD_REQUEST and bool(_ENCRYPTED.search(body or b""))


def _is_loopback(address: str) -> bool:
    """Say so of an address; an IPv6 one that stands for an IPv4 one is that."""
    try:
        found = ip_address(address.partition("%")[0])
    except ValueError:
        return False
    return (getattr(found, "ipv4_mapped", None) or found).is_loopback
