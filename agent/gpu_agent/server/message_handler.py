"""Turns frames into the fleet's events, and answers frames that are malformed or too many.

A malformed frame is answered with its errors by JSON path; the connection stays open until too many come in a
row. Besides heartbeats a connection may send a limited number of messages: one beyond the limit is ignored
and answered with `RATE_LIMITED`, and a peer that goes on is disconnected. Decides nothing about nodes.
"""

import secrets
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Protocol, assert_never

from gpu_agent.registry.declaration import schema_not_supported
from gpu_agent.registry.events import (
    Amounts,
    ConnectionLost,
    Event,
    FaultReported,
    FiguresFetched,
    HeartbeatReceived,
    HeartbeatRepeated,
    RegistrationReceived,
    SessionReported,
    UnregistrationReceived,
)
from gpu_agent.registry.tokens import Credential
from gpu_agent.server.limits import TokenBucket
from gpu_agent.server.tokens import generate_node_token
from gpu_agent.wire.codec import FrameError, UnsupportedSchemaError, decode_from_node
from gpu_agent.wire.codes import CloseCode, ErrorCode
from gpu_agent.wire.heartbeat import Heartbeat
from gpu_agent.wire.messages import NodeError, NodeHeartbeat, NodeRegister, NodeUnregister

read_ordinary_heartbeat: Callable[[bytes, str | None], Heartbeat | None]
try:
    from gpu_agent.server.heartbeat_reader import read_heartbeat as read_ordinary_heartbeat
except ModuleNotFoundError as missing:
    if missing.name != "msgspec":
        raise

    def read_ordinary_heartbeat(
        frame: bytes,  # noqa: ARG001 - the reader's signature
        node_id: str | None,  # noqa: ARG001
    ) -> Heartbeat | None:
        """Leave every frame to `wire.codec`: the extra `registry` is not installed."""
        return None


MALFORMED_IN_A_ROW = 20
"""A peer that sends this many unreadable frames without a readable one is disconnected."""

REFUSED_IN_A_ROW = 20
"""A peer that goes on after this many `RATE_LIMITED` in a row is disconnected."""

HEARTBEATS_PER_MEASUREMENT = 16
"""A connection's round trip is measured when it registers, and at every 16th heartbeat."""

_NODE_ID_BYTES = 4


_heartbeat_received = partial(tuple.__new__, HeartbeatReceived)
"""As the class itself does, without a call in Python."""


class Peer(Protocol):
    """A node's connection, in this process or at a gateway."""

    number: int
    node_id: str | None
    credential: Credential | None
    address: str
    quota: TokenBucket
    """How many messages other than heartbeats it may send."""
    is_inherited: bool
    """Whether an earlier leader accepted it."""
    heartbeats: int
    malformed_in_a_row: int
    refused_in_a_row: int

    @property
    def round_trip_seconds(self) -> float | None:
        """The network's round trip; None where it is unknown."""

    def fail(self, code: int, reason: str) -> None:
        """End it, since its peer broke a rule."""

    def log_violation(self, event: str, *, kind: object = None, **fields: object) -> None:
        """Log a violation of its peer."""


