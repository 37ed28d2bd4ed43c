"""The connectivity check: each step of the connection to the registry, up to the handshake and no further.

Each step has a deadline, and names the fix where it fails. It registers nothing, consumes no join token and
shows none: it says which kind of token the registry accepted.
"""

import asyncio
import contextlib
import os
import ssl
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field, replace
from email.utils import parsedate_to_datetime
from ipaddress import ip_address
from urllib.parse import urlsplit

from gpu_agent.node.connection.link import HandshakeResult, try_handshake
from gpu_agent.node.connection.proxy import Address, Proxy, ProxyError, connect_address, resolve, tunnel
from gpu_agent.node.connection.tls import (
    DEFAULT,
    TERMS,
    Security,
    context_for,
    in_the_clear,
    unverified_context,
)
from gpu_agent.runtime.check_results import CheckResult, CheckStatus, fail, ok, skipped, warn
from gpu_agent.runtime.tls.certificate import Certificate, parse_der, pin_of
from gpu_agent.runtime.tls.contexts import TlsFileError
from gpu_agent.runtime.tls.errors import TlsProblem, explain_tls_error

TLS_SECONDS = 5.0
EXPIRY_DAYS = 14
"""A certificate that ends sooner is told of."""
SKEW_SECONDS = 5.0
"""Clocks may differ by that: the header is whole seconds, and the answer took its time."""
STEPS = ("DNS", "TCP", "TLS", "WebSocket", "credential", "clock")

_HAND_OVER = (
    "name its file with --join-token-file; the service's own is /etc/gpu-agent/join-token, which it reads "
    "when it starts"
)
_DAY_SECONDS = 86400
_UNAUTHORIZED, _FORBIDDEN, _BUSY = 401, 403, 503


@dataclass(frozen=True, slots=True, kw_only=True)
class Tokens:
    """What the agent could present."""

    node: str | None = field(default=None, repr=False)
    join: str | None = field(default=None, repr=False)


async def check_connection(
    url: str, tokens: Tokens, proxy: Proxy | None = None, *, security: Security = DEFAULT
) -> AsyncIterator[CheckResult]:
    """Yield a finding for each of `STEPS`; those behind a failed one say that they were not tried."""
    way = _Check(url, tokens, proxy=proxy, security=security)
    steps = (way.look_up, way.connect, way.encrypt, way.shake_hands, way.show_credential, way.compare_clocks)
    failed = ""
    for name, step in zip(STEPS, steps, strict=True):
        finding = skipped(name, f"not tried, since {failed} failed") if failed else await step()
        if finding.verdict is CheckStatus.FAIL and name != "credential":
            failed = name
        yield finding


