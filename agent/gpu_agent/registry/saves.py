"""Saves in flight: what each holds, and what becomes of it when the store cannot keep it (§4).

A request that could not be saved is undone and refused; what was saved on top of it meanwhile is
saved again. A verdict of the registry's own cannot be undone (a silent node is silent whatever the
disk says): it stands, is told to no one, and is saved again until the store keeps it. What follows upon
one that waits waits behind it, or is refused where somebody asks. Writes no documents itself.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import Protocol

from gpu_agent.registry.actions import (
    Action,
    Answer,
    Change,
    Kept,
    Level,
    Note,
    Refusal,
    Save,
    TellStatus,
)
from gpu_agent.registry.claiming import lost_note
from gpu_agent.registry.job import Claim
from gpu_agent.registry.open_save import OpenSave
from gpu_agent.registry.quoting import sentence
from gpu_agent.registry.record import NodeRecord
from gpu_agent.registry.step import STATUS_CHANGED, Key, Step, Was
from gpu_agent.registry.unkept import UnkeptQueue
from gpu_agent.wire.codes import ErrorCode, ReasonCode

_BUSY = Refusal(
    ErrorCode.REGISTRY_BUSY, "the registry could not save what this builds on just now: ask again in a moment"
)

Write = Callable[[Key, float], Change]
"""Writes the change that keeps one thing as it is now."""


class TakesBack(Protocol):
    """Who undoes decisions."""

    def as_it_is(self, key: Key) -> Was:
        """Return how a thing is now, as a copy that stays so."""

    def put_back(self, key: Key, before: Was, after: Was, *, step: Step) -> None:
        """Take back what led from `before` to `after`."""


class Saves:
    """Numbers the saves, and remembers each until the store has answered."""

    def __init__(self, *, write: Write, undo: TakesBack, retry_seconds: float) -> None:
        self._write = write
        self._undo = undo
        self._retry_seconds = retry_seconds
        self._last = 0
        self._open: dict[int, OpenSave] = {}
        self._holding: dict[Key, dict[int, None]] = {}
        """By what they hold: the numbers of the open saves, in order."""
        self._unkept = UnkeptQueue()
        self._again_at: float | None = None
        self._retrying = False
        self._retold: list[Action] = []
        """What a step tells first, of verdicts that it saves again."""
        self._problem = ""
        """Why the store could not keep the last that it did not."""
        self._works = True
        """False while the last that the store was given is known not to be kept."""

    @property
    def deadline(self) -> float | None:
        """When verdicts that could not be kept are to be saved again."""
        return self._again_at

    @property
    def goes_on(self) -> bool:
        """True while the store keeps again what it could not, and more of it waits."""
        return self._works and len(self._unkept) > 0

    def sealed(self, step: Step) -> list[Action]:
        """Put a step's consequences in order: at most one save, and only then what is noted and told.

        A note is told too: it joins the log and the node's history, where operators read it.
        """
        if self._unkept or self._holding:
            self._keep_first(step)
        if not self._retrying:
            self._put_off(step)
        retold, self._retold = self._retold, []
        consequences = (*retold, *step.notes, *step.told)
        if not step.keys:
            return list(consequences)
        keys = tuple(step.keys)
        self._last += 1
        one = OpenSave(keys, told=consequences, again=self._retrying, stands=step.stands)
        self._retrying = False
        if step.refusals:
            one.refusals, one.before = tuple(step.refusals), step.before
            one.after = self._as_it_is(step)
        self._open[self._last] = one
        for key in keys:
            self._holding.setdefault(key, {})[self._last] = None
        return [Save(self._last, tuple(self._write(key, step.now) for key in keys)), *consequences]

    def admitted(self, step: Step) -> Step:
        """Return a step, or where it builds on what could not be kept yet, its refusals instead."""
        if not (step.refusals and self._waits(step)):
            return step
        refused = Step(step.now, trace_id=step.trace_id)
        refused.touched.update(step.touched)
        for refusal in step.refusals:
            refused.tell(_because(refusal, self._problem))
        asked = OpenSave(tuple(step.keys), step.before, after=self._as_it_is(step), stands=step.stands)
        besides = self._taken_back(self._last, asked, refused)
        self._unkept.add(besides.keys, besides.told)
        return refused

    def kept(self, save: int) -> None:
        """Forget how things were before every save up to this one."""
        while self._open:
            number = next(iter(self._open))
            if number > save:
                break
            one = self._close(number)
            if one is not None and one.entrusted:
                self._unkept.add(tuple(one.entrusted), tuple(one.entrusted.values()))
        self._works = True
        if self._unkept:
            self._again_at = 0.0

    def failed(self, save: int, detail: str, step: Step) -> None:
        """Undo and refuse what was asked for; plan to save a verdict again."""
        lost = self._close(save)
        if lost is None:
            return
        self._problem = detail
        step.note("save_failed", {"save": save, "detail": detail}, Level.DEBUG)
        if not lost.refusals:
            step.told += self._busy(lost.told)
            lost.told = tuple(
                action
                for action in lost.told
                if _node_of(action) not in lost.void and not isinstance(action, Answer)
            )
            self._save_again(lost, step)
            return
        for refusal in lost.refusals:
            step.tell(_because(refusal, detail))
        self._save_again(self._taken_back(save, lost, step), step)

    def retry(self, step: Step) -> None:
        """Let a step save again, as they stand by then, verdicts that could not be kept: a part of them.

        The next part follows once this one is kept, or after a while where it is not.
        """
        if self._again_at is None or step.now < self._again_at:
            return
        self._put_off(step)
        self._again_at, self._retrying = None, True
        keys, self._retold = self._unkept.take()
        step.keys.update(dict.fromkeys(keys))

    def _keep_first(self, step: Step) -> None:
        """Nobody is told the status of a node that is not known to be kept: it is kept with this step."""
        for action in step.told:
            if isinstance(action, TellStatus):
                key = (Kept.NODE, action.node_id)
                if key in self._holding or self._unkept.holds(key):
                    step.keys[key] = None

    def _waits(self, step: Step) -> bool:
        """Say whether something that a step saves waits to be kept since before."""
        return bool(self._unkept) and any(self._unkept.holds(key) for key in step.keys)

    def _put_off(self, step: Step) -> None:
        """Let verdicts wait behind those that they follow upon: nothing is told out of its order."""
        if self._waits(step):
            told = (*step.notes, *step.told)
            self._unkept.add(tuple(step.keys), [one for one in told if not isinstance(one, Answer)])
            step.keys.clear()
            step.notes.clear()
            step.told = self._busy(told)

    def _busy(self, told: Iterable[Action]) -> list[Action]:
        """Tell those who wait for an answer that it is not to be had yet."""
        waiting = (action for action in told if isinstance(action, Answer))
        return [_because(Answer(one.ref, _BUSY), self._problem) for one in waiting]

    def _as_it_is(self, step: Step) -> dict[Key, Was]:
        return {key: self._undo.as_it_is(key) for key in step.before}

    def _taken_back(self, save: int, lost: OpenSave, step: Step) -> OpenSave:
        """Undo a request; what must be saved for that waits, so that the refusal need not."""
        undoing = Step(step.now)
        undoing.keys.update(
            dict.fromkeys(key for key in lost.keys if key not in lost.before or key in lost.stands)
        )
        moves: list[Note] = []
        for key, before in lost.before.items():
            after = lost.after[key]
            gone = after is not None and self._undo.as_it_is(key) is None
            if key[0] is Kept.NODE and key[1] in lost.void:
                continue
            moves += self._moves_that_stand(key, save, lost)
            self._undo.put_back(key, before, after, step=undoing)
            if isinstance(before, Claim) and self._undo.as_it_is(key) is None:
                self._entrust(before, save)
            for later in self._later(key, save):
                later.take_out(key, before, after)
                if gone and key[0] is Kept.NODE:
                    later.void.add(key[1])  # it let go of what has come back
                undoing.keys[key] = None  # it holds what is taken back, and may be kept
        step.touched.update(undoing.touched)
        told = (*lost.stands.values(), *moves, *undoing.notes, *undoing.told)
        return OpenSave(tuple(undoing.keys), told=told)

    def _moves_that_stand(self, key: Key, save: int, lost: OpenSave) -> list[Note]:
        """Find a request's notes of moves that a verdict has gone on from: its history begins with them."""
        after, present = lost.after[key], self._undo.as_it_is(key)
        if not isinstance(after, NodeRecord) or not isinstance(present, NodeRecord):
            return []
        since = [move for move in present.story if move not in after.story]
        if not since or any(since[0] in later.moves_of(key) for later in self._later(key, save)):
            return []
        return [
            note
            for note in lost.told
            if isinstance(note, Note) and note.event == STATUS_CHANGED and note.fields["node_id"] == key[1]
        ]

    def _entrust(self, claim: Claim, save: int) -> None:
        """Leave a claim whose node has been let go meanwhile to that: where it fails, both come back."""
        node = (Kept.NODE, claim.node_id)
        for later in self._later(node, save):
            if later.lets_go(node):
                later.entrust((Kept.CLAIM, claim.job_id), claim, lost_note(claim, ReasonCode.REMOVED))

    def _later(self, key: Key, save: int) -> Iterator[OpenSave]:
        return (self._open[number] for number in self._holding.get(key, ()) if number > save)

    def _save_again(self, one: OpenSave, step: Step) -> None:
        self._works = False
        if one.keys:
            self._unkept.add(one.keys, one.told, first=one.again)
        if self._unkept and (self._again_at is None or self._again_at <= step.now):
            self._again_at = step.now + self._retry_seconds

    def _close(self, save: int) -> OpenSave | None:
        one = self._open.pop(save, None)
        for key in () if one is None else one.keys:
            holding = self._holding[key]
            del holding[save]
            if not holding:
                del self._holding[key]
        return one


def _because(refusal: Action, detail: str) -> Action:
    """Say to operators and schedulers why it could not be kept; a node has no business with our disk."""
    if not isinstance(refusal, Answer) or not isinstance(refusal.result, Refusal):
        return refusal
    code, message = refusal.result.code, refusal.result.message
    return Answer(refusal.ref, Refusal(code, sentence(f"{message}; {detail}")))


def _node_of(action: Action) -> str | None:
    if isinstance(action, TellStatus):
        return action.node_id
    if isinstance(action, Note):
        named = action.fields.get("node_id")
        return named if isinstance(named, str) else None
    return None
