"""The fleet as people look at it: its totals, and lists of nodes by filter, order and page.

Nothing here runs while nobody looks: the fleet only notes which nodes have changed, and `refresh` takes these
in. A list that is asked for again is kept, and updated by the nodes that have changed, so that neither a page
nor the check of its order scans the fleet.
"""

import asyncio
import json
import re
import time
from base64 import urlsafe_b64decode, urlsafe_b64encode
from binascii import Error as NotBase64
from bisect import bisect_left, bisect_right, insort
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from gpu_agent.registry.fleet import Fleet
from gpu_agent.registry.fleet_totals import FleetTotals, NodeFigures
from gpu_agent.registry.node import NodeRecord
from gpu_agent.server.fair_queue import SLICE_SECONDS
from gpu_agent.server.views import ALL_NODES, NodeFilter
from gpu_agent.wire.codes import STATUS_COLOURS, GpuStatus

PAGE_NODES = 100
MAX_CURSOR = 1024
"""Characters of a cursor: more than any page gives."""
KEPT_SECONDS = 60.0
"""A list that nobody has asked for since is forgotten."""
MOST_KEPT = 256
"""More than open pages can show: a list that is forgotten between two looks would be made again each time."""

_NODES_BETWEEN_LOOKS = 64
_NUMBER = re.compile(r"\d+")

Key = tuple[int | float | str, ...]
"""What a list is sorted by; it ends with the node's id."""


class Show(StrEnum):
    """Which nodes a list is about."""

    ATTENTION = "attention"
    FREE = "free"
    CLAIMED = "claimed"
    IDLE = "idle"
    UNCLAIMED = "unclaimed"
    CORDONED = "cordoned"

    def matches(self, record: NodeRecord, figures: NodeFigures) -> bool:
        """Return whether a node belongs to the list."""
        if self is Show.ATTENTION:
            return figures.severity.needs_attention
        if self is Show.CORDONED:
            return figures.cordoned or bool(record.desired.gpu_cordons)
        return _GPU_STATUS[self] in figures.gpu_statuses


_GPU_STATUS: Mapping[Show, GpuStatus] = {
    Show.FREE: GpuStatus.FREE,
    Show.CLAIMED: GpuStatus.CLAIMED,
    Show.IDLE: GpuStatus.IDLE,
    Show.UNCLAIMED: GpuStatus.USED_WITHOUT_CLAIM,
}


class Sort(StrEnum):
    """In which order a list comes; nodes that are equal in it by hostname."""

    SEVERITY = "severity"
    """The most urgent first."""
    HOSTNAME = "hostname"
    STATUS = "status"
    FREE = "free"
    """The most free GPUs first."""
    SINCE = "since"
    """The latest change of a status first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeQuery:
    """Which nodes, in which order."""

    wanted: NodeFilter = ALL_NODES
    show: Show | None = None
    sort: Sort = Sort.SEVERITY

    @property
    def key(self) -> object:
        """What is equal for equal queries, and hashable."""
        one = self.wanted
        labels = tuple(sorted((name, str(values)) for name, values in one.labels.items()))
        rest = (one.statuses, one.reason, one.model, one.gpu_name, one.connected, one.text)
        return self.show, self.sort, labels, rest


@dataclass(frozen=True, slots=True)
class NodePage:
    """One page of a list."""

    node_ids: tuple[str, ...]
    matching: int
    """How many nodes the whole list has."""
    first: int
    """The place of the page's first node in the list, from 0."""
    after: str | None
    """Where the next page begins; None on the last one."""
    before: str | None
    """Where the page before begins; None on the first one and on the second, before which all begins."""


class CursorError(ValueError):
    """A cursor that no page has given."""