class _Check:
    """One walk: what a step finds out, the next ones use."""

    def __init__(self, url: str, tokens: Tokens, *, proxy: Proxy | None, security: Security) -> None:
        parts = urlsplit(url)
        self._url, self._tokens = url, tokens
        self._host = parts.hostname or ""
        self._secure = parts.scheme == "wss"
        self._port = parts.port or (443 if self._secure else 80)
        self._proxy, self._security = proxy, security
        self._first = (self._host, self._port) if proxy is None else (proxy.host, proxy.port)
        """What is connected to: the registry's host, or the proxy before it."""
        self._addresses: list[Address] = []
        self._address: Address | None = None
        self._answer = HandshakeResult(None)
        self._answered_at = 0.0

    async def look_up(self) -> CheckResult:
        host, port = self._first
        whose = "the registry's URL" if self._proxy is None else "`proxy`"
        try:
            self._addresses = await resolve(host, port)
        except OSError as error:
            return fail(
                "DNS",
                f"{host} cannot be looked up ({error.strerror or error})",
                f"check the name in {whose}, and /etc/resolv.conf on this machine",
            )
        if _is_address(host):
            return ok("DNS", f"{host} is an address already")
        found = dict.fromkeys(str(address[0]) for _, address in self._addresses)
        return ok("DNS", f"{host} is {', '.join(found)}")

    async def connect(self) -> CheckResult:
        why = ""
        for family, address in self._addresses:
            try:
                opened = await connect_address(family, address)
            except TimeoutError:
                why = why or "no answer; a firewall, or a machine that is down"
            except OSError as error:
                why = os.strerror(error.errno) if error.errno else str(error)
            else:
                opened.close()
                self._address = (family, address)
                behind = "" if self._proxy is None else ", the proxy"
                return ok("TCP", f"connected to {address[0]} port {self._first[1]}{behind}")
        if self._proxy is not None:
            fix = "check `proxy` in the settings, or leave it out where the registry is reached without"
            return fail("TCP", f"the proxy {self._proxy} takes no connections ({why})", fix)
        return fail(
            "TCP",
            f"nothing at {self._host} takes connections on port {self._port} ({why})",
            "start the registry there, have it listen beyond loopback (--node-listen), or open the firewall",
        )

    async def encrypt(self) -> CheckResult:
        if not self._secure:
            return self._unencrypted()
        try:
            context = await context_for(self._url, self._security)
            async with asyncio.timeout(TLS_SECONDS):
                found = await self._certificate(context)
        except TlsFileError as error:
            return _failed("TLS", TlsProblem.of(str(error)))
        except TimeoutError:
            return fail("TLS", f"no TLS handshake within {TLS_SECONDS:g} s", "see what listens on that port")
        except ProxyError as error:
            return fail("TLS", str(error), "check `proxy` in the settings, and what it lets through")
        except (OSError, ValueError) as error:  # an SSLError is one
            return await self._not_encrypted(error)
        return self._of_certificate(found)

    async def shake_hands(self) -> CheckResult:
        self._answer = answer = await self._knocked(None)
        status = None if answer.failure is None else answer.failure.http_status
        if answer.failure is None or status in (_UNAUTHORIZED, _FORBIDDEN):
            return ok("WebSocket", "a registry answers")
        if status == _BUSY:
            wait = answer.failure.retry_after_seconds
            later = "" if wait is None else f"; it asks to come again in {wait:.0f} s"
            return warn(
                "WebSocket",
                f"the registry is starting or full{later}",
                "wait; if it stays so, see the registry's log",
            )
        if answer.trouble is not None:
            return _failed("WebSocket", answer.trouble)
        return fail(
            "WebSocket",
            answer.failure.detail + (f": {_first_line(answer.words)}" if answer.words else ""),
            "name the registry's port for nodes and its path, as in ws://HOST:8080/ws/node, or wss:// where "
            "it is encrypted",
        )

    async def show_credential(self) -> CheckResult:
        if self._answer.failure is None:
            return warn(
                "credential",
                "the registry lets anybody in (auth is off), so no token was tried",
                "keep that to a trusted network, or start the registry with auth on",
            )
        if self._answer.failure.http_status == _BUSY:
            return skipped("credential", "not tried: the registry is starting or full")
        shown = [("node token", self._tokens.node), ("join token", self._tokens.join)]
        kinds = [(kind, token) for kind, token in shown if token is not None]
        if not kinds:
            return fail(
                "credential",
                "the registry asks for a token, and this machine has none",
                f"have its operator make one (`gpu-agent registry token create`), and {_HAND_OVER}",
            )
        refusals: list[str] = []
        for kind, token in kinds:
            answer = await self._knocked(token)
            if answer.failure is None:
                return _let_in(kind, refusals)
            if answer.trouble is not None:
                return _failed("credential", answer.trouble)
            refusals.append(f"the {kind} is refused: {_why(answer.words) or answer.failure.detail}")
        return fail(
            "credential",
            "; ".join(refusals).rstrip("."),
            f"ask the registry's operator for a new join token, and {_HAND_OVER}",
        )

    async def compare_clocks(self) -> CheckResult:
        try:
            theirs = parsedate_to_datetime(self._answer.date or "").timestamp()
        except ValueError:
            return skipped("clock", "the registry's answer carries no time")
        skew = self._answered_at - theirs
        if abs(skew) <= SKEW_SECONDS:
            return ok("clock", f"within {SKEW_SECONDS:g} s of the registry's")
        side = "ahead of" if skew > 0 else "behind"
        return warn(
            "clock",
            f"this machine's clock is {abs(skew):.0f} s {side} the registry's",
            "set it by NTP (`timedatectl set-ntp true`): times in logs and certificates are judged by it",
        )

    async def _knocked(self, token: str | None) -> HandshakeResult:
        answer = await try_handshake(self._url, token, proxy=self._proxy, security=self._security)
        self._answered_at = time.time()
        return answer

    def _of_certificate(self, found: Certificate) -> CheckResult:
        """Tell of a certificate that was taken: how long it lasts, and its pin."""
        whose = "has a key that `tls_pin` names" if self._security.pinned_alone else f"is for {self._host}"
        left_days = (found.ends_at - time.time()) / _DAY_SECONDS
        told = f"the certificate {whose} and ends in {left_days:.0f} days; its pin is {pin_of(found)}"
        if left_days >= EXPIRY_DAYS:
            return ok("TLS", told)
        after = "its date counts for nothing here" if self._security.pinned_alone else "the agent refuses it"
        return warn("TLS", told, f"have it renewed: {after} from then on")

    async def _not_encrypted(self, error: OSError | ValueError) -> CheckResult:
        """Say why no encrypted connection came about, and which key there is where one is not trusted."""
        trouble = explain_tls_error(error, self._host, TERMS)
        seen = ""
        if isinstance(error, ssl.SSLCertVerificationError):
            with contextlib.suppress(OSError, ValueError):
                async with asyncio.timeout(TLS_SECONDS):
                    seen = f"; its pin is {pin_of(await self._certificate(unverified_context()))}"
        return _failed("TLS", replace(trouble, what=f"{trouble.what}{seen}"))

    def _unencrypted(self) -> CheckResult:
        assert self._address is not None  # noqa: S101 - the step before found it
        if not in_the_clear(self._url, self._address[1], self._proxy):
            return skipped("TLS", "ws:// is not encrypted; the connection stays on this machine")
        return warn(
            "TLS",
            "ws:// is not encrypted: who listens on the way would read a token, so the agent sends none there"
            if not self._security.insecure_plaintext
            else "ws:// is not encrypted, and insecure_plaintext lets tokens travel there for all to read",
            "give the registry a certificate and write wss://, or use a tunnel (`docs/security.md`)",
        )

    async def _certificate(self, context: ssl.SSLContext | None) -> Certificate:
        """Shake hands and read whose key it is; raises `OSError`, and `ValueError` where there is none."""
        assert self._address is not None  # noqa: S101 - the step before found it
        opened = await connect_address(*self._address)
        with contextlib.ExitStack() as undo:
            undo.callback(opened.close)
            if self._proxy is not None:
                await tunnel(opened, self._proxy, host=self._host, port=self._port)
            _, writer = await asyncio.open_connection(sock=opened, ssl=context, server_hostname=self._host)
            undo.pop_all()
        der = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
        writer.transport.abort()
        return parse_der(der or b"")


def _failed(check: str, trouble: TlsProblem) -> CheckResult:
    return fail(check, trouble.what, trouble.fix)


def _let_in(kind: str, refusals: list[str]) -> CheckResult:
    if not refusals:
        return ok("credential", f"the {kind} is accepted")
    return warn(
        "credential",
        f"the {kind} is accepted; {'; '.join(refusals).rstrip('.')}",
        "nothing, if this node was forgotten on purpose: it will come back under a new token",
    )


def _first_line(words: str) -> str:
    return words.partition("\n")[0].strip()


def _why(words: str) -> str:
    """What a registry says against a token, without its advice: the doctor has its own."""
    return _first_line(words).partition(": ask ")[0]


def _is_address(host: str) -> bool:
    try:
        ip_address(host)
    except ValueError:
        return False
    return True
