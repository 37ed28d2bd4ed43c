"""A gateway's link to the leader of another machine, or of its own."""

import asyncio
import hmac
import secrets
import ssl
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any, NamedTuple

from gpu_agent.runtime.logs import Logger
from gpu_agent.runtime.tls.errors import TlsTerms, explain_tls_error
from gpu_agent.server.gateway.gateway import SETTINGS, Gateway
from gpu_agent.server.gateway.instance_links import LINK_VERSION, Instance
from gpu_agent.server.gateway.link import Kind, Link, pack_lag, proof, read_document, unpack_alive

LEADER_SILENT_SECONDS = 5.0
"""A leader sends a frame every second."""
LISTENING_SECONDS = 1.0
_CONNECT_SECONDS = 2.0
_LOOK_SECONDS = 0.2
_NONCE_BYTES = 16

_TLS_TERMS = TlsTerms(
    authority="instance_ca_file", pin=None, own="instance_cert_file", plain="no instance_ca_file"
)

_REFUSES = "see whether it accepts this instance's certificate (instance_cert_file)"
_WANTS_TLS = "see whether it expects TLS, by its instance_ca_file and this instance's"
_LOG = Logger("server.leadership")


class LinkIdentity(NamedTuple):
    """How an instance proves itself to a leader."""

    name: str
    secret: str
    tls: ssl.SSLContext | None


class LeaderLink:
    """One link to one leader."""

    def __init__(
        self,
        gateway: Gateway,
        leader: Instance,
        *,
        own: LinkIdentity,
        revision: Callable[[], int],
        leader_clock: Callable[[float], None],
    ) -> None:
        """`revision` returns the revision that this instance's copy of etcd has reached.

        `leader_clock` is called with the leader's wall clock every second.
        """
        self._leader_clock = leader_clock
        self.is_linked = False
        """Whether the leader has accepted this gateway."""
        self.is_awaited = False
        """Whether the leader accepted the connection and said nothing in time: it may load its fleet."""
        self.problem = ""
        """Why the link ended, or never stood."""
        self._gateway, self._leader, self._nonce = gateway, leader, secrets.token_hex(_NONCE_BYTES)
        self._name, self._secret, self._tls = own
        self._link = Link(self._received, self._lost, on_drained=gateway.go_on_reading)
        self._ended = asyncio.Event()
        self._heard_at = time.monotonic()
        self._has_heard = False
        """Whether the leader has said anything."""
        self._is_proven = False
        """Whether the leader has the instances' secret."""
        self._revision = revision
        self._awaited: list[tuple[int, float]] = []
        """Revisions that the leader named and the copy has not reached, and when each was named: the first,
        the last, and some between."""

    @property
    def silent_seconds(self) -> float:
        """Seconds since the leader's last frame."""
        return time.monotonic() - self._heard_at

    @property
    def lag_seconds(self) -> float:
        """Seconds by which this instance's copy is behind the commits that the leader has named."""
        while self._awaited and self._awaited[0][0] <= self._revision():
            del self._awaited[0]
        return time.monotonic() - self._awaited[0][1] if self._awaited else 0.0

    async def hold(self, is_current: Callable[[], bool]) -> bool:
        """Hold a link until it ends or the leader leads no more; returns whether the leader accepted it."""
        at = self._leader.link
        try:
            async with asyncio.timeout(_CONNECT_SECONDS):
                await asyncio.get_running_loop().create_connection(
                    lambda: self._link,
                    at.bound_host,
                    at.port,
                    ssl=self._tls,
                    server_hostname=None if self._tls is None else at.host,
                )
        except TimeoutError:
            self.problem = "no answer in time"
            self.is_awaited = self._tls is not None and await is_listening(at.bound_host, at.port)
            return False
        except OSError as error:
            self.problem = _words(error, at.host)
            return False
        versions = {"version": LINK_VERSION, "oldest_version": LINK_VERSION - 1}
        self._link.send_document(Kind.HELLO, 0, {"name": self._name, "nonce": self._nonce, **versions})
        was_linked = False
        while not self._ended.is_set():
            was_linked |= self.is_linked
            if not is_current():
                self._link.end("another instance leads")
            elif self.silent_seconds > LEADER_SILENT_SECONDS:
                self.is_awaited = True
                self._link.end(f"the leader has said nothing for {LEADER_SILENT_SECONDS:g} s")
            try:
                async with asyncio.timeout(_LOOK_SECONDS):
                    await self._ended.wait()
            except TimeoutError:
                pass
        return was_linked

    def _received(self, kind: Kind, number: int, payload: memoryview) -> None:
        self._heard_at, self._has_heard = time.monotonic(), True
        if self.is_linked and self._gateway.received(kind, number, payload):
            return
        if kind is Kind.CHALLENGE:
            self._prove(read_document(payload))
        elif kind is Kind.SETTINGS and self._is_proven:
            self._gateway.judge_by(SETTINGS.validate_json(bytes(payload)).thresholds)
            self.is_linked = True
            self._gateway.attach(self._link)
            _LOG.info("leader_linked", leader=self._leader.name, nodes=self._gateway.connections.size)
        elif kind is Kind.ALIVE:
            wall_time, revision = unpack_alive(payload)
            self._leader_clock(wall_time)
            if revision > (self._awaited[-1][0] if self._awaited else self._revision()):
                self._await(revision)
            self._link.send(Kind.LAG, 0, pack_lag(round(self.lag_seconds, 3)))
        elif kind is Kind.PROBLEM:
            self.problem = str(payload, "utf-8")

    def _await(self, revision: int) -> None:
        """Note a revision; drop the one before where the lag stays exact to 0.1 s without it."""
        awaited, at = self._awaited, self._heard_at
        if len(awaited) > 1 and at - awaited[-2][1] < (at - awaited[0][1]) / 10:
            del awaited[-1]
        awaited.append((revision, at))

    def _prove(self, challenge: dict[str, Any]) -> None:
        """Verify the leader's proof, and send this instance's own."""
        expected = proof(self._secret, "leader", self._name, self._nonce)
        if not hmac.compare_digest(str(challenge["proof"]), expected):
            self._link.end("it does not have the instances' secret, or not yet")
            return
        self._is_proven = True
        shown = proof(self._secret, "gateway", self._name, str(challenge["nonce"]))
        self._link.send_document(Kind.PROOF, 0, {"proof": shown})

    def _lost(self, problem: str) -> None:
        self.problem = self.problem or problem
        if not self._has_heard and not self.is_awaited:
            self.problem += f": {_WANTS_TLS if self._tls is None else _REFUSES}"
        self._ended.set()
        if self.is_linked:
            self.is_linked = False
            self._gateway.detach()
            _LOG.warning("leader_lost", leader=self._leader.name, problem=self.problem)


async def is_listening(host: str | None, port: int | None) -> bool:
    """Whether a connection is accepted there."""
    with suppress(OSError, TimeoutError):
        async with asyncio.timeout(LISTENING_SECONDS):
            _, writer = await asyncio.open_connection(host, port)
        writer.close()
        return True
    return False


def _words(error: OSError, host: str) -> str:
    if isinstance(error, ssl.SSLError):
        return str(explain_tls_error(error, host, _TLS_TERMS))
    return error.strerror or str(error)
