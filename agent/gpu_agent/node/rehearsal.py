"""The way to the registry, tried step by step as a link would go it, up to the handshake and no further.

Each step has a deadline, and names what to mend where it ends. It registers nothing, spends no join
token, and shows none: it says which kind was let in.
"""

import asyncio
import contextlib
import os
import ssl
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from ipaddress import ip_address
from urllib.parse import urlsplit

from gpu_agent.node.link import Answer, knock
from gpu_agent.node.proxy import Proxy, ProxyError, tunnel
from gpu_agent.node.reaching import Address, addresses, connected
from gpu_agent.runtime.findings import Finding, Verdict, fail, ok, skipped, warn

TLS_SECONDS = 5.0
EXPIRY_DAYS = 14
"""A certificate that ends sooner is told of."""
SKEW_SECONDS = 5.0
"""Clocks may differ by that: the header is whole seconds, and the answer took its time."""
STEPS = ("DNS", "TCP", "TLS", "WebSocket", "credential", "clock")

_DAY_SECONDS = 86400
_UNAUTHORIZED, _FORBIDDEN, _BUSY = 401, 403, 503
_EXPIRED, _NOT_YET, _OTHER_NAME, _OTHER_ADDRESS = 10, 9, 62, 64
"""OpenSSL's numbers for what is wrong with a certificate."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tokens:
    """What the agent could present."""

    node: str | None = field(default=None, repr=False)
    join: str | None = field(default=None, repr=False)


async def rehearse(url: str, tokens: Tokens, proxy: Proxy | None = None) -> AsyncIterator[Finding]:
    """Yield a finding for each of `STEPS`; those behind a failed one say that they were not tried."""
    way = _Way(url, tokens, proxy)
    steps = (way.look_up, way.connect, way.encrypt, way.shake_hands, way.show_credential, way.compare_clocks)
    failed = ""
    for name, step in zip(STEPS, steps, strict=True):
        finding = skipped(name, f"not tried, since {failed} failed") if failed else await step()
        if finding.verdict is Verdict.FAIL and name != "credential":
            failed = name
        yield finding


class _Way:
    """One walk: what a step finds out, the next ones use."""

    def __init__(self, url: str, tokens: Tokens, proxy: Proxy | None) -> None:
        parts = urlsplit(url)
        self._url, self._tokens = url, tokens
        self._host = parts.hostname or ""
        self._secure = parts.scheme == "wss"
        self._port = parts.port or (443 if self._secure else 80)
        self._proxy = proxy
        self._first = (self._host, self._port) if proxy is None else (proxy.host, proxy.port)
        """What is connected to: the registry's host, or the proxy before it."""
        self._addresses: list[Address] = []
        self._address: Address | None = None
        self._answer = Answer(None)
        self._answered_at = 0.0

    async def look_up(self) -> Finding:
        host, port = self._first
        whose = "the registry's URL" if self._proxy is None else "`proxy`"
        try:
            self._addresses = await addresses(host, port)
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

    async def connect(self) -> Finding:
        why = ""
        for family, address in self._addresses:
            try:
                opened = await connected(family, address)
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
            mend = "check `proxy` in the settings, or leave it out where the registry is reached without"
            return fail("TCP", f"the proxy {self._proxy} takes no connections ({why})", mend)
        return fail(
            "TCP",
            f"nothing at {self._host} takes connections on port {self._port} ({why})",
            "start the registry there, have it listen beyond loopback (--node-listen), or open the firewall",
        )

    async def encrypt(self) -> Finding:
        if not self._secure:
            return self._unencrypted()
        try:
            async with asyncio.timeout(TLS_SECONDS):
                ends_at = await self._certificate_end()
        except ssl.SSLCertVerificationError as error:
            return _untrusted(error, self._host)
        except TimeoutError:
            return fail("TLS", f"no TLS handshake within {TLS_SECONDS:g} s", "see what listens on that port")
        except OSError as error:  # an SSLError is one
            return _no_tls(error)
        left_days = (ends_at - time.time()) / _DAY_SECONDS
        if left_days < EXPIRY_DAYS:
            return warn(
                "TLS",
                f"the certificate for {self._host} ends in {left_days:.0f} days",
                "have it renewed: the agent refuses it from then on",
            )
        return ok("TLS", f"the certificate is for {self._host} and ends in {left_days:.0f} days")

    async def shake_hands(self) -> Finding:
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
        return fail(
            "WebSocket",
            answer.failure.detail + (f": {_first_line(answer.words)}" if answer.words else ""),
            "name the registry's port for nodes and its path, as in ws://HOST:8080/ws/node, or wss:// where "
            "it is encrypted",
        )

    async def show_credential(self) -> Finding:
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
                "have its operator make one (`gpu-agent registry token create`), and name its file with "
                "--join-token-file",
            )
        refusals: list[str] = []
        for kind, token in kinds:
            answer = await self._knocked(token)
            if answer.failure is None:
                return _let_in(kind, refusals)
            refusals.append(f"the {kind} is refused: {_first_line(answer.words) or answer.failure.detail}")
        return fail(
            "credential",
            "; ".join(refusals).rstrip("."),
            "ask the registry's operator for a new join token, and name its file with --join-token-file",
        )

    async def compare_clocks(self) -> Finding:
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

    async def _knocked(self, token: str | None) -> Answer:
        answer = await knock(self._url, token, proxy=self._proxy)
        self._answered_at = time.time()
        return answer

    def _unencrypted(self) -> Finding:
        if self._address is not None and _is_loopback(str(self._address[1][0])):
            return skipped("TLS", "ws:// is not encrypted; the connection stays on this machine")
        return warn(
            "TLS",
            "ws:// is not encrypted: who listens on the way reads the tokens",
            "use a network that you trust or a tunnel, or put TLS before the registry and write wss://",
        )

    async def _certificate_end(self) -> float:
        """Raises `OSError`."""
        assert self._address is not None  # noqa: S101 - the step before found it
        opened = await connected(*self._address)
        context = ssl.create_default_context()
        with contextlib.ExitStack() as undo:
            undo.callback(opened.close)
            if self._proxy is not None:
                await tunnel(opened, self._proxy, host=self._host, port=self._port)
            _, writer = await asyncio.open_connection(sock=opened, ssl=context, server_hostname=self._host)
            undo.pop_all()
        certificate = writer.get_extra_info("peercert") or {}
        writer.transport.abort()
        return float(ssl.cert_time_to_seconds(certificate["notAfter"]))