class FleetView:
    """The totals and the lists of one fleet. `refresh` before reading: both are as of its end."""

    def __init__(self, fleet: Fleet, *, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._fleet = fleet
        self._now = monotonic
        self.totals = FleetTotals()
        self.version = 0
        """Grows with every change that people can see, figures of GPUs apart."""
        self._lists: dict[object, _NodeList] = {}
        self._refreshing = asyncio.Lock()

    async def refresh(self) -> None:
        """Take in the nodes that have changed; of many nodes in slices, between which other tasks run."""
        changed = self._fleet.changed_nodes
        async with self._refreshing:
            slice_ends = self._now() + SLICE_SECONDS
            count = 0
            while changed:
                self._take_in(changed.pop())
                count += 1
                if count % _NODES_BETWEEN_LOOKS == 0 and self._now() > slice_ends:
                    await asyncio.sleep(0)
                    slice_ends = self._now() + SLICE_SECONDS

    def figures_of(self, node_id: str) -> NodeFigures | None:
        """Return a node's figures; None where there is none with this id."""
        return self.totals.of_node.get(node_id)

    def page(self, query: NodeQuery, *, after: str | None = None, limit: int = PAGE_NODES) -> NodePage:
        """Return the page of a list behind a cursor; raises `CursorError`."""
        order = self._list(query).order()
        begin = 0 if after is None else bisect_right(order, _read_cursor(after, query.sort))
        keys = order[begin : begin + limit]
        following = _cursor(keys[-1]) if keys and begin + limit < len(order) else None
        before = _cursor(order[begin - limit - 1]) if begin > limit else None
        return NodePage(tuple(str(key[-1]) for key in keys), len(order), begin, following, before)

    def _take_in(self, node_id: str) -> None:
        figures = self._fleet.figures_of(node_id)
        before = self.totals.remove(node_id) if figures is None else self.totals.put(figures)
        if figures != before:
            self.version += 1
        for one in self._lists.values():
            one.changed.add(node_id)

    def _list(self, query: NodeQuery) -> "_NodeList":
        now, key = self._now(), query.key
        for other, one in list(self._lists.items()):
            if now - one.used_at > KEPT_SECONDS:
                del self._lists[other]
        found = self._lists.pop(key, None)
        if found is None:
            found = _NodeList(query, self._fleet, self.totals.of_node)
            while len(self._lists) >= MOST_KEPT:
                del self._lists[next(iter(self._lists))]
        self._lists[key] = found  # the one that was used last is the last
        found.used_at = now
        return found


@dataclass(slots=True, eq=False)
class _NodeList:
    """The nodes that match one query, in its order."""

    query: NodeQuery
    fleet: Fleet
    of_node: Mapping[str, NodeFigures]
    changed: set[str] = field(default_factory=set)
    """Nodes that may have another place, or none."""
    used_at: float = 0.0
    _keys: dict[str, Key] | None = None
    _order: list[Key] = field(default_factory=list)

    def order(self) -> Sequence[Key]:
        """Return the keys of all nodes that match, in order."""
        if self._keys is None:
            found = ((node_id, self._key_of(node_id)) for node_id in self.of_node)
            self._keys = {node_id: key for node_id, key in found if key is not None}
            self._order = sorted(self._keys.values())
        else:
            for node_id in self.changed:
                self._move(node_id, self._keys)
        self.changed.clear()
        return self._order

    def _move(self, node_id: str, keys: dict[str, Key]) -> None:
        before, now = keys.pop(node_id, None), self._key_of(node_id)
        if before is not None and before != now:
            del self._order[bisect_left(self._order, before)]
        if now is not None:
            keys[node_id] = now
            if before != now:
                insort(self._order, now)

    def _key_of(self, node_id: str) -> Key | None:
        """Return a node's place; None where it does not match."""
        record, figures = self.fleet.node(node_id), self.of_node.get(node_id)
        query = self.query
        if record is None or figures is None or not query.wanted.matches(record):
            return None
        if query.show is not None and not query.show.matches(record, figures):
            return None
        return (*_RANK[query.sort](figures), _natural(figures.hostname), node_id)


_STATUSES = list(STATUS_COLOURS)
_RANK: Mapping[Sort, Callable[[NodeFigures], Key]] = {
    Sort.SEVERITY: lambda one: (int(one.severity),),
    Sort.HOSTNAME: lambda _: (),
    Sort.STATUS: lambda one: (_STATUSES.index(one.status),),
    Sort.FREE: lambda one: (-one.free_gpus,),
    Sort.SINCE: lambda one: (-one.since,),
}


def _natural(hostname: str) -> str:
    """Return by what hostnames are sorted as people do: `gpu-2` before `gpu-10`."""
    return _NUMBER.sub(lambda number: number[0].zfill(9), hostname.lower())


def _cursor(key: Key) -> str:
    return urlsafe_b64encode(json.dumps(key, separators=(",", ":")).encode()).decode().rstrip("=")


def _read_cursor(text: str, sort: Sort) -> Key:
    """Read where a page begins; raises `CursorError`."""
    if len(text) > MAX_CURSOR:
        raise CursorError(_NO_CURSOR)
    try:
        key = json.loads(urlsafe_b64decode(text + "=" * (-len(text) % 4)))
    except (NotBase64, ValueError, RecursionError) as error:
        raise CursorError(_NO_CURSOR) from error
    numbers = 0 if sort is Sort.HOSTNAME else 1
    kinds = [int | float] * numbers + [str, str]
    if not isinstance(key, list) or len(key) != len(kinds) or not all(map(isinstance, key, kinds)):
        raise CursorError(_NO_CURSOR)
    return tuple(key)


_NO_CURSOR = "`after` is no `next` of a page in this order: leave it out to begin with the first page"
