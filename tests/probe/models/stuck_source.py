"""Model sources in memory: one that can be made to hang, and one that costs time."""

import threading
from pathlib import Path

from gpu_agent.probe.models.source import Listing, Reading, Root, Unit
from gpu_agent.wire.inventory import Model
from tests.waiting import patience


class StuckSource:
    """A source with one model or more; `hold` makes it hang until `release` is set."""

    name = "held"

    def __init__(self, path: str, *models: str) -> None:
        """`models` are what is found; the path need not exist."""
        self.paths = (Path(path),)
        self.models = models or ("found",)
        self.release = threading.Event()
        self.release.set()
        self.looks = 0
        self.read_names: list[str] = []

    def hold(self) -> None:
        """Answer no more."""
        self.release.clear()

    def units(self) -> Listing:
        """List them, once it may."""
        self.looks += 1
        self.release.wait(patience(30))
        root = Root(str(self.paths[0]), None)
        return Listing(tuple(Unit(root, f"{root.path}/{name}", name) for name in self.models))

    def read(self, unit: Unit) -> Reading:
        """One model."""
        self.read_names.append(unit.name)
        return Reading((Model(model_id=unit.name, version="1", kind="emotion", source=self.name),))


class Clock:
    """A clock that the test moves."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class CostlySource(StuckSource):
    """One of which each model takes a second to read."""

    def __init__(self, clock: Clock, path: str, *models: str) -> None:
        super().__init__(path, *models)
        self._clock = clock

    def read(self, unit: Unit) -> Reading:
        """One model, a second later."""
        self._clock.now += 1
        return super().read(unit)
