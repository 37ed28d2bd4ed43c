"""One node of the load, as light as can be: a WebSocket at a time, the agent's rhythm and backoff.

The first heartbeat goes out at the ack, then one every interval that ack and `node_status` carry, without
drift; after a loss, full jitter that doubles from 1 s to 60 s; `Retry-After` counts as it does for an agent.
Heartbeats are written once and sent again and again, so that the machine's time goes to the registry.
Counts what happens; judges nothing.
"""

import asyncio
import json
import random
import struct
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from benchmarks.load import node_frames
from gpu_agent.runtime.tasks import Tasks
from gpu_agent.session.backoff import Backoff

PATIENCE_SECONDS = 10.0
"""For a connection, its handshake and an ack, as the agent has it."""

STABLE_SECONDS = 60.0
VARIANTS = 2
"""Different heartbeats that each node sends in turn."""

_TEXT, _CLOSE = 1, 8
_HEAD_END = b"\r\n\r\n"
_TWO_BYTE_LENGTH = 126


@dataclass
class Where:
    """The registry to reach, what all nodes of a process share, and what became of them."""

    host: str
    port: int
    gpus: int
    token: str | None
    tasks: Tasks
    happened: Counter[str] = field(default_factory=Counter)
    """Since the start: heartbeats, handshakes by status, refusals and closings by code."""


