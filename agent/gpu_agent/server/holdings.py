"""What all peers together make the registry hold: unfinished messages, and answers that nobody reads.

Each alone is within its limits; thousands of them would still be more memory than there is. When
the sum is beyond what is allowed, the largest give theirs up, those first that have not registered.
Counts only: a holder knows itself what it holds.
"""

from typing import Generic, Protocol, TypeVar

RELIEF = 7 / 8
"""Down to this share of what is allowed, so that the next byte is not the next occasion."""


class Holder(Protocol):
    """What is asked of whoever makes the registry hold something."""

    @property
    def is_registered(self) -> bool:
        """Whether it has proven to be a node."""

    @property
    def held_bytes(self) -> int:
        """How much it is at this moment."""

    def give_up(self) -> None:
        """Let go of all of it."""


Who = TypeVar("Who", bound=Holder)


class Holdings(Generic[Who]):
    """Who holds how much, as far as it was noted."""

    def __init__(self, *, most_bytes: int) -> None:
        self._most_bytes = most_bytes
        self._held: dict[Who, int] = {}
        self._relieving = False
        self.total_bytes = 0

    def note(self, holder: Who, held: int) -> None:
        """Take note of what a holder holds now; too much in all, and the largest give up."""
        self._write(holder, held)
        if self.total_bytes > self._most_bytes and not self._relieving:
            self._relieving = True
            self._relieve()
            self._relieving = False

    def _relieve(self) -> None:
        for holder in tuple(self._held):
            self._write(holder, holder.held_bytes)  # unread answers may have been read meanwhile
        if self.total_bytes <= self._most_bytes:
            return
        for holder in sorted(self._held, key=lambda one: (one.is_registered, -self._held[one])):
            if self.total_bytes <= self._most_bytes * RELIEF:
                return
            self._write(holder, 0)
            holder.give_up()

    def _write(self, holder: Who, held: int) -> None:
        self.total_bytes += held - self._held.pop(holder, 0)
        if held:
            self._held[holder] = held
