"""The promise that every keeper of the registry's state makes.

A keeper holds plain documents under a kind and a key. It knows no statuses, no
claims, no clock: what a document means is the fleet's business, and its times are
wall time because they must survive a reboot.
"""

from collections.abc import Iterable, Sequence
from typing import Protocol

from gpu_agent.registry.actions import Change


class StoreError(Exception):
    """The machine's fault: what was asked could not be kept, and nothing of it was.

    The only exception of this floor. Its sentence says what to do next.
    """


class Store(Protocol):
    """Keeps documents. One writer: the registry that opened it.

    A document is what JSON can hold, with finite numbers. What is kept is a copy.
    """

    def load(self) -> Iterable[Change]:
        """Return all that is kept, each with its document; raises `StoreError`."""

    def save(self, changes: Sequence[Change]) -> None:
        """Keep all of these, in order, or none; raises `StoreError`.

        A change without a document lets its key go; letting go of what is not kept is no error.
        """

    def close(self) -> None:
        """Let go of what the keeper holds open; a second time does nothing."""
