"""One save that the store has not answered yet: what it holds, and what of it an earlier failure changes.

Keeps no order and undoes nothing: that is `saves`'.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from gpu_agent.registry.actions import Action, Kept, Note
from gpu_agent.registry.record import NodeRecord, Transition
from gpu_agent.registry.reversal import taken_back
from gpu_agent.registry.step import Key, Was


@dataclass(slots=True)
class OpenSave:
    """What a step wants kept, and what waits for it."""

    keys: tuple[Key, ...]
    before: dict[Key, Was] = field(default_factory=dict)
    after: dict[Key, Was] = field(default_factory=dict)
    """What a request led from, and to."""
    refusals: tuple[Action, ...] = ()
    told: tuple[Action, ...] = ()
    """Notes and messages that wait for the save, in order."""
    stands: Mapping[Key, Note] = field(default_factory=dict)
    """What merely happened beside a request and is not undone with it, and how it is noted."""
    again: bool = False
    """True where it holds what could not be kept before, and so goes before what waits since."""
    void: set[str] = field(default_factory=set)
    """Nodes that an earlier save had made or spared, and that are as they were before that failed."""

    entrusted: dict[Key, Note] = field(default_factory=dict)
    """What ends only now because of this, and how that is noted: it was not to end otherwise after all."""

    def entrust(self, key: Key, before: Was, note: Note) -> None:
        """Make an end of one thing more, as long as this is not undone."""
        self.before[key], self.after[key] = before, None
        self.entrusted[key] = note

    def lets_go(self, key: Key) -> bool:
        """Say whether a request made an end of a thing."""
        return self.before.get(key) is not None and self.after.get(key) is None

    def moves_of(self, key: Key) -> list[Transition]:
        """Find the moves of a node that a request has made, which are undone with it."""
        before, after = self.before.get(key), self.after.get(key)
        if not isinstance(before, NodeRecord) or not isinstance(after, NodeRecord):
            return []
        return [move for move in after.story if move not in before.story]

    def take_out(self, key: Key, before: Was, after: Was) -> None:
        """Lead from and to what this would have, had an earlier change never been."""
        kind, name = key
        if kind is Kept.NODE and before is None:
            self.void.add(name)
        for states in (self.before, self.after):
            if key in states:
                states[key] = taken_back(before, after, states[key])