def _let_in(kind: str, refusals: list[str]) -> Finding:
    if not refusals:
        return ok("credential", f"the {kind} is accepted")
    return warn(
        "credential",
        f"the {kind} is accepted; {'; '.join(refusals).rstrip('.')}",
        "nothing, if this node was forgotten on purpose: it will come back under a new token",
    )


def _untrusted(error: ssl.SSLCertVerificationError, host: str) -> Finding:
    match error.verify_code:
        case code if code in (_OTHER_NAME, _OTHER_ADDRESS):
            mend = "name the registry as its certificate does, or have one issued for this name"
            return fail("TLS", f"the certificate is not for {host} ({error.verify_message})", mend)
        case code if code == _EXPIRED:
            mend = "have it renewed; and see that this machine's clock is right"
            return fail("TLS", "the certificate has expired", mend)
        case code if code == _NOT_YET:
            mend = "see that this machine's clock is right"
            return fail("TLS", "the certificate is not valid yet", mend)
        case _:
            mend = "install the authority that issued it on this machine, or name its file in SSL_CERT_FILE"
            return fail("TLS", f"the certificate is not trusted ({error.verify_message})", mend)


def _no_tls(error: OSError) -> Finding:
    if isinstance(error, ProxyError):
        return fail("TLS", str(error), "check `proxy` in the settings, and what it lets through")
    return fail(
        "TLS",
        f"what listens there speaks no TLS ({_of_ssl(error)})",
        "write ws:// in the registry's URL if it is not encrypted, or name the port that is",
    )


def _of_ssl(error: OSError) -> str:
    reason = getattr(error, "reason", None)
    return str(reason or error.strerror or error).replace("_", " ").lower()


def _first_line(words: str) -> str:
    return words.partition("\n")[0].strip()


def _is_address(host: str) -> bool:
    try:
        ip_address(host)
    except ValueError:
        return False
    return True


def _is_loopback(address: str) -> bool:
    return _is_address(address) and ip_address(address).is_loopback
