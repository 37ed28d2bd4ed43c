"""One process that attacks a registry's node port, in every way at once or in some.

    python -m benchmarks.load.hostile '{"port": 8080, "seconds": 20, "victims": ["node-1"]}'

Started by `benchmarks/hostile_nodes.py` and by the tests. Each attack has so many connections at a time
and opens new ones as they are closed, until the time is over. What it was answered is tallied on
stdout in the end. It does nothing that a stranger could not do, given what the order says.
"""

import asyncio
import contextlib
import json
import random
import resource
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

from benchmarks.load import node_frames
from benchmarks.load.attacks import AFTER_REGISTERING, ALL, BEFORE_THE_HANDSHAKE, Attack, Peer
from gpu_agent.runtime.tasks import Tasks

LONGEST_SECONDS = 20.0
"""For one connection; the registry is to end it long before."""

PAUSE_SECONDS = 0.02
_ENDS = (OSError, EOFError, ValueError)
"""How a registry shows that it has had enough."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """Whom to attack, how and for how long."""

    port: int
    seconds: float
    attacks: list[str] = field(default_factory=lambda: sorted(ALL))
    victims: list[str] = field(default_factory=list)
    """Ids of nodes that are somebody else's."""
    token: str | None = None
    """Shown at each handshake that is not itself the attack."""
    scale: float = 1.0
    """How many of the connections that each attack would have."""


class Attacker:
    """Keeps all attacks going."""

    def __init__(self, order: Order) -> None:
        self._order = order
        self._ends = time.monotonic() + order.seconds
        self.tally: Counter[str] = Counter()

    def start(self, tasks: Tasks) -> None:
        """Begin everywhere at once."""
        for name in self._order.attacks:
            attack = ALL[name]
            for _ in range(max(1, round(attack.connections * self._order.scale))):
                tasks.start(name, self._repeat(name, attack))

    async def _repeat(self, name: str, attack: Attack) -> None:
        while (left := self._ends - time.monotonic()) > 0:
            try:
                async with asyncio.timeout(min(left, LONGEST_SECONDS)), self._connected() as peer:
                    await self._approach(name, peer)
                    await attack.run(peer)
                    await peer.until_closed()
            except _ENDS as end:
                self.tally[f"{name}: {_how(end)}"] += 1
            else:
                self.tally[f"{name}: closed"] += 1
            await asyncio.sleep(PAUSE_SECONDS * random.random())

    async def _approach(self, name: str, peer: Peer) -> None:
        if name in BEFORE_THE_HANDSHAKE:
            return
        await peer.say(node_frames.handshake("registry", token=self._order.token))
        status = await peer.status()
        if status != "101":
            raise ValueError(f"HTTP {status}")
        if name in AFTER_REGISTERING:
            await peer.text(node_frames.registration(f"{random.getrandbits(32):08x}", node_id=None, gpus=2))
            answer: dict[str, Any] = await peer.hear()
            if answer.get("type") != "node_register_ack":
                raise ValueError(f"refused {answer.get('code')}")
            peer.node_id = answer["node_id"]

    @contextlib.asynccontextmanager
    async def _connected(self) -> AsyncIterator[Peer]:
        reader, writer = await asyncio.open_connection("127.0.0.1", self._order.port)
        try:
            yield Peer(reader, writer, victims=self._order.victims)
        finally:
            writer.transport.abort()


def _how(end: BaseException) -> str:
    return str(end) if type(end) is ValueError else type(end).__name__


async def main() -> None:
    """Attack as the argument says."""
    order = Order(**json.loads(sys.argv[1]))
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    attacker = Attacker(order)
    async with Tasks() as tasks:
        attacker.start(tasks)
    print(json.dumps(dict(sorted(attacker.tally.items()))), flush=True)


if __name__ == "__main__":
    asyncio.run(main())
