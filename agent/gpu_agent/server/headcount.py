"""The fleet counted as it stands: by status, by GPU, by place. In slices, so that it keeps nobody waiting.

Alike nodes are looked at as one: ten thousand of them have few kinds of GPUs between them. What
a peer may name as it likes is bounded before it is told by name.
"""

import asyncio
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from gpu_agent.registry.record import NodeRecord
from gpu_agent.wire.codes import NodeStatus
from gpu_agent.wire.inventory import Health

NODES_IN_A_SLICE = 250
MOST_GPU_NAMES = 40
LONGEST_GPU_NAME = 80
OTHER = "other"

_HEALTHS = frozenset(health.value for health in Health)
_STATUSES = dict.fromkeys((status.value for status in NodeStatus), 0)

Look = tuple[tuple[str | None, ...], tuple[str, ...]]
"""The names and healths of a node's GPUs, in order."""


@dataclass(frozen=True, slots=True)
class Headcount:
    """A fleet's numbers."""

    statuses: Counter[str] = field(default_factory=lambda: Counter(_STATUSES))
    places: Counter[str] = field(default_factory=lambda: Counter(_STATUSES))
    """For jobs, by the status of their node."""
    occupied: Counter[str] = field(default_factory=lambda: Counter(_STATUSES))
    others: Counter[str] = field(
        default_factory=lambda: Counter({"connected": 0, "cordoned": 0, "drains": 0, "claims": 0})
    )
    looks: Counter[Look] = field(default_factory=Counter)

    @property
    def gpus(self) -> Counter[tuple[str, str]]:
        """GPUs by name and health, without the parents of MIG slices; rare names are told as one."""
        found: Counter[tuple[str, str]] = Counter()
        for (names, healths), nodes in self.looks.items():
            for name, health in zip(names, healths, strict=True):
                if name is not None:
                    shown = health if health in _HEALTHS else OTHER
                    found[_presentable(name), shown] += nodes
        return _bounded(found)


def _presentable(name: str) -> str:
    """Shorten a name, and let nothing in it steer the terminal of who looks at the figures."""
    short = name[:LONGEST_GPU_NAME]
    if short.isprintable():
        return short
    return "".join(letter if letter.isprintable() else "?" for letter in short)


async def taken(records: Sequence[NodeRecord]) -> Headcount:
    """Count these nodes, and let others have their turn meanwhile."""
    headcount = Headcount()
    for begin in range(0, len(records), NODES_IN_A_SLICE):
        for record in records[begin : begin + NODES_IN_A_SLICE]:
            _count(record, headcount)
        await asyncio.sleep(0)
    return headcount


def _count(record: NodeRecord, headcount: Headcount) -> None:
    status, others = record.status.value, headcount.others
    headcount.statuses[status] += 1
    headcount.places[status] += record.max_concurrent_jobs
    headcount.occupied[status] += record.in_flight_jobs
    others["connected"] += record.connected
    others["cordoned"] += record.cordoned is not None
    others["drains"] += record.drain is not None
    others["claims"] += len(record.claims)
    headcount.looks[record.gpus.names, record.gpus.healths] += 1


def _bounded(found: Counter[tuple[str, str]]) -> Counter[tuple[str, str]]:
    by_name: Counter[str] = Counter()
    for (name, _), count in found.items():
        by_name[name] += count
    told = {name for name, _ in by_name.most_common(MOST_GPU_NAMES)}
    bounded: Counter[tuple[str, str]] = Counter()
    for (name, health), count in found.items():
        bounded[name if name in told else OTHER, health] += count
    return bounded
