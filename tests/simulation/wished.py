"""What somebody was promised about one thing, while some of what was asked is still open.

Requests are answered in the order in which they were decided. One that was never answered because the
registry crashed may have taken effect or not; which of the two shows when the next process begins.
"""

from typing import Generic, TypeVar

_Value = TypeVar("_Value")


class Wished(Generic[_Value]):
    """The last acknowledged value of one thing, and what else it may be."""

    def __init__(self, value: _Value) -> None:
        self.settled = value
        self._open: dict[int, _Value] = {}
        self._maybe: list[_Value] = []

    @property
    def possible(self) -> list[_Value]:
        """What it may be without a broken promise."""
        return [self.settled, *self._open.values(), *self._maybe]

    @property
    def is_settled(self) -> bool:
        """True while nothing is open."""
        return not self._open and not self._maybe

    def asked(self, ref: int, value: _Value) -> None:
        """Somebody asked for another value."""
        self._open[ref] = value

    def acknowledged(self, ref: int) -> None:
        """They were told that it is so: whatever was asked before is overruled."""
        if ref in self._open:
            self.settled = self._open.pop(ref)
            self._maybe.clear()

    def refused(self, ref: int) -> None:
        """They were told that it is not."""
        self._open.pop(ref, None)

    def lost(self) -> None:
        """The registry crashed: nobody will be told."""
        self._maybe += self._open.values()
        self._open.clear()

    def found(self, value: _Value) -> None:
        """A new process shows which it was."""
        self.settled = value
        self._maybe.clear()
