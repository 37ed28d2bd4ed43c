"""Stores whose disk is full, or hangs."""

import threading
from collections.abc import Sequence

from gpu_agent.registry.actions import Change
from gpu_agent.store.base import Batch, StoreError
from gpu_agent.store.memory import MemoryStore
from tests.waiting import patience


class FailingStore(MemoryStore):
    """A store whose disk can be full."""

    full = False

    def save(self, batches: Sequence[Batch]) -> None:
        if self.full:
            raise StoreError("the disk is full; free some space")
        super().save(batches)


class StuckStore(MemoryStore):
    """A store whose disk can hang."""

    def __init__(self) -> None:
        super().__init__()
        self.answering = threading.Event()
        self.answering.set()
        self.held: Sequence[Change] | None = None
        """What it held when it was closed."""

    def save(self, batches: Sequence[Batch]) -> None:
        self.answering.wait(patience(30))
        super().save(batches)

    def close(self) -> None:
        if self.held is None:
            self.held = self.load().changes
        super().close()
