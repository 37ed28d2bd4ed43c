"""How operators and schedulers ask the registry: over a network, and again where no answer came.

An answer may be lost on its way back. Whoever asked then asks the same again, and must come to no harm by it.
"""

from collections.abc import Callable

from gpu_agent.registry.actions import Result
from gpu_agent.registry.events import Event
from tests.simulation.registry_side import RegistrySide
from tests.simulation.world import World

PATIENCE_SECONDS = 5.0
_LOST_ANSWERS = 0.03

Asking = Callable[[int], Event]
Then = Callable[[Result], None]


class Desk:
    """Carries requests to the registry and answers back."""

    def __init__(self, world: World, registry: RegistrySide) -> None:
        self._world = world
        self._registry = registry

    def ask(self, asking: Asking, then: Then | None = None, *, tries: int = 3) -> None:
        """Ask, so many times at most until an answer comes; `then` hears it, and nothing where none did."""
        self._world.after(self._way(), lambda: self._try(asking, then, tries))

    def _try(self, asking: Asking, then: Then | None, tries: int) -> None:
        answered = False

        def reply(result: Result) -> None:
            nonlocal answered
            if not answered and not self._world.chance(_LOST_ANSWERS):
                answered = True
                if then is not None:
                    self._world.after(self._way(), lambda: then(result))

        def look() -> None:
            if not answered and tries > 1:
                self.ask(asking, then, tries=tries - 1)

        self._registry.ask(asking, reply)
        if not answered:
            self._world.after(PATIENCE_SECONDS, look)

    def _way(self) -> float:
        return self._world.dice.uniform(0.001, 0.05)