class MessageHandler:
    """Turns the frames of all connections into the fleet's events.

    With auth on every registration event carries a token generated for it; the fleet decides whether it is
    issued.
    """

    def __init__(
        self,
        handle: Callable[[Event], None],
        *,
        send: Callable[[int, NodeError], None],
        auth_on: bool,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self.heartbeats = 0
        """Heartbeats received since the start."""
        self._handle = handle
        self._send = send
        self._auth_on = auth_on
        self._now = monotonic

    def frame_arrived(self, connection: Peer, payload: bytes) -> None:
        """Read one frame; the hottest path of the registry."""
        heartbeat = read_ordinary_heartbeat(payload, connection.node_id)
        if heartbeat is None:
            self._read(connection, payload)
        else:
            self._handle_heartbeat(connection, heartbeat)

    def held_message_arrived(self, connection: Peer, frames: Sequence[bytes], *, age_seconds: float) -> None:
        """Read a message that a gateway held: an earlier leader may not have heard it, or not stored it.

        Of heartbeats it is the newest, with the parts that those behind it replaced last.
        """
        try:
            message = _message_in(frames[0])
        except FrameError:
            self._read(connection, frames[0])
            return
        if not isinstance(message, Heartbeat):
            self._handle(self._event(connection, message, frame_bytes=len(frames[0])))
            return
        for frame in frames[1:]:
            earlier = _message_in(frame)
            if isinstance(earlier, Heartbeat):
                message = message.with_parts_of(earlier)
        self._handle(HeartbeatReceived(connection.number, message, age_seconds=age_seconds))

    def connection_lost(self, connection: Peer, *, link_ended: bool = False) -> None:
        """Report to the fleet that a connection is closed, or that its gateway is not reached any more."""
        self._handle(ConnectionLost(connection.number, link_ended=link_ended))

    def _read(self, connection: Peer, payload: bytes) -> None:
        """Read any frame."""
        try:
            message = decode_from_node(payload)
        except FrameError as error:
            if _is_text(payload):
                self._refuse(connection, error)
            else:  # only here, since every readable frame is text
                connection.fail(CloseCode.INVALID_PAYLOAD, "a text frame that is no UTF-8")
            return
        if isinstance(message, NodeHeartbeat):
            self._handle_heartbeat(connection, Heartbeat.of(message))
            return
        connection.malformed_in_a_row = 0
        if self._within_quota(connection):
            self._handle(self._event(connection, message, frame_bytes=len(payload)))

    def _handle_heartbeat(self, connection: Peer, message: Heartbeat) -> None:
        connection.malformed_in_a_row = 0
        self.heartbeats += 1
        if message.node_id != connection.node_id:
            connection.log_violation("foreign_heartbeat", heartbeat_of=message.node_id)
        heartbeats = connection.heartbeats = connection.heartbeats + 1
        measured = None if heartbeats % HEARTBEATS_PER_MEASUREMENT else connection.round_trip_seconds
        self._handle(_heartbeat_received((connection.number, message, measured, 0.0)))

    def heartbeats_repeated(
        self,
        connection: Peer,
        count: int,
        *,
        age_seconds: float,
        probe_age_seconds: float | None,
        amounts: Amounts | None = None,
    ) -> None:
        """Count heartbeats that say what the last one said, amounts apart; the last came so long ago."""
        self.heartbeats += count
        connection.heartbeats += count
        connection.malformed_in_a_row = 0
        for _ in range(count - 1):
            self._handle(HeartbeatRepeated(connection.number, age_seconds, probe_age_seconds))
        self._handle(HeartbeatRepeated(connection.number, age_seconds, probe_age_seconds, amounts))

    def figures_fetched(self, connection: Peer, payload: bytes) -> None:
        """Read a heartbeat that was counted before, for its figures."""
        heartbeat = read_ordinary_heartbeat(payload, connection.node_id)
        if heartbeat is None:
            message = decode_from_node(payload)
            heartbeat = Heartbeat.of(message) if isinstance(message, NodeHeartbeat) else None
        if heartbeat is not None:
            self._handle(FiguresFetched(connection.number, heartbeat))

    def session_reported(
        self, connection: Peer, *, epoch: int, age_seconds: float | None, is_complete: bool
    ) -> None:
        """Report to the fleet a session that began under an earlier leader."""
        if connection.node_id is not None:
            self._handle(
                SessionReported(
                    connection=connection.number,
                    node_id=connection.node_id,
                    session_epoch=epoch,
                    credential=connection.credential,
                    address=connection.address,
                    heartbeat_age_seconds=age_seconds,
                    is_complete=is_complete,
                )
            )

    def _event(
        self,
        connection: Peer,
        message: NodeRegister | NodeUnregister | NodeError,
        *,
        frame_bytes: int,
    ) -> Event:
        match message:
            case NodeRegister():
                return RegistrationReceived(
                    connection.number,
                    message,
                    fresh_id=message.node_id or _generate_node_id(),
                    credential=connection.credential,
                    address=connection.address,
                    fresh_token=generate_node_token() if self._auth_on else None,
                    round_trip_seconds=connection.round_trip_seconds,
                    frame_bytes=frame_bytes,
                    is_inherited=connection.is_inherited,
                )
            case NodeUnregister():
                return UnregistrationReceived(connection.number, message)
            case NodeError():
                return FaultReported(connection.number, message)
            case _ as unreachable:
                assert_never(unreachable)

    def _within_quota(self, connection: Peer) -> bool:
        """Whether the connection may send this message; one beyond its quota gets `RATE_LIMITED`."""
        now = self._now()
        if connection.quota.consume(now):
            connection.refused_in_a_row = 0
            return True
        connection.refused_in_a_row += 1
        connection.log_violation("rate_limited")
        seconds = round(connection.quota.refill_seconds(now), 3)
        self._send(connection.number, _rate_limited(connection, retry_after_seconds=seconds))
        if connection.refused_in_a_row >= REFUSED_IN_A_ROW:
            connection.fail(CloseCode.POLICY_VIOLATION, "too many messages in spite of RATE_LIMITED")
        return False

    def _refuse(self, connection: Peer, error: FrameError) -> None:
        if not self._within_quota(connection):
            return
        connection.malformed_in_a_row += 1
        refusal = _refusal(connection, error)
        problems = [f"{one.path}: {one.problem}" for one in error.errors]
        event = "node_register_refused" if error.is_registration else "frame_malformed"
        connection.log_violation(event, kind=refusal.code, code=refusal.code, problems=problems)
        self._send(connection.number, refusal)
        if connection.malformed_in_a_row >= MALFORMED_IN_A_ROW:
            connection.fail(CloseCode.POLICY_VIOLATION, f"{MALFORMED_IN_A_ROW} unreadable frames in a row")


def _message_in(frame: bytes) -> Heartbeat | NodeRegister | NodeUnregister | NodeError:
    """Read a frame; raises `FrameError`."""
    heartbeat = read_ordinary_heartbeat(frame, None)
    if heartbeat is not None:
        return heartbeat
    message = decode_from_node(frame)
    return Heartbeat.of(message) if isinstance(message, NodeHeartbeat) else message


def _is_text(payload: bytes) -> bool:
    try:
        payload.decode()
    except UnicodeDecodeError:
        return False
    return True


def _rate_limited(connection: Peer, *, retry_after_seconds: float) -> NodeError:
    return NodeError(
        node_id=connection.node_id,
        code=ErrorCode.RATE_LIMITED,
        message="too many messages besides heartbeats: this one was ignored, slow down",
        retry_after_seconds=retry_after_seconds,
    )


def _refusal(connection: Peer, error: FrameError) -> NodeError:
    if isinstance(error, UnsupportedSchemaError):
        return schema_not_supported(error.version, node_id=connection.node_id)
    return NodeError(
        node_id=connection.node_id,
        code=ErrorCode.INVALID_MESSAGE,
        message=f"this frame cannot be read: {error}; correct it, see *The node protocol* in the "
        "documentation",
        details=error.details(),
    )


def _generate_node_id() -> str:
    """Return `node-` and 8 hex digits, upper case (§3.1)."""
    return f"node-{secrets.token_hex(_NODE_ID_BYTES).upper()}"
