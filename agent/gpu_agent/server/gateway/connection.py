"""The node connections that gateways hold, as the leader knows them."""

import asyncio
import itertools
from collections.abc import Mapping

from gpu_agent.registry.tokens import Credential
from gpu_agent.runtime.address import Address
from gpu_agent.server.gateway.link import Kind, Link
from gpu_agent.server.limits import Limits, TokenBucket
from gpu_agent.server.log_limit import LogLimit, origin_of

TERM_SHIFT = 32
"""The numbers that a leader assigns to connections have its term above this many bits."""
FETCH_SECONDS = 1.0
"""The longest wait for a node's exact figures, in seconds."""


class GatewayConnection:
    """One node connection that a gateway holds, as the leader knows it."""

    __slots__ = (
        "_fetched",
        "_link",
        "_log_limit",
        "address",
        "credential",
        "heartbeats",
        "is_exact",
        "is_inherited",
        "local",
        "malformed_in_a_row",
        "node_id",
        "number",
        "origin",
        "quota",
        "refused_in_a_row",
        "round_trip_seconds",
    )

    def __init__(
        self, local: int, *, number: int, link: Link, log_limit: LogLimit, address: str, quota: TokenBucket
    ) -> None:
        self.number = number
        self.local = local
        """Its number at the gateway."""
        self._link, self._log_limit = link, log_limit
        self.address = address
        self.origin = origin_of(Address.parse(address).host) if address else ""
        self.node_id: str | None = None
        self.credential: Credential | None = None
        self.quota = quota
        self.malformed_in_a_row = self.refused_in_a_row = self.heartbeats = 0
        self.round_trip_seconds: float | None = None
        self.is_inherited = False
        """Whether an earlier leader accepted it."""
        self.is_exact = False
        """Whether the gateway forwards every change of memory."""
        self._fetched: asyncio.Future[None] | None = None

    def send(self, kind: Kind, payload: bytes = b"") -> None:
        """Send the gateway a frame about it."""
        self._link.send(kind, self.local, payload)

    def send_document(self, kind: Kind, document: Mapping[str, object]) -> None:
        """Send the gateway a frame about it whose payload is JSON."""
        self._link.send_document(kind, self.local, document)

    def end(self, kind: Kind, code: int, reason: str) -> None:
        """Have the gateway end it."""
        self.send_document(kind, {"code": code, "reason": reason})

    def set_exact(self, *, exact: bool) -> None:
        """Have the gateway forward every change of memory, or only those between the steps of dispatch."""
        if exact is not self.is_exact:
            self.is_exact = exact
            self.send(Kind.EXACT, bytes([exact]))

    def fetch_figures(self) -> asyncio.Future[None]:
        """Ask for the newest heartbeat; the future is done once it has come, or the connection is closed."""
        if self._fetched is None:
            self._fetched = asyncio.get_running_loop().create_future()
            self.send(Kind.FIGURES)
        return self._fetched

    def figures_fetched(self) -> None:
        """Note that the newest heartbeat has come, or never will."""
        fetched, self._fetched = self._fetched, None
        if fetched is not None and not fetched.done():
            fetched.set_result(None)

    def fail(self, code: int, reason: str) -> None:
        """End it because its peer broke a rule; its gateway logs that."""
        self.end(Kind.FAIL, code, reason)

    def log_violation(self, event: str, *, kind: object = None, **fields: object) -> None:
        """Log a violation of this peer, with its node id and address."""
        self._log_limit.violation(
            event, self.origin, kind=kind, node_id=self.node_id, address=self.address, **fields
        )


class GatewayConnections:
    """The node connections that all gateways hold, by number."""

    def __init__(self, limits: Limits, *, term: int = 0) -> None:
        self.limits = limits
        self.log_limit = LogLimit()
        self._numbers = itertools.count((term << TERM_SHIFT) + 1)
        self._by_number: dict[int, GatewayConnection] = {}

    @property
    def size(self) -> int:
        """How many are open."""
        return len(self._by_number)

    def next_number(self) -> int:
        """Assign the number of the next one."""
        return next(self._numbers)

    def add(self, connection: GatewayConnection) -> None:
        """Add a connection whose handshake is accepted."""
        self._by_number[connection.number] = connection

    def remove(self, connection: GatewayConnection) -> None:
        """Remove a connection that is closed."""
        del self._by_number[connection.number]
        connection.figures_fetched()

    async def fetch_figures(self, number: int) -> None:
        """Wait a short time for the newest figures of a node; the known ones hold until then."""
        if (connection := self._by_number.get(number)) is not None:
            await asyncio.wait([connection.fetch_figures()], timeout=FETCH_SECONDS)

    def send(self, number: int, text: str, *, is_refusal: bool = False) -> None:
        """Send a text frame; a connection that is gone is ignored."""
        if (connection := self._by_number.get(number)) is not None:
            connection.send(Kind.REFUSAL if is_refusal else Kind.SEND, text.encode())

    def identify(self, number: int, node_id: str, *, session_epoch: int | None) -> None:
        """Note that a node registered on a connection, which may stay open therefore."""
        if (connection := self._by_number.get(number)) is not None:
            connection.node_id = node_id
            connection.send_document(Kind.REGISTERED, {"node_id": node_id, "session_epoch": session_epoch})

    def close(self, number: int, code: int, reason: str) -> None:
        """Send a close frame on a connection."""
        if (connection := self._by_number.get(number)) is not None:
            connection.end(Kind.CLOSE, code, reason)
