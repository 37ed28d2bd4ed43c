"""What was acknowledged, and what was asked without an answer: the states that a thing may be in.

A client that changes a thing records it before the request is sent and again when its answer arrives. An
answer leaves one possible state, a request without one leaves both; what is then seen must be
one of them, and is from then on the only one.
"""

import threading
from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

State = Hashable


@dataclass(frozen=True, slots=True)
class Loss:
    """A thing whose state is none of those that it may be in."""

    thing: str
    possible: tuple[State, ...]
    seen: State

    def __str__(self) -> str:
        return f"{self.thing}: acknowledged or asked {self.possible}, but found {self.seen!r}"


class Ledger:
    """All things by name; filled by several threads."""

    def __init__(self) -> None:
        self._possible: dict[str, tuple[State, ...]] = {}
        self._lock = threading.Lock()
        self.acknowledged = 0

    def __len__(self) -> int:
        return len(self._possible)

    @contextmanager
    def asking(self, thing: str, wanted: State, *, absent: State) -> Iterator[Callable[[State], None]]:
        """A request is on its way; the block calls what it is given with the state that was answered."""
        with self._lock:
            before = self._possible.get(thing, (absent,))
            self._possible[thing] = (*before, wanted) if wanted not in before else before

        def answered(state: State) -> None:
            with self._lock:
                self._possible[thing] = (state,)
                self.acknowledged += 1

        yield answered

    def only(self, thing: str) -> State | None:
        """The one state that a thing may be in; None when there are several, or none is known."""
        possible = self._possible.get(thing, ())
        return possible[0] if len(possible) == 1 else None

    def forget(self, thing: str) -> None:
        with self._lock:
            self._possible.pop(thing, None)

    def things(self, kind: str) -> list[str]:
        with self._lock:
            return [thing for thing in self._possible if thing.startswith(kind)]

    def compare(self, seen: Mapping[str, State]) -> list[Loss]:
        """Compare with what was found; raises nothing, and takes what was found as the truth."""
        losses = []
        for thing, state in seen.items():
            possible = self._possible.get(thing)
            if possible is not None and not any(_fits(one, state) for one in possible):
                losses.append(Loss(thing, possible, state))
            self._possible[thing] = (state,)
        return losses


ANYWHERE = "held somewhere"
"""A claim that was asked for: where it went is in the answer that did not come."""


def _fits(possible: State, seen: State) -> bool:
    return possible == seen or (possible == ANYWHERE and seen is not None)
