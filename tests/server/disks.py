"""Disks that are full, or stand still."""

import threading
from collections.abc import Sequence

from gpu_agent.store.base import Batch, StoreError
from gpu_agent.store.memory import MemoryStore


class FailingStore(MemoryStore):
    """A disk that can be full."""

    full = False

    def save(self, batches: Sequence[Batch]) -> None:
        if self.full:
            raise StoreError("the disk is full; free some space")
        super().save(batches)


class StuckStore(MemoryStore):
    """A disk that stops to turn."""

    def __init__(self) -> None:
        super().__init__()
        self.turning = threading.Event()
        self.turning.set()

    def save(self, batches: Sequence[Batch]) -> None:
        self.turning.wait(30)
        super().save(batches)
