"""The link between the leader and one gateway: frames on a socket, in order, in both directions.

A frame is its length, its kind, the number of a node connection at the gateway, and a payload. What is
written in one turn of the loop leaves in one system call. A side that reads nothing for `BACKLOG_SECONDS`, or
lets `MOST_BACKLOG_BYTES` wait, loses the link: no frame is ever dropped alone.
"""

import asyncio
import hmac
import json
import ssl
from collections.abc import Callable, Iterator, Mapping, Sequence
from enum import IntEnum
from functools import cache
from math import isnan, nan
from struct import Struct
from typing import Any, NamedTuple

from gpu_agent.registry.events import Amounts
from gpu_agent.runtime.tls.errors import openssl_reason

BACKLOG_SECONDS = 10.0
"""How long the other side may read nothing while frames wait for it."""

MOST_BACKLOG_BYTES = 64 * 1024 * 1024

_HEAD = Struct("!IBQ")
_KIND_BYTES = _HEAD.size - 4
"""The bytes of the head that the length includes."""
_READ_BYTES = 64 * 1024
HIGH_WATER_BYTES = 1024 * 1024
"""A gateway reads no more of nodes while more than this waits for the leader."""
_ROW = Struct("!QHff")
_LOAD = Struct("!4dh")
_NO_GPUS = -1
_SECONDS = Struct("!d")
_ALIVE = Struct("!dQ")
_LENGTH = Struct("!I")


class Kind(IntEnum):
    """The kind of a frame. The first ones go to the gateway, those from `LISTENING` on to the leader."""

    SETTINGS = 1
    """JSON: the gateway's address, limits and thresholds. The first frame."""
    ADMIT = 2
    """Accept node connections from now on."""
    ACCEPT = 3
    """Of a handshake; JSON: number, credential. The gateway shows them to the next leader."""
    REFUSE = 4
    """Of a handshake; JSON: status, sentence, retry_after_seconds."""
    SEND = 5
    """A text frame for the node."""
    REFUSAL = 12
    """As SEND: a refusal, so that the node's next heartbeat is forwarded whole."""
    REGISTERED = 6
    """JSON: node_id, session_epoch of the node that has registered."""
    CLOSE = 7
    """JSON: code, reason."""
    FAIL = 8
    """As CLOSE, for a peer that broke a rule: its later messages are ignored."""
    EXACT = 9
    """One byte, whether every change of this node's figures matters."""
    FIGURES = 10
    """Send the newest heartbeat of this node, as NEWEST."""
    RELOAD = 11
    """Read the certificate's files again, and JSON: log_level."""
    ALIVE = 13
    """The leader's wall clock and the revision of its last commit: sent every second by the leader of several
    machines."""

    CHALLENGE = 14
    """JSON: nonce, and the proof that the leader has the instances' secret. The answer to HELLO."""

    LISTENING = 64
    """The port is open, and all connections are reported."""
    HANDSHAKE = 65
    """JSON: address, token_digest, origins, host."""
    FRAME = 66
    """The round trip in seconds (NaN where unknown), then a frame of the node as it came."""
    ROWS = 67
    """Heartbeats without news: see `pack_rows`. Sent every second, even if there are none."""
    AMOUNTS = 76
    """Heartbeats of which only amounts are news: see `pack_amounts`. Sent behind ROWS where there are any."""
    NEWEST = 68
    """The answer to FIGURES: a heartbeat that was counted already; empty where there is none."""
    LOST = 69
    """A node connection is closed."""
    PROBLEM = 70
    """Why the gateway ends, as text."""
    HELLO = 71
    """JSON: name of who links, version, nonce. The first frame of an instance."""
    SESSION = 72
    """JSON: a connection that an earlier leader accepted, and who registered on it; before LISTENING."""
    PROOF = 74
    """JSON: the proof that who links has the instances' secret. The answer to CHALLENGE."""
    HELD = 73
    """Behind a SESSION: an age in seconds, then one message of the node that an earlier leader may not have
    heard, or not stored; of heartbeats the newest, and those before it that replaced other parts."""
    LAG = 75
    """The answer to ALIVE: how many seconds this instance's copy of etcd is behind the leader's commits."""


_KINDS: dict[int, Kind] = {kind.value: kind for kind in Kind}


