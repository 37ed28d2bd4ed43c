"""Decides whether what clients saw of one object is linearizable.

Each operation takes effect at one moment between its invocation and its return. One without a return takes
effect at any later moment, or never. The search of Wing and Gong fixes one operation after the other. As in
Lowe's "Testing for linearizability" and in porcupine, two orders are followed only once where both have fixed
the same operations and left the object in the same state.
"""

import math
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Generic, TypeVar

NEVER = math.inf
MOST_STEPS = 500_000
"""A partition that needs more is undecided."""
MOST_STEPS_TO_SHORTEN = 50_000
"""Reads are left in a violation where trying without them needs more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """When an operation began and ended, in seconds of one clock; `NEVER` where its outcome is unknown."""

    invoked: float
    returned: float


Op = TypeVar("Op", bound=Operation)
State = TypeVar("State", bound=Hashable)
Step = Callable[[State, Op, float], Iterable[State]]
"""The states in which an operation may leave the object; none where it is impossible.

The third argument is the latest moment at which the operation may take effect.
"""


class Verdict(StrEnum):
    LINEARIZABLE = "linearizable"
    VIOLATION = "violation"
    UNDECIDED = "undecided"


@dataclass(frozen=True, slots=True)
class Judgement:
    verdict: Verdict
    steps: int


@dataclass(frozen=True, slots=True)
class Partition(Generic[State, Op]):
    """All operations on one object, its state before them, and what each does to it."""

    name: str
    start: State
    step: Step[State, Op]
    operations: Sequence[Op]
    only_looks: Callable[[Op], bool]
    """Whether an operation changes no state: a violation may do without it."""

    def judge(self, *, most_steps: int = MOST_STEPS) -> Judgement:
        return _search(self.start, self.step, self.operations, most_steps)

    def minimal(self) -> Sequence[Op]:
        """Return the shortest beginning that is a violation, without reads that do not matter."""
        broken, steps = self._shortest_beginning(), 0
        for one in [op for op in broken if self.only_looks(op)]:
            without = [op for op in broken if op is not one]
            judged = _search(self.start, self.step, without, MOST_STEPS)
            if judged.verdict is Verdict.VIOLATION:
                broken = without
            steps += judged.steps
            if steps > MOST_STEPS_TO_SHORTEN:
                break
        return broken

    def _shortest_beginning(self) -> Sequence[Op]:
        ends = sorted({op.returned for op in self.operations if op.returned != NEVER})
        low, high = 0, len(ends) - 1
        while low < high:
            middle = (low + high) // 2
            if self._is_violation(self._until(ends[middle])):
                high = middle
            else:
                low = middle + 1
        return self._until(ends[low])

    def _until(self, end: float) -> Sequence[Op]:
        """Cut the history: what returned later may have happened by then, or not."""
        begun = (op for op in self.operations if op.invoked <= end)
        return [op if op.returned <= end else replace(op, returned=NEVER) for op in begun]

    def _is_violation(self, operations: Sequence[Op]) -> bool:
        return _search(self.start, self.step, operations, MOST_STEPS).verdict is Verdict.VIOLATION


def _search(start: State, step: Step[State, Op], operations: Sequence[Op], most_steps: int) -> Judgement:
    ops = sorted(operations, key=lambda op: op.invoked)
    known = sorted((op.returned, place) for place, op in enumerate(ops) if op.returned != NEVER)
    must = sum(1 << place for _, place in known)
    pending: list[tuple[int, State]] = [(0, start)]
    seen = {(0, start)}
    steps = 0
    while pending:
        done, state = pending.pop()
        if done & must == must:
            return Judgement(Verdict.LINEARIZABLE, steps)
        latest = next(end for end, place in known if not done >> place & 1)
        for place, op in enumerate(ops):
            if op.invoked > latest:
                break
            if done >> place & 1:
                continue
            steps += 1
            for after in step(state, op, latest):
                reached = (done | 1 << place, after)
                if reached not in seen:
                    seen.add(reached)
                    pending.append(reached)
        if steps > most_steps:
            return Judgement(Verdict.UNDECIDED, steps)
    return Judgement(Verdict.VIOLATION, steps)
