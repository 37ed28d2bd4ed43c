"""Saves in flight: what each holds, and what becomes of it when the store cannot keep it (§4).

A request that could not be saved is undone and refused. A verdict of the registry's own
cannot be undone (a silent node is silent whatever the disk says): it stands, is told to
no one, and is saved again until the store keeps it. Writes no documents itself.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from gpu_agent.registry.actions import Action, Change, Level, Note, Save, TellStatus
from gpu_agent.registry.step import Key, Step, Was

MOST_WAITING_NOTES = 10_000
"""Notes that wait for a store which keeps nothing; the oldest go first."""

Write = Callable[[Key, float], Change]
"""Writes the change that keeps one thing as it is now."""

PutBack = Callable[[Key, Was, Step], None]
"""Restores one thing to how it was."""


@dataclass(slots=True)
class _Open:
    """A save that the store has not answered yet."""

    keys: tuple[Key, ...]
    before: dict[Key, Was]
    refusals: tuple[Action, ...]
    told: tuple[Action, ...]
    """Notes and messages that wait for the save, in order."""


class Saves:
    """Numbers the saves, and remembers each until the store has answered."""

    def __init__(self, *, write: Write, put_back: PutBack, retry_seconds: float) -> None:
        self._write = write
        self._put_back = put_back
        self._retry_seconds = retry_seconds
        self._last = 0
        self._open: dict[int, _Open] = {}
        self._again: list[_Open] = []
        self._again_at: float | None = None

    @property
    def deadline(self) -> float | None:
        """When a verdict that could not be kept is to be saved again."""
        return self._again_at

    def sealed(self, step: Step) -> list[Action]:
        """Put a step's consequences in order: at most one save, and only then what is noted and told.

        A note is told too: it joins the log and the node's history, where operators read it.
        """
        consequences = (*step.notes, *step.told)
        if not step.keys:
            return list(consequences)
        keys = tuple(step.keys)
        self._last += 1
        self._open[self._last] = _Open(keys, step.before, tuple(step.refusals), consequences)
        return [Save(self._last, tuple(self._write(key, step.now) for key in keys)), *consequences]

    def kept(self, save: int) -> None:
        """Forget how things were before every save up to this one."""
        for number in [number for number in self._open if number <= save]:
            del self._open[number]

    def failed(self, save: int, detail: str, step: Step) -> None:
        """Undo and refuse what was asked for; plan to save a verdict again."""
        lost = self._open.pop(save, None)
        if lost is None:
            return
        step.note("save_failed", {"save": save, "detail": detail}, Level.WARNING)
        if lost.refusals:
            self._undo(lost, step)
            for refusal in lost.refusals:
                step.tell(refusal)
            besides = tuple(key for key in lost.keys if key not in lost.before)
            lost = _Open(besides, {}, (), ())
        if lost.keys:
            self._again.append(lost)
            self._again_at = self._again_at or step.now + self._retry_seconds

    def retry(self, step: Step) -> None:
        """Let a step save again, as they stand by then, the verdicts that could not be kept.

        Part of every wake, due or not: no periodic status may tell what is not kept.
        """
        again, self._again, self._again_at = self._again, [], None
        told_first = list[Action]()
        for one in again:
            step.keys.update(dict.fromkeys(one.keys))
            told_first += one.told
        step.told[:0] = _still_news(told_first)

    def _undo(self, lost: _Open, step: Step) -> None:
        for key, before in lost.before.items():
            later = next((one for one in self._open.values() if key in one.keys), None)
            if later is None:
                self._put_back(key, before, step)
            elif key in later.before:
                # The later save holds this one's change too: whether it is kept decides for both.
                later.before[key] = before


def _still_news(told: Sequence[Action]) -> list[Action]:
    """Leave out what went out of date before it could be told: statuses, and notes beyond a bound.

    Periodic statuses come again anyway; a store that fails for hours must not fill the memory.
    """
    newest = {one.connection: one for one in told if isinstance(one, TellStatus) and not one.periodic}
    news = [one for one in told if not isinstance(one, TellStatus) or newest.get(one.connection) is one]
    notes = [one for one in news if isinstance(one, Note)]
    forgotten = set(map(id, notes[:-MOST_WAITING_NOTES]))
    return [one for one in news if id(one) not in forgotten]