class Link(asyncio.BufferedProtocol):
    """One end of a link."""

    def __init__(
        self,
        on_frame: Callable[[Kind, int, memoryview], None],
        on_lost: Callable[[str], None],
        *,
        on_drained: Callable[[], None] = lambda: None,
        on_made: Callable[[], None] = lambda: None,
        most_bytes: int = MOST_BACKLOG_BYTES,
    ) -> None:
        """`on_lost` receives why the link has ended; `on_drained` is called when `is_backed_up` ends.

        A frame of more than `most_bytes` ends the link; after `hand_over` it may be as long as any.
        """
        self._on_frame, self._on_lost, self._on_drained = on_frame, on_lost, on_drained
        self._on_made, self._most_bytes = on_made, most_bytes
        self._buffer = bytearray(_READ_BYTES)
        self._filled = 0
        self._outgoing: list[bytes] = []
        self._backlog: asyncio.TimerHandle | None = None
        self._written_bytes = 0
        self._problem = "the other side has closed it"
        self._is_made = False
        """Whether the connection stands, TLS included."""
        self._transport: asyncio.Transport

    def hand_over(
        self, on_frame: Callable[[Kind, int, memoryview], None], on_lost: Callable[[str], None]
    ) -> None:
        """Call these from now on."""
        self._on_frame, self._on_lost, self._most_bytes = on_frame, on_lost, MOST_BACKLOG_BYTES

    @property
    def is_backed_up(self) -> bool:
        """Whether too many bytes wait for the other side."""
        return self._backlog is not None

    def send(self, kind: Kind, connection: int = 0, payload: bytes = b"") -> None:
        """Send a frame; on a link that has ended it is dropped, with all else of its connections."""
        if not self._outgoing:
            asyncio.get_running_loop().call_soon(self._flush)
        self._outgoing.append(_HEAD.pack(_KIND_BYTES + len(payload), kind, connection))
        self._outgoing.append(payload)

    def send_document(self, kind: Kind, connection: int, document: Mapping[str, Any]) -> None:
        """Send a frame whose payload is JSON."""
        self.send(kind, connection, json.dumps(document).encode())

    def end(self, problem: str) -> None:
        """End the link now, for this reason."""
        self._problem = problem
        if self._is_made:
            self._transport.abort()

    def close(self) -> None:
        """End the link once all is sent."""
        if self._is_made:
            self._flush()
            self._transport.close()

    # What asyncio calls.

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # a stream's is
        """Begin."""
        self._transport, self._is_made = transport, True
        transport.set_write_buffer_limits(high=HIGH_WATER_BYTES)
        self._on_made()

    def get_buffer(self, sizehint: int) -> memoryview:  # noqa: ARG002 - asyncio's signature
        """Return where the next bytes are read into."""
        return memoryview(self._buffer)[self._filled :]

    def buffer_updated(self, nbytes: int) -> None:
        """Hand on each whole frame."""
        self._filled += nbytes
        view, at = memoryview(self._buffer), 0
        while self._filled - at >= _HEAD.size:
            length, kind, connection = _HEAD.unpack_from(view, at)
            ends = at + 4 + length
            known = _KINDS.get(kind)
            if known is None or not _KIND_BYTES <= length <= self._most_bytes:
                self.end("what it sends is no frame of a link")
                return
            if ends > self._filled:
                if ends - at > len(self._buffer):
                    self._buffer = bytearray(ends - at) + bytearray(_READ_BYTES)
                break
            self._on_frame(known, connection, view[at + _HEAD.size : ends])
            at = ends
        rest = view[at : self._filled]
        self._buffer[: len(rest)] = bytes(rest)
        self._filled = len(rest)

    def pause_writing(self) -> None:
        """Note that frames wait for the other side."""
        self._await_reading()

    def resume_writing(self) -> None:
        """Note that nearly all is sent."""
        if self._backlog is not None:
            self._backlog.cancel()
            self._backlog = None
            self._on_drained()

    def connection_lost(self, exc: Exception | None) -> None:
        """Report the end."""
        self.resume_writing()
        self._on_lost(self._problem if exc is None else _words(exc))

    def _flush(self) -> None:
        data, self._outgoing = b"".join(self._outgoing), []
        if data and not self._transport.is_closing():
            self._transport.write(data)
            self._written_bytes += len(data)
            if self._transport.get_write_buffer_size() > MOST_BACKLOG_BYTES:
                self.end(f"over {MOST_BACKLOG_BYTES >> 20} MiB wait for the other side")

    @property
    def _sent_bytes(self) -> int:
        return self._written_bytes - self._transport.get_write_buffer_size()

    def _await_reading(self) -> None:
        self._backlog = asyncio.get_running_loop().call_later(
            BACKLOG_SECONDS, self._check_reading, self._sent_bytes
        )

    def _check_reading(self, before: int) -> None:
        if self._sent_bytes == before:
            self.end(f"the other side has read nothing for {BACKLOG_SECONDS:g} s")
        else:
            self._await_reading()


def _words(error: Exception) -> str:
    return openssl_reason(error) if isinstance(error, ssl.SSLError) else str(error)


def read_document(payload: memoryview) -> dict[str, Any]:
    """Read a payload that is JSON."""
    document: dict[str, Any] = json.loads(bytes(payload))
    return document


