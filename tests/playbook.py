"""Plays events to a pure machine and checks its actions: `assert play >> event << action`.

Both machines speak one grammar (`handle`, `deadline`, `wake`), so one playbook serves both.
An expectation is an action to be equal to, a type to be an instance of, or a question
that the action must answer with true. Actions of the types in `optional` are collected in
`actions` and need not be expected. Whatever else an event caused must be expected before
the next event, and before the end.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, Protocol, Self, TypeVar


class Machine(Protocol):
    """What a playbook can play."""

    @property
    def deadline(self) -> float | None: ...
    def handle(self, event: Any, now: float) -> list[Any]: ...  # noqa: ANN401 - each its own events
    def wake(self, now: float) -> list[Any]: ...


@dataclass(frozen=True)
class After:
    """Let so many seconds pass, waking the machine at each of its deadlines on the way."""

    seconds: float


_Machine = TypeVar("_Machine", bound=Machine)


class Playbook(Generic[_Machine]):
    def __init__(self, machine: _Machine, *, now: float = 0.0, optional: tuple[type, ...] = ()) -> None:
        self.machine = machine
        self.now = now
        self.actions: list[Any] = []
        self.pending: list[Any] = []
        self._optional = optional

    def __rshift__(self, event: object) -> Self:
        """Play an event, or let time pass."""
        assert not self.pending, f"not expected: {self.pending}"
        if isinstance(event, After):
            self._pass(event.seconds)
        else:
            self._take(self.machine.handle(event, self.now))
        return self

    def __lshift__(self, expected: object | type | Callable[[Any], bool]) -> Self:
        """Expect the next action."""
        assert self.pending, f"nothing happened, expected {expected}"
        action = self.pending.pop(0)
        if isinstance(expected, type):
            assert isinstance(action, expected), f"{action} is no {expected.__name__}"
        elif callable(expected):
            assert expected(action), f"{action} is not as expected"
        else:
            assert action == expected
        return self

    def __bool__(self) -> bool:
        """End a play: nothing is left unexpected."""
        assert not self.pending, f"not expected: {self.pending}"
        return True

    def _pass(self, seconds: float) -> None:
        end = self.now + seconds
        while (deadline := self.machine.deadline) is not None and deadline <= end:
            self.now = max(self.now, deadline)
            self._take(self.machine.wake(self.now))
            assert self.machine.deadline != deadline, "a machine that was woken in time wants the same again"
        self.now = end

    def _take(self, actions: list[Any]) -> None:
        self.actions.extend(actions)
        self.pending.extend(action for action in actions if not isinstance(action, self._optional))
