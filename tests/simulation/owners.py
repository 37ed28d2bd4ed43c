"""Owners: they drain their machines, take them back, have them probed, and say where workers are reached."""

from dataclasses import replace

from gpu_agent.session.events import DrainAsked, OwnerChanged, RefreshAsked, ResumeAsked
from tests.simulation.scene import Scene


class Owners:
    """Ask things of agents that run, on the machine itself."""

    def __init__(self, scene: Scene) -> None:
        self._scene = scene

    def ask(self) -> None:
        """Have one agent do something."""
        dice = self._scene.world.dice
        agent = dice.choice(self._scene.agents)
        if not agent.listens:
            return
        match dice.choice(("drain", "drain", "resume", "refresh", "endpoint")):
            case "drain":
                agent.told(DrainAsked("its owner works on it", dice.choice((None, 0.0, 5.0, 60.0))))
            case "resume":
                agent.told(ResumeAsked())
            case "refresh":
                agent.told(RefreshAsked())
            case _:
                agent.box.owner = replace(
                    agent.box.owner, endpoint=f"http://{agent.name}:{dice.choice((9000, 9001))}"
                )
                agent.told(OwnerChanged())
                agent.look()

    def take_back(self) -> None:
        """Have every agent that was drained work again."""
        for agent in self._scene.agents:
            if agent.wish is not None and agent.listens:
                agent.told(ResumeAsked())
