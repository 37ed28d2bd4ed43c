"""Who has connected and not registered yet: how many, from where, and who makes room.

Two kinds wait here. Peers whose handshake is not over cost little and are owed nothing: when there
are too many, the one that has taken longest goes. Peers that came in have shown a credential, where
one is asked for: when there are too many of them, others are told to come later. Closes nothing.
"""

from collections import Counter
from typing import Generic, Protocol, TypeVar

from gpu_agent.server.limits import Limits


class Comer(Protocol):
    """What is asked of whoever waits here."""

    @property
    def origin(self) -> str:
        """Where it comes from."""


Who = TypeVar("Who", bound=Comer)


class Anteroom(Generic[Who]):
    """All who wait, in the order of their coming."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._shaking: dict[Who, None] = {}
        self._inside: set[Who] = set()
        self._by_origin: Counter[str] = Counter()

    @property
    def size(self) -> int:
        """How many wait, of both kinds."""
        return len(self._shaking) + len(self._inside)

    def connected(self, comer: Who) -> Who | None:
        """Let somebody begin a handshake; returns who has to make room for that."""
        self._shaking[comer] = None
        return self.longest_shaking() if len(self._shaking) > self._limits.max_handshakes else None

    def longest_shaking(self) -> Who | None:
        """Return whose handshake has taken longest."""
        return next(iter(self._shaking), None)

    def is_full_for(self, comer: Who) -> bool:
        """Say whether too many wait inside already, in all or of this one's origin."""
        return (
            len(self._inside) >= self._limits.max_unregistered
            or self._by_origin[comer.origin] >= self._limits.max_unregistered_per_origin
        )

    def came_in(self, comer: Who) -> None:
        """A handshake succeeded."""
        if comer in self._shaking:
            del self._shaking[comer]
            self._inside.add(comer)
            self._by_origin[comer.origin] += 1

    def leaves(self, comer: Who) -> None:
        """Somebody has registered, or is gone; who is not here leaves nothing."""
        if comer in self._inside:
            self._inside.discard(comer)
            self._by_origin[comer.origin] -= 1
            if not self._by_origin[comer.origin]:
                del self._by_origin[comer.origin]
        self._shaking.pop(comer, None)
