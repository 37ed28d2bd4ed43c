"""What the store could not keep and must keep yet: verdicts, and what is told of them once they are kept.

Given out in order, a part at a time: after an outage the whole fleet may wait. What waits is bounded, however
long the store fails: a thing waits once, however often it changed, and the oldest words go first. A status
that is out of date by the time it could be told is not told.
"""

from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass

from gpu_agent.registry.actions import Action, Note, TellStatus
from gpu_agent.registry.step import STATUS_CHANGED, Key

MOST_AT_ONCE = 256
"""Things that are given out at once: some 10 ms of writing documents."""

MOST_WORDS = 10_000
"""Notes and messages that wait for a store which keeps nothing; the oldest go first."""


@dataclass(slots=True)
class _Unkept:
    keys: tuple[Key, ...]
    told: tuple[Action, ...]


class UnkeptQueue:
    """What waits to be kept."""

    def __init__(self) -> None:
        self._queue: deque[_Unkept] = deque()
        self._keys = Counter[Key]()
        self._words = self._wordless = 0
        self._newest: dict[object, TellStatus | None] = {}
        """By node: the last status that waits to be told; None where it was given another since."""

    def __len__(self) -> int:
        return len(self._queue)

    def holds(self, key: Key) -> bool:
        """Say whether a thing waits to be kept."""
        return key in self._keys

    def add(self, keys: tuple[Key, ...], told: Sequence[Action], *, first: bool = False) -> None:
        """Let these things wait, and what is told once they are kept; `first` where they waited before."""
        lasting = tuple(action for action in told if not (isinstance(action, TellStatus) and action.periodic))
        for node_id, status in _newest_of(lasting).items():
            if first:
                self._newest.setdefault(node_id, status)
            else:
                self._newest[node_id] = status
        self._append(_Unkept(keys, lasting))
        if first:
            self._queue.rotate(1)
        if self._words > 2 * MOST_WORDS or self._wordless > 2 * len(self._keys) + MOST_AT_ONCE:
            self._tidy_up()

    def take(self) -> tuple[list[Key], list[Action]]:
        """Give out the first of what waits, and what is told of it."""
        keys: dict[Key, None] = {}
        told: list[Action] = []
        while self._queue and len(keys) < MOST_AT_ONCE:
            one = self._queue.popleft()
            self._keys.subtract(one.keys)
            for key in one.keys:
                keys[key] = None
                if not self._keys[key]:
                    del self._keys[key]
            self._words -= len(one.told)
            self._wordless -= not one.told
            told += (action for action in one.told if self._is_news(action))
        if not self._queue:
            self._newest.clear()
        return list(keys), told

    def _append(self, one: _Unkept) -> None:
        self._queue.append(one)
        self._keys.update(one.keys)
        self._words += len(one.told)
        self._wordless += not one.told

    def _is_news(self, action: Action) -> bool:
        if not isinstance(action, TellStatus):
            return True
        if self._newest.get(action.node_id) is not action:
            return False
        del self._newest[action.node_id]
        return True

    def _tidy_up(self) -> None:
        """Keep the newest words, and every thing once."""
        kept: list[_Unkept] = []
        seen: set[Key] = set()
        words = 0
        for one in reversed(self._queue):
            words += len(one.told)
            told = one.told if words <= MOST_WORDS else ()
            if told or not seen.issuperset(one.keys):
                kept.append(_Unkept(one.keys, told))
            seen.update(one.keys)
        self._queue.clear()
        self._keys.clear()
        self._words = self._wordless = 0
        for one in reversed(kept):
            self._append(one)


def _newest_of(told: Sequence[Action]) -> dict[object, TellStatus | None]:
    newest: dict[object, TellStatus | None] = {}
    for action in told:
        if isinstance(action, TellStatus):
            newest[action.node_id] = action
        elif isinstance(action, Note) and action.event == STATUS_CHANGED:
            newest[action.fields.get("node_id")] = None
    return newest