class Node(asyncio.Protocol):
    """One node: a socket at a time, and what it keeps from one to the next."""

    def __init__(self, where: Where, machine: str) -> None:
        self.node_id: str | None = None
        self.status = "away"
        self.silent = False
        self._where = where
        self._machine = machine
        self._token = where.token
        self._backoff = Backoff(first_seconds=1.0, ceiling_seconds=60.0, draw=random.random)
        self._transport: asyncio.Transport | None = None
        self._received = b""
        self._open = False
        self._registered_at: float | None = None
        self._retry_after = 0.0
        self._interval = self._warmup = 10.0
        self._timeout = 0.0
        self._heartbeats: list[bytes] = []
        self._sent = 0
        self._due = self._last = 0.0
        self._timer: asyncio.TimerHandle | None = None

    @property
    def timeout_seconds(self) -> float:
        """How long the registry waits for a heartbeat before it gives this node up (§4)."""
        return max(self._timeout, 3 * self._interval)

    def connect_in(self, seconds: float) -> None:
        """Try to reach the registry after a while."""
        self._at(seconds, lambda: self._where.tasks.start("reach", self._reach()))

    def fall_silent(self) -> None:
        """Say and hear nothing more; the socket stays open."""
        self.silent, self.status = True, "silent"
        self._cancel_timer()
        if self._transport is not None:
            self._transport.pause_reading()

    def revive(self) -> None:
        """Come back from silence, over a new socket."""
        self.silent, self.status = False, "away"
        if self._transport is None:
            self.connect_in(0)
        else:
            self._transport.abort()

    # What asyncio calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Open the WebSocket."""
        assert isinstance(transport, asyncio.Transport)  # noqa: S101 - TCP transports are both
        self._transport, self._received, self._open = transport, b"", False
        transport.write(node_frames.handshake(self._where.host, token=self._token))
        self._at(PATIENCE_SECONDS, transport.abort)

    def data_received(self, data: bytes) -> None:
        """Take what the registry says."""
        self._received += data
        if not self._open and not self._handshaken():
            return
        while (found := self._next_frame()) is not None:
            opcode, payload = found
            if opcode == _TEXT:
                self._hear(json.loads(payload))
            elif opcode == _CLOSE:
                code = struct.unpack("!H", payload[:2])[0] if payload else None
                self._give_up(f"closed {code}")
                return

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - asyncio's signature
        """Come back after a while."""
        self._transport = None
        if not self.silent:
            self.status = "away"
            self._where.happened["lost"] += 1
            self._back_off()

    # What follows from it.

    async def _reach(self) -> None:
        try:
            async with asyncio.timeout(PATIENCE_SECONDS):
                loop = asyncio.get_running_loop()
                await loop.create_connection(lambda: self, self._where.host, self._where.port)
        except OSError:
            self._where.happened["unreachable"] += 1
            self._back_off()

    def _handshaken(self) -> bool:
        head, end, rest = self._received.partition(_HEAD_END)
        if not end:
            return False
        self._received = rest
        status = head[9:12].decode()
        self._where.happened[f"handshake {status}"] += 1
        if status != "101":
            asked = head.lower().partition(b"retry-after:")[2].split(b"\r\n")[0].strip()
            self._retry_after = float(asked or 0)
            self._give_up("turned away")
            return False
        self._open = True
        self._say(node_frames.registration(self._machine, node_id=self.node_id, gpus=self._where.gpus))
        return True

    def _next_frame(self) -> tuple[int, bytes] | None:
        """Take the next whole frame out of what was received; the registry's are short and not masked."""
        received, at = self._received, 2
        if len(received) < at:
            return None
        length = received[1]
        if length == _TWO_BYTE_LENGTH:
            at = 4
            if len(received) < at:
                return None
            (length,) = struct.unpack_from("!H", received, 2)
        if len(received) < at + length:
            return None
        self._received = received[at + length :]
        return received[0] & 15, received[at : at + length]

    def _hear(self, message: dict[str, Any]) -> None:
        match message["type"]:
            case "node_register_ack":
                self._acknowledged(message)
            case "node_status" if message["node_id"] == self.node_id:
                self.status = message["status"]
                self._interval = message.get("heartbeat_interval_seconds") or self._interval
                self._due = self._last + self._rhythm()
                self._at(self._due - time.monotonic(), self._heartbeat)
            case "node_error":
                self._retry_after = message.get("retry_after_seconds") or 0.0
                self._give_up(f"error {message['code']}")

    def _acknowledged(self, ack: dict[str, Any]) -> None:
        self._registered_at = time.monotonic()
        self._interval = ack.get("heartbeat_interval_seconds", self._interval)
        self._warmup = ack.get("warmup_heartbeat_interval_seconds", self._warmup)
        self._timeout = ack.get("heartbeat_timeout_seconds", self._timeout)
        self._token = ack.get("node_token") or self._token
        if self.node_id != ack["node_id"]:
            self.node_id = node_id = ack["node_id"]
            dice, gpus = random.Random(node_id), self._where.gpus
            self._heartbeats = [
                node_frames.frame(node_frames.heartbeat(self._machine, node_id=node_id, gpus=gpus, dice=dice))
                for _ in range(VARIANTS)
            ]
        self.status, self._due = "registering", time.monotonic()
        self._heartbeat()

    def _heartbeat(self) -> None:
        if self._transport is None:
            return
        self._transport.write(self._heartbeats[self._sent % VARIANTS])
        self._where.happened["heartbeats"] += 1
        self._sent += 1
        self._last = now = time.monotonic()
        self._due = max(self._due + self._rhythm(), now)
        self._at(self._due - now, self._heartbeat)

    def _rhythm(self) -> float:
        return self._warmup if self.status == "registering" else self._interval

    def _say(self, payload: bytes) -> None:
        if self._transport is not None:
            self._transport.write(node_frames.frame(payload))

    def _give_up(self, why: str) -> None:
        self._where.happened[why] += 1
        self._cancel_timer()
        if self._transport is not None:
            self._transport.abort()

    def _back_off(self) -> None:
        since, self._registered_at = self._registered_at, None
        if since is not None and time.monotonic() - since >= STABLE_SECONDS:
            self._backoff.reset()
        asked, self._retry_after = self._retry_after, 0.0
        self.connect_in(self._backoff.next_delay(at_least=asked))

    def _at(self, seconds: float, then: Callable[[], object]) -> None:
        """Do this after a while, and nothing else meanwhile."""
        self._cancel_timer()
        self._timer = asyncio.get_running_loop().call_later(max(0.0, seconds), then)

    def _cancel_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
