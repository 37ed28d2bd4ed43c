"""One process full of nodes, for `benchmarks/fleet_load.py`.

The first line on stdin says what to be; each later one what to do: `{"do": "silence", "count": 50}`
lets so many ready nodes fall silent with their sockets open, `{"do": "revive"}` brings them back,
`{"do": "list"}` does nothing. Once a second a line on stdout says how the nodes are; after an order
the line also names the nodes that it concerned, with their timeouts. Ends with stdin.
"""

import asyncio
import gc
import json
import random
import sys
import time
from collections import Counter
from dataclasses import dataclass

from benchmarks.load.node import Node, Where
from gpu_agent.runtime.tasks import Tasks, in_thread

REPORT_SECONDS = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """What this process is to be."""

    name: str
    host: str
    port: int
    nodes: int
    gpus: int
    startup_seconds: float
    """Within which all its nodes call."""
    token: str | None = None


class Generator:
    """The nodes of this process."""

    def __init__(self, order: Order, tasks: Tasks) -> None:
        self._startup_seconds = order.startup_seconds
        self._where = Where(order.host, order.port, order.gpus, order.token, tasks)
        self._nodes = [Node(self._where, f"{order.name}{number:07x}") for number in range(order.nodes)]

    def start(self) -> None:
        """Let them all come."""
        for node in self._nodes:
            node.connect_in(random.uniform(0, self._startup_seconds))

    def obey(self, order: dict[str, object]) -> None:
        """Do what the orchestrator says, and report how the nodes are then."""
        concerned = list(self._nodes)
        match order:
            case {"do": "silence", "count": int(count)}:
                concerned = [node for node in self._nodes if node.status == "ready"][:count]
                for node in concerned:
                    node.fall_silent()
            case {"do": "revive"}:
                concerned = [node for node in self._nodes if node.silent]
                for node in concerned:
                    node.revive()
        self.report(nodes={node.node_id: node.timeout_seconds for node in concerned})

    def report(self, **more: object) -> None:
        """Write one line about all nodes."""
        statuses = Counter(node.status for node in self._nodes)
        said = {"at": time.time(), "statuses": statuses, "happened": self._where.happened, **more}
        print(json.dumps(said), flush=True)


async def main() -> None:
    """Be what the first line says until stdin ends."""
    order = Order(**json.loads(sys.stdin.readline()))
    async with Tasks() as tasks:
        generator = Generator(order, tasks)
        gc.freeze()
        generator.start()
        tasks.start("report", _report_again(generator))
        while line := await in_thread("stdin", sys.stdin.readline, deadline_seconds=None):
            generator.obey(json.loads(line))
        tasks.end()


async def _report_again(generator: Generator) -> None:
    while True:
        await asyncio.sleep(REPORT_SECONDS)
        generator.report()


if __name__ == "__main__":
    asyncio.run(main())
