"""How the agent authenticates its registry and itself: the TLS context, built for each attempt.

The files are read each time, so that a renewed certificate counts from the next attempt on and ends no
session. No token goes in plaintext to another machine unless the settings name the danger.
"""

import re
import ssl
from collections.abc import Sequence
from ipaddress import ip_address
from pathlib import Path
from urllib.parse import urlsplit

from gpu_agent.records import dataclass
from gpu_agent.runtime.proxy import Proxy
from gpu_agent.runtime.tasks import in_thread
from gpu_agent.runtime.tls.contexts import OwnCertificate, TlsFileError, client_context
from gpu_agent.runtime.tls.errors import TlsTerms

READ_SECONDS = 3.0
"""How long reading the files may take."""

TERMS = TlsTerms(
    authority="`tls_ca_file`", pin="`tls_pin`", own="`tls_cert_file` and `tls_key_file`", plain="ws://"
)
_BAD_REQUEST = 400
_ENCRYPTED = re.compile(rb"https|wss|encrypted|tls|ssl", re.IGNORECASE)
"""What servers answer to plaintext on an encrypted port."""


class PlaintextError(Exception):
    """A token would go in plaintext to another machine: a sentence with the next step."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Security:
    """The settings for TLS."""

    ca_file: Path | None = None
    """Authorities that may issue the registry's certificate; None means the system's, or the pins alone."""
    pins: frozenset[str] = frozenset()
    """The registry has one of these keys; without `ca_file` nothing else is checked."""
    own: OwnCertificate | None = None
    """The agent's own certificate, besides its token."""
    insecure_plaintext: bool = False
    """Danger: a token may go in plaintext to another machine."""

    @property
    def pinned_alone(self) -> bool:
        """Whether a pin replaces authority, name and dates."""
        return bool(self.pins) and self.ca_file is None


DEFAULT = Security()
"""The system's authorities, and no token in plaintext."""


async def context_for(url: str, security: Security) -> ssl.SSLContext | None:
    """Make the context of a handshake, None for `ws://`; raises `TlsFileError`."""
    if urlsplit(url).scheme != "wss":
        return None
    try:
        return await in_thread("tls-files", lambda: make_context(security), deadline_seconds=READ_SECONDS)
    except TimeoutError:
        raise TlsFileError(
            "the disk with the files for TLS does not answer: see whether it can be reached"
        ) from None


def make_context(security: Security) -> ssl.SSLContext:
    """Make a context from the files as they are now; raises `TlsFileError`."""
    return client_context(ca_file=security.ca_file, own=security.own, pins=security.pins)


def unverified_context() -> ssl.SSLContext:
    """Make a context that verifies nothing, to read the certificate and send nothing."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context


def is_readable(url: str, peer: Sequence[object], proxy: Proxy | None) -> bool:
    """Whether others can read what a connection carries: it leaves this machine in plaintext."""
    return urlsplit(url).scheme == "ws" and (proxy is not None or not _is_loopback(str(peer[0])))


def refuse_plaintext(url: str, security: Security) -> None:
    """Raise `PlaintextError` unless the settings allow tokens in plaintext."""
    if not security.insecure_plaintext:
        raise PlaintextError(
            f"ws://{urlsplit(url).netloc} is not encrypted, and anyone on the network path could "
            "read this node's token, so it was not sent: write wss:// where the registry has a certificate; "
            "on a network where you trust every machine, set insecure_plaintext = true"
        )


def wants_tls(url: str, status: int, body: bytes | bytearray | None) -> bool:
    """Whether a plaintext answer comes from an encrypted port."""
    return urlsplit(url).scheme == "ws" and status == _BAD_REQUEST and bool(_ENCRYPTED.search(body or b""))


def _is_loopback(address: str) -> bool:
    """Whether an address is loopback, an IPv6-mapped IPv4 address too."""
    try:
        found = ip_address(address.partition("%")[0])
    except ValueError:
        return False
    return (getattr(found, "ipv4_mapped", None) or found).is_loopback
