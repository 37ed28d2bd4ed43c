"""A drain that a machine's owner asked for is kept by its agent until he, or an operator, takes it back."""

from collections.abc import Sequence

from gpu_agent.registry.actions import Action
from gpu_agent.registry.events import Event, RemovalAsked, ResumeAsked
from gpu_agent.session.story import State
from tests.simulation.broken import Invariant, hold
from tests.simulation.scene import Scene
from tests.simulation.watching import Mover, Watch

_ENDING = (State.LEAVING, State.STOPPED)
"""An agent that is told to stop empties its machine anyhow, and has nobody to keep a wish for."""


class OwnersWatch(Watch):
    """Keeps account of what owners asked for."""

    def __init__(self, scene: Scene) -> None:
        self._scene = scene
        self._since: dict[str, tuple[int | None, float]] = {}
        """The drain that was asked for last of each agent, and when it was first seen."""
        self._taken_back: dict[str, float] = {}
        """When an operator last did, by node."""
        self._over: dict[str, int] = {}
        """The drain of each agent that an operator took back: it stays so under another id."""

    def decided(self, event: Event | None, actions: Sequence[Action]) -> None:
        if isinstance(event, ResumeAsked | RemovalAsked):
            self._taken_back[event.node_id] = self._scene.world.now

    def agent_moved(self, agent: Mover) -> None:
        if agent.wish is None or agent.machine is None:
            return
        wish, since = self._since.get(agent.name, (None, 0.0))
        if wish != agent.wish:
            since = self._scene.world.now
            self._since[agent.name] = agent.wish, since
        view = agent.machine.view
        if view.drain_reason is not None or view.state in _ENDING:
            return
        if self._taken_back.get(view.node_id or "", -1.0) >= since:
            self._over[agent.name] = agent.wish
        family = [one for one in self._scene.agents if one.family == agent.family]
        twins = len(family) > 1  # registers under the same id
        kept = twins or self._over.get(agent.name) == agent.wish
        hold(Invariant.OWN_DRAIN_KEPT, kept, f"{agent.name} forgot its drain:\n{agent.machine.story()}")
