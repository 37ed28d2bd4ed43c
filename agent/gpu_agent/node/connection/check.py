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

from gpu_agent.node.connection.handshake import HandshakeFailure, try_handshake
from gpu_agent.node.connection.tls import (
    DEFAULT,
    TERMS,
    Security,
    context_for,
    is_readable,
    unverified_context,
)
from gpu_agent.runtime.check_results import CheckResult, CheckStatus, fail, ok, skipped, warn
from gpu_agent.runtime.proxy import Address, Proxy, ProxyError, connect_address, resolve, tunnel
from gpu_agent.runtime.tls.certificate import Certificate, parse_der, pin_of
from gpu_agent.runtime.tls.contexts import TlsFileError
from gpu_agent.runtime.tls.errors import TlsProblem, explain_tls_error
from gpu_agent.session.backoff import CREDENTIAL_STEP

TLS_SECONDS = 5.0
EXPIRY_DAYS = 14
"""A certificate that expires sooner is reported."""
SKEW_SECONDS = 5.0
"""Clocks may differ by that: the header has whole seconds, and the answer took a while."""
STEPS = ("DNS", "TCP", "TLS", "WebSocket", "credential", "clock")

_WHERE_TO_PUT_IT = (
    "name its file with --join-token-file; the service's own is /etc/gpu-agent/join-token, which it reads "
    "when it starts (`systemctl restart gpu-agent`)"
)
_DAY_SECONDS = 86400
_UNAUTHORIZED, _FORBIDDEN, _BUSY = 401, 403, 503


@dataclass(frozen=True, slots=True, kw_only=True)
class Tokens:
    """The tokens that the agent could present."""

    node: str | None = field(default=None, repr=False)
    join: str | None = field(default=None, repr=False)
    node_id: str | None = None
    """The id that the agent has stored."""


async def check_connection(
    url: str, tokens: Tokens, proxy: Proxy | None = None, *, security: Security = DEFAULT
) -> AsyncIterator[CheckResult]:
    """Yield a result for each of `STEPS`; steps after a failed one are skipped."""
    check = _Check(url, tokens, proxy=proxy, security=security)
    steps = (
        check.look_up,
        check.connect,
        check.encrypt,
        check.shake_hands,
        check.show_credential,
        check.compare_clocks,
    )
    failed = ""
    for name, step in zip(STEPS, steps, strict=True):
        result = skipped(name, f"not tried, since {failed} failed") if failed else await step()
        if result.verdict is CheckStatus.FAIL and name != "credential":
            failed = name
        yield result


