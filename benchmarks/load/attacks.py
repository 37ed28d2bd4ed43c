"""The ways to attack a node port, each on one connection: what is said on it, and how many at a time.

An attack ends when it has said all; its caller waits to be cut off.
"""

import asyncio
import json
import os
import random
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.load import oddities
from benchmarks.load.bombs import bombs
from benchmarks.load.node_frames import frame, heartbeat, registration

_ARSENAL: list[bytes] = []
"""Made when the first is needed, and thrown again and again."""

_TIMES = 3000
_DICE = random.Random(0)


class Peer:
    """One connection of the attacker's."""

    def __init__(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, victims: Sequence[str]
    ) -> None:
        self.node_id = "node-0"
        self.victims = victims
        self._reader, self._writer = reader, writer

    async def say(self, data: bytes) -> None:
        """Write, as fast as the other side lets us."""
        self._writer.write(data)
        await self._writer.drain()

    async def text(self, payload: bytes) -> None:
        """Write one text frame."""
        await self.say(frame(payload))

    async def flood(self, *payloads: bytes, times: int = _TIMES) -> None:
        """Write these again and again."""
        together = b"".join(map(frame, payloads))
        for _ in range(times // 50):
            await self.say(together * 50)

    async def status(self) -> str:
        """Read the answer to a handshake."""
        head = await self._reader.readuntil(b"\r\n\r\n")
        return head[9:12].decode()

    async def hear(self) -> dict[str, Any]:
        """Read one short text frame."""
        head, length = await self._reader.readexactly(2)
        if length == 126:  # noqa: PLR2004 - RFC 6455 §5.2
            length = int.from_bytes(await self._reader.readexactly(2), "big")
        payload = await self._reader.readexactly(length)
        answer: dict[str, Any] = json.loads(payload) if head & 15 == 1 else {"code": "closed"}
        return answer

    async def until_closed(self) -> None:
        """Read and forget until the other side has had enough."""
        while await self._reader.read(64 * 1024):
            pass

    def stop_reading(self) -> None:
        """Leave what is said unread from now on."""
        transport = self._writer.transport
        if isinstance(transport, asyncio.Transport):
            transport.pause_reading()


@dataclass(frozen=True, slots=True)
class Attack:
    """What is said on each connection, and how many there are at a time."""

    run: Callable[[Peer], Awaitable[None]]
    connections: int


async def _nothing(_: Peer) -> None:
    """Only be there."""


async def _dribble(peer: Peer) -> None:
    for byte in oddities.REQUEST.format(target="/ws/node", headers="X: " + "x" * 500 + "\r\n").encode():
        await peer.say(bytes([byte]))
        await asyncio.sleep(0.1)


async def _endless_headers(peer: Peer) -> None:
    await peer.say(b"GET /ws/node HTTP/1.1\r\n")
    for _ in range(1000):
        await peer.say(b"X: " + b"x" * 1000 + b"\r\n")


async def _no_http(peer: Peer) -> None:
    await peer.say(random.choice(oddities.NO_HTTP))


async def _odd_targets(peer: Peer) -> None:
    await peer.say(
        oddities.REQUEST.format(target=random.choice(oddities.TARGETS), headers="").encode("latin-1")
    )


async def _odd_headers(peer: Peer) -> None:
    await peer.say(
        oddities.REQUEST.format(target="/ws/node", headers=random.choice(oddities.HEADERS)).encode("latin-1")
    )


async def _half_messages(peer: Peer) -> None:
    await peer.say(b"\x81\xff" + (1024 * 1024).to_bytes(8, "big") + b"\0" * 4)
    await peer.say(b" " * 300_000)


async def _half_fragments(peer: Peer) -> None:
    await peer.say(frame(b" " * 100_000, fin=False) + frame(b" " * 100_000, opcode=0, fin=False))


async def _tiny_fragments(peer: Peer) -> None:
    await peer.say(frame(b"", fin=False))
    for _ in range(100):
        await peer.say(frame(b"", opcode=0, fin=False) * 100)


async def _pings(peer: Peer) -> None:
    for opcode in (9, 10):
        for _ in range(50):
            await peer.say(frame(os.urandom(random.randrange(126)), opcode=opcode) * 100)


async def _close_storm(peer: Peer) -> None:
    await peer.say(frame(b"\x03\xe8" + b"x" * 123, opcode=8) + frame(b"{}") * 20)


async def _odd_frames(peer: Peer) -> None:
    await peer.say(random.choice(oddities.ODD_FRAMES))


async def _malformed(peer: Peer) -> None:
    await peer.flood(b"nonsense", b'{"type":"job_assign"}', b'{"type":"node_register"}', b"")


async def _bombs(peer: Peer) -> None:
    if not _ARSENAL:
        _ARSENAL.extend(frame(bomb) for bomb in bombs())
    for bomb in random.sample(_ARSENAL, 3):
        await peer.say(bomb)


async def _no_gpu(peer: Peer) -> None:
    await peer.flood(registration("0", node_id=None, gpus=0))


async def _foreign_ids(peer: Peer) -> None:
    victim = random.choice(peer.victims) if peer.victims else "node-1"
    await peer.flood(registration("0", node_id=victim, gpus=1))


async def _foreign_heartbeats(peer: Peer) -> None:
    victim = random.choice(peer.victims) if peer.victims else "node-1"
    goodbye = json.dumps({"type": "node_unregister", "node_id": victim, "drain": False}).encode()
    await peer.flood(heartbeat("0", node_id=victim, gpus=1, dice=_DICE), goodbye)


async def _deaf(peer: Peer) -> None:
    peer.stop_reading()
    await peer.flood(b"nonsense", b"[]", frame(b"x" * 120, opcode=9))
    await asyncio.sleep(5)


async def _heartbeat_flood(peer: Peer) -> None:
    await peer.flood(heartbeat("0", node_id=peer.node_id, gpus=1, dice=_DICE))


async def _register_flood(peer: Peer) -> None:
    await peer.flood(registration("0", node_id=peer.node_id, gpus=4))


async def _fault_flood(peer: Peer) -> None:
    await peer.flood(json.dumps({"type": "node_error", "code": "GPU_LOST", "message": "m" * 4000}).encode())


async def _goodbye_loop(peer: Peer) -> None:
    goodbye = {"type": "node_unregister", "node_id": peer.node_id, "drain": True, "deadline_seconds": 1e9}
    await peer.flood(json.dumps(goodbye).encode(), registration("0", node_id=peer.node_id, gpus=1))


async def _leave(peer: Peer) -> None:
    await peer.say(frame(b"\x03\xe8", opcode=8))


BEFORE_THE_HANDSHAKE = {
    "silent": Attack(_nothing, 1500),
    "dribble": Attack(_dribble, 300),
    "endless headers": Attack(_endless_headers, 20),
    "no http": Attack(_no_http, 20),
    "odd targets": Attack(_odd_targets, 20),
    "odd headers": Attack(_odd_headers, 20),
}
AFTER_THE_HANDSHAKE = {
    "mute": Attack(_nothing, 1500),
    "half messages": Attack(_half_messages, 400),
    "half fragments": Attack(_half_fragments, 200),
    "tiny fragments": Attack(_tiny_fragments, 10),
    "pings": Attack(_pings, 10),
    "close storm": Attack(_close_storm, 10),
    "odd frames": Attack(_odd_frames, 20),
    "malformed": Attack(_malformed, 10),
    "bombs": Attack(_bombs, 2),
    "no gpu": Attack(_no_gpu, 5),
    "foreign ids": Attack(_foreign_ids, 5),
    "foreign heartbeats": Attack(_foreign_heartbeats, 5),
    "deaf": Attack(_deaf, 20),
}
AFTER_REGISTERING = {
    "registered and mute": Attack(_nothing, 200),
    "heartbeat flood": Attack(_heartbeat_flood, 5),
    "register flood": Attack(_register_flood, 5),
    "fault flood": Attack(_fault_flood, 5),
    "goodbye loop": Attack(_goodbye_loop, 5),
    "come and go": Attack(_leave, 5),
    "bombs of a node": Attack(_bombs, 2),
}
ALL = BEFORE_THE_HANDSHAKE | AFTER_THE_HANDSHAKE | AFTER_REGISTERING
