"""A disk that is a dictionary: whatever was committed is there, whatever crashes."""

from collections.abc import Sequence

from gpu_agent.store.base import Batch, Loaded
from gpu_agent.store.memory import MemoryStore


class MemoryMedium:
    """The memory store, which here outlives the registry's process."""

    def __init__(self) -> None:
        self._store = MemoryStore()

    def load(self) -> Loaded:
        """Return all that was committed."""
        return self._store.load()

    def save(self, batches: Sequence[Batch]) -> None:
        """Commit."""
        self._store.save(batches)

    def save_torn(self, batches: Sequence[Batch]) -> None:
        """A dictionary keeps all or nothing: nothing."""

    def crash(self) -> None:
        """Nothing is lost."""
