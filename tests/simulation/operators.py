"""Operators: they drain and resume, cordon and uncordon, forget. Each asks once more where no answer came."""

from collections.abc import Callable

from gpu_agent.registry.events import (
    Command,
    ControlAsked,
    CordonAsked,
    DrainAsked,
    RemovalAsked,
    ResumeAsked,
)
from tests.simulation.desk import Asking, Desk
from tests.simulation.scene import Scene


class Operators:
    """Wish things of nodes that they know of."""

    def __init__(self, scene: Scene, desk: Desk) -> None:
        self._scene, self._desk = scene, desk

    def drain_or_resume(self) -> None:
        """Empty a node, or take one back."""
        dice = self._scene.world.dice
        seconds = dice.choice((None, 0.0, 5.0, 60.0))
        if dice.random() < 1 / 2:
            self._wish("drains", lambda node: lambda ref: DrainAsked(ref, node, seconds, "works on it"))
        else:
            self._wish("resumes", lambda node: lambda ref: ResumeAsked(ref, node))

    def cordon_or_uncordon(self) -> None:
        """Close a node to new jobs, or open it."""
        reason = self._scene.world.dice.choice((None, None, "looks odd", ""))
        verb = "uncordons" if reason is None else "cordons"
        self._wish(verb, lambda node: lambda ref: CordonAsked(ref, node, reason))

    def order(self) -> None:
        """Have a node register again, or probe."""
        command = self._scene.world.dice.choice(tuple(Command))
        self._wish(f"orders {command} of", lambda node: lambda ref: ControlAsked(ref, node, command))

    def forget(self) -> None:
        """Let a node's record go."""
        self._wish("forgets", lambda node: lambda ref: RemovalAsked(ref, node))

    def _wish(self, verb: str, about: Callable[[str], Asking]) -> None:
        known = self._known()
        if known:
            node_id = self._scene.world.dice.choice(known)
            self._scene.world.say("operator", f"{verb} {node_id}")
            self._desk.ask(about(node_id))

    def _known(self) -> list[str]:
        return (
            sorted(record.node_id for record in self._scene.records()) if self._scene.registry.running else []
        )