class _Check:
    """One check: each step uses what the steps before it found."""

    def __init__(self, url: str, tokens: Tokens, *, proxy: Proxy | None, security: Security) -> None:
        parts = urlsplit(url)
        self._url, self._tokens = url, tokens
        self._host = parts.hostname or ""
        self._secure = parts.scheme == "wss"
        self._port = parts.port or (443 if self._secure else 80)
        self._proxy, self._security = proxy, security
        self._first = (self._host, self._port) if proxy is None else (proxy.host, proxy.port)
        """Where the TCP connection goes: the registry's host, or the proxy."""
        self._addresses: list[Address] = []
        self._address: Address | None = None
        self._failure: HandshakeFailure | None = None
        self._date: str | None = None
        """The `Date` header of the answer."""
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
        self._failure = failure = await self._try_handshake(None)
        status = None if failure is None else failure.failure.http_status
        if failure is None or status in (_UNAUTHORIZED, _FORBIDDEN):
            return ok("WebSocket", "a registry answers")
        if status == _BUSY:
            wait = failure.failure.retry_after_seconds
            later = "" if wait is None else f"; it asks to try again in {wait:.0f} s"
            return warn(
                "WebSocket",
                f"the registry is starting or full{later}",
                "wait; if it stays so, see the registry's log",
            )
        if failure.tls_problem is not None:
            return _failed("WebSocket", failure.tls_problem)
        return fail(
            "WebSocket",
            failure.failure.detail + (f": {_first_line(failure.text)}" if status and failure.text else ""),
            "name the registry's port for nodes and its path, as in ws://HOST:8080/ws/node, or wss:// where "
            "it is encrypted",
        )

    async def show_credential(self) -> CheckResult:
        if self._failure is None:
            return warn(
                "credential",
                "the registry accepts every node (auth is off), so no token was tried",
                "restrict that to a trusted network, or start the registry with auth on",
            )
        if self._failure.failure.http_status == _BUSY:
            return skipped("credential", "not tried: the registry is starting or full")
        shown = [("node token", self._tokens.node), ("join token", self._tokens.join)]
        kinds = [(kind, token) for kind, token in shown if token is not None]
        if not kinds:
            return fail(
                "credential",
                "the registry asks for a token, and this machine has none",
                f"have its operator make one (`gpu-agent registry token create`), and {_WHERE_TO_PUT_IT}",
            )
        refusals: list[str] = []
        for kind, token in kinds:
            failure = await self._try_handshake(token)
            if failure is None:
                return _accepted(kind, refusals, self._tokens.node_id)
            if failure.tls_problem is not None:
                return _failed("credential", failure.tls_problem)
            refusals.append(f"the {kind} is refused: {_reason(failure.text) or failure.failure.detail}")
        return fail(
            "credential",
            "; ".join(refusals).rstrip("."),
            _credential_step(self._tokens.node_id),
        )

    async def compare_clocks(self) -> CheckResult:
        try:
            theirs = parsedate_to_datetime(self._date or "").timestamp()
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

    async def _try_handshake(self, token: str | None) -> HandshakeFailure | None:
        failure, self._date = await try_handshake(
            self._url, token, proxy=self._proxy, security=self._security
        )
        self._answered_at = time.time()
        return failure

    def _of_certificate(self, found: Certificate) -> CheckResult:
        """The validity of an accepted certificate, and its pin."""
        whose = "has a key that `tls_pin` names" if self._security.pinned_alone else f"is for {self._host}"
        left_days = (found.ends_at - time.time()) / _DAY_SECONDS
        detail = f"the certificate {whose} and ends in {left_days:.0f} days; its pin is {pin_of(found)}"
        if left_days >= EXPIRY_DAYS:
            return ok("TLS", detail)
        after = "its date is not checked here" if self._security.pinned_alone else "the agent refuses it"
        return warn("TLS", detail, f"have it renewed: {after} from then on")

    async def _not_encrypted(self, error: OSError | ValueError) -> CheckResult:
        """Why no encrypted connection came about, with the pin of a key that is not trusted."""
        problem = explain_tls_error(error, self._host, TERMS)
        seen = ""
        if isinstance(error, ssl.SSLCertVerificationError):
            with contextlib.suppress(OSError, ValueError):
                async with asyncio.timeout(TLS_SECONDS):
                    seen = f"; its pin is {pin_of(await self._certificate(unverified_context()))}"
        return _failed("TLS", replace(problem, what=f"{problem.what}{seen}"))

    def _unencrypted(self) -> CheckResult:
        assert self._address is not None  # noqa: S101 - the step before found it
        if not is_readable(self._url, self._address[1], self._proxy):
            return skipped("TLS", "ws:// is not encrypted; the connection stays on this machine")
        return warn(
            "TLS",
            "ws:// is not encrypted: anyone on the network path could read a token, so the agent sends none"
            if not self._security.insecure_plaintext
            else "ws:// is not encrypted, and insecure_plaintext sends tokens there for all to read",
            "give the registry a certificate and write wss://, or use a tunnel (see *Encrypt it* in "
            "the documentation)",
        )

    async def _certificate(self, context: ssl.SSLContext | None) -> Certificate:
        """Shake hands and read the certificate; raises `OSError`, and `ValueError` where there is none."""
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


def _failed(check: str, problem: TlsProblem) -> CheckResult:
    return fail(check, problem.what, problem.fix)


def _credential_step(node_id: str | None) -> str:
    if node_id is None:
        return f"ask the registry's operator for a new join token, and {_WHERE_TO_PUT_IT}"
    return f"{CREDENTIAL_STEP.format(node_id=node_id)}; {_WHERE_TO_PUT_IT}"


def _accepted(kind: str, refusals: list[str], node_id: str | None) -> CheckResult:
    if not refusals:
        return ok("credential", f"the {kind} is accepted")
    return warn(
        "credential",
        f"the {kind} is accepted; {'; '.join(refusals).rstrip('.')}",
        "nothing, if this node was removed on purpose: it joins again; if an operator ended its token, "
        f"{CREDENTIAL_STEP.partition('; for')[0].format(node_id=node_id or 'ID')}",
    )


def _first_line(text: str) -> str:
    return text.partition("\n")[0].strip()


def _reason(text: str) -> str:
    """Why a registry refuses a token, without its advice: the doctor has its own."""
    return _first_line(text).partition(": ask ")[0]


def _is_address(host: str) -> bool:
    try:
        ip_address(host)
    except ValueError:
        return False
    return True