def pack_frame(round_trip_seconds: float | None, frame: bytes) -> bytes:
    """Write the payload of a FRAME."""
    return _SECONDS.pack(nan if round_trip_seconds is None else round_trip_seconds) + frame


def unpack_frame(payload: memoryview) -> tuple[float | None, bytes]:
    """Read the payload of a FRAME."""
    (seconds,) = _SECONDS.unpack_from(payload)
    return None if isnan(seconds) else seconds, bytes(payload[_SECONDS.size :])


def proof(secret: str, *words: str) -> str:
    """Prove a secret, in answer to the other side's nonce, which is among these words."""
    return hmac.new(secret.encode(), "\n".join(words).encode(), "sha256").hexdigest()


def pack_held(age_seconds: float, frames: Sequence[bytes]) -> bytes:
    """Write the payload of a HELD."""
    return _SECONDS.pack(age_seconds) + b"".join(_LENGTH.pack(len(one)) + one for one in frames)


def unpack_held(payload: memoryview) -> tuple[float, list[bytes]]:
    """Read the payload of a HELD."""
    (seconds,) = _SECONDS.unpack_from(payload)
    at, frames = _SECONDS.size, []
    while at < len(payload):
        (length,) = _LENGTH.unpack_from(payload, at)
        at += _LENGTH.size
        frames.append(bytes(payload[at : at + length]))
        at += length
    return float(seconds), frames


def pack_alive(unix_seconds: float, revision: int) -> bytes:
    """Write the payload of an ALIVE."""
    return _ALIVE.pack(unix_seconds, revision)


def unpack_alive(payload: memoryview) -> tuple[float, int]:
    """Read the payload of an ALIVE."""
    seconds, revision = _ALIVE.unpack(payload)
    return float(seconds), int(revision)


def pack_lag(seconds: float) -> bytes:
    """Write the payload of a LAG."""
    return _SECONDS.pack(seconds)


def unpack_lag(payload: memoryview) -> float:
    """Read the payload of a LAG."""
    (seconds,) = _SECONDS.unpack(payload)
    return float(seconds)


class HeartbeatRow(NamedTuple):
    """Heartbeats of one node without news."""

    heartbeats: int
    at: float
    """When the last of them came, in monotonic seconds."""
    probe_age_seconds: float | None
    """Of the last of them."""
    amounts: Amounts | None = None
    """The last that differ; None where none of them did."""


def pack_rows(rows: Mapping[int, HeartbeatRow], now: float) -> bytes:
    """Write those of these rows by connection that have no amounts."""
    return b"".join([_packed(number, row, now) for number, row in rows.items() if row.amounts is None])


def pack_amounts(rows: Mapping[int, HeartbeatRow], now: float) -> bytes:
    """Write those of these rows by connection that have amounts."""
    return b"".join(
        [
            _packed(number, row, now) + _packed_amounts(row.amounts)
            for number, row in rows.items()
            if row.amounts is not None
        ]
    )


def unpack_amounts(payload: memoryview, now: float) -> Iterator[tuple[int, HeartbeatRow]]:
    """Read rows with amounts by connection."""
    at = 0
    while at < len(payload):
        number, count, age, probe_age = _ROW.unpack_from(payload, at)
        *load, gpus = _LOAD.unpack_from(payload, at + _ROW.size)
        at += _ROW.size + _LOAD.size
        used = None
        if gpus != _NO_GPUS:
            memory = _memory(gpus)
            used = memory.unpack_from(payload, at)
            at += memory.size
        cpu, mem, gpu, gpu_mem = load
        amounts = Amounts(cpu, mem, _known(gpu), _known(gpu_mem), used)
        yield number, HeartbeatRow(count, now - age, _known(probe_age), amounts)


def unpack_rows(payload: memoryview, now: float) -> Iterator[tuple[int, HeartbeatRow]]:
    """Read rows by connection; the other side's clock may be another."""
    for number, count, age, probe_age in _ROW.iter_unpack(payload):
        yield number, HeartbeatRow(count, now - age, _known(probe_age))


def _packed(number: int, row: HeartbeatRow, now: float) -> bytes:
    return _ROW.pack(number, row.heartbeats, now - row.at, _or_nan(row.probe_age_seconds))


def _packed_amounts(amounts: Amounts) -> bytes:
    cpu, mem, gpu, gpu_mem, used = amounts
    gpus = _NO_GPUS if used is None else len(used)
    load = _LOAD.pack(cpu, mem, _or_nan(gpu), _or_nan(gpu_mem), gpus)
    return load if used is None else load + _memory(gpus).pack(*used)


@cache
def _memory(gpus: int) -> Struct:
    return Struct(f"!{gpus}Q")


def _or_nan(figure: float | None) -> float:
    return nan if figure is None else figure


def _known(figure: float) -> float | None:
    return None if isnan(figure) else figure
