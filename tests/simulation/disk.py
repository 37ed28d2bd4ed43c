"""The disk under the registry: a true store that can be full, slow or fail, and tells what it has kept."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from gpu_agent.store.base import Batch, Loaded, StoreError
from tests.simulation.world import World


class Medium(Protocol):
    """Where batches end up; `crash` is what the end of the process does to it."""

    def load(self) -> Loaded: ...
    def save(self, batches: Sequence[Batch]) -> None: ...
    def save_torn(self, batches: Sequence[Batch]) -> None: ...
    def crash(self) -> None: ...


@dataclass(slots=True)
class DiskTrouble:
    """What is wrong with the disk just now."""

    full_until: float = 0.0
    slow_until: float = 0.0
    slow_seconds: float = 1.5
    fails_next: int = 0
    """So many commits will fail."""


class Disk:
    """What the registry takes for its store."""

    def __init__(self, world: World, medium: Medium, *, quick_seconds: float) -> None:
        self.trouble = DiskTrouble()
        self.power_fails = False
        """While it is true a commit is torn."""
        self.kept: Callable[[Sequence[Batch]], None]
        self._world = world
        self._medium = medium
        self._quick_seconds = quick_seconds

    def commit_seconds(self) -> float:
        """Draw how long a commit takes."""
        slow = self.trouble.slow_until > self._world.now
        return self._world.soon(self.trouble.slow_seconds if slow else self._quick_seconds)

    def load(self) -> Loaded:
        """Return all that is kept."""
        return self._medium.load()

    def save(self, batches: Sequence[Batch]) -> None:
        """Keep all or none."""
        self._fail_if_due()
        if self.power_fails:
            self._medium.save_torn(batches)
            raise StoreError("the power failed")
        self._medium.save(batches)
        self.kept(batches)

    def probe(self) -> None:
        """Raise while nothing can be saved."""
        self._fail_if_due()

    def backup(self, target: Path, *, overwrite: bool = False) -> None:
        """Nobody asks for it here."""
        raise NotImplementedError(target)

    def close(self) -> None:
        """A process that crashes closes nothing."""

    def crash(self) -> None:
        """The process is gone."""
        self._medium.crash()

    def _fail_if_due(self) -> None:
        if self.trouble.full_until > self._world.now:
            raise StoreError("the disk is full")
        if self.trouble.fails_next:
            self.trouble.fails_next -= 1
            raise StoreError("the disk failed once")
