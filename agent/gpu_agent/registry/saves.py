"""Saves in flight, and what undoes them when the store fails. Goes away with issue item 2."""

from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass, replace
from typing import Any, Protocol, TypeVar, cast

from gpu_agent.registry.actions import (
    Action,
    Answer,
    Change,
    DocumentKind,
    Level,
    LogEvent,
    Refusal,
    Save,
    SendStatus,
)
from gpu_agent.registry.claims import claim_lost_event
from gpu_agent.registry.job import Claim
from gpu_agent.registry.node import NodeRecord, Transition
from gpu_agent.registry.quoting import sentence
from gpu_agent.registry.status import House
from gpu_agent.registry.step import STATUS_CHANGED, Key, Step, Was
from gpu_agent.registry.tokens import Token
from gpu_agent.wire.codes import ErrorCode, ReasonCode

# One save that the store has not answered yet: what it holds, and what of it an earlier failure changes.
#
# Keeps no order and undoes nothing: that is `saves`'.


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
    stands: Mapping[Key, LogEvent] = field(default_factory=dict)
    """What merely happened beside a request and is not undone with it, and how it is noted."""
    again: bool = False
    """True where it holds what could not be kept before, and so goes before what waits since."""
    void: set[str] = field(default_factory=set)
    """Nodes that an earlier save had made or spared, and that are as they were before that failed."""

    entrusted: dict[Key, LogEvent] = field(default_factory=dict)
    """What ends only now because of this, and how that is noted: it was not to end otherwise after all."""

    def entrust(self, key: Key, before: Was, note: LogEvent) -> None:
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
        if kind is DocumentKind.NODE and before is None:
            self.void.add(name)
        for states in (self.before, self.after):
            if key in states:
                states[key] = taken_back(before, after, states[key])


# Saves in flight: what each holds, and what becomes of it when the store cannot keep it (§4).
#
# A request that could not be saved is undone and refused; what was saved on top of it meanwhile is
# saved again. A verdict of the registry's own cannot be undone (a silent node is silent whatever the
# disk says): it stands, is told to no one, and is saved again until the store keeps it. What follows upon
# one that waits waits behind it, or is refused where somebody asks. Writes no documents itself.


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
            if isinstance(action, SendStatus):
                key = (DocumentKind.NODE, action.node_id)
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
        moves: list[LogEvent] = []
        for key, before in lost.before.items():
            after = lost.after[key]
            gone = after is not None and self._undo.as_it_is(key) is None
            if key[0] is DocumentKind.NODE and key[1] in lost.void:
                continue
            moves += self._moves_that_stand(key, save, lost)
            self._undo.put_back(key, before, after, step=undoing)
            if isinstance(before, Claim) and self._undo.as_it_is(key) is None:
                self._entrust(before, save)
            for later in self._later(key, save):
                later.take_out(key, before, after)
                if gone and key[0] is DocumentKind.NODE:
                    later.void.add(key[1])  # it let go of what has come back
                undoing.keys[key] = None  # it holds what is taken back, and may be kept
        step.touched.update(undoing.touched)
        told = (*lost.stands.values(), *moves, *undoing.notes, *undoing.told)
        return OpenSave(tuple(undoing.keys), told=told)

    def _moves_that_stand(self, key: Key, save: int, lost: OpenSave) -> list[LogEvent]:
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
            if isinstance(note, LogEvent)
            and note.event == STATUS_CHANGED
            and note.fields["node_id"] == key[1]
        ]

    def _entrust(self, claim: Claim, save: int) -> None:
        """Leave a claim whose node has been let go meanwhile to that: where it fails, both come back."""
        node = (DocumentKind.NODE, claim.node_id)
        for later in self._later(node, save):
            if later.lets_go(node):
                later.entrust(
                    (DocumentKind.CLAIM, claim.job_id), claim, claim_lost_event(claim, ReasonCode.REMOVED)
                )

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
    if isinstance(action, SendStatus):
        return action.node_id
    if isinstance(action, LogEvent):
        named = action.fields.get("node_id")
        return named if isinstance(named, str) else None
    return None


# What the store could not keep and must keep yet: verdicts, and what is told of them once they are kept.
#
# Given out in order, a part at a time: after an outage the whole fleet may wait. What waits is bounded,
# however
# long the store fails: a thing waits once, however often it changed, and the oldest words go first. A
# status
# that is out of date by the time it could be told is not told.


MOST_AT_ONCE = 256
"""Things that are given out at once: some 10 ms of writing documents."""

MOST_WORDS = 10_000
"""Notes and messages that wait for a store which keeps nothing; the oldest go first."""


@dataclass(slots=True)
class _Unkept:
    keys: tuple[Key, ...]
    told: tuple[Action, ...]


class UnkeptQueue:
    """What waits to be kept."""

    def __init__(self) -> None:
        self._queue: deque[_Unkept] = deque()
        self._keys = Counter[Key]()
        self._words = self._wordless = 0
        self._newest: dict[object, SendStatus | None] = {}
        """By node: the last status that waits to be told; None where it was given another since."""

    def __len__(self) -> int:
        return len(self._queue)

    def holds(self, key: Key) -> bool:
        """Say whether a thing waits to be kept."""
        return key in self._keys

    def add(self, keys: tuple[Key, ...], told: Sequence[Action], *, first: bool = False) -> None:
        """Let these things wait, and what is told once they are kept; `first` where they waited before."""
        lasting = tuple(action for action in told if not (isinstance(action, SendStatus) and action.periodic))
        for node_id, status in _newest_of(lasting).items():
            if first:
                self._newest.setdefault(node_id, status)
            else:
                self._newest[node_id] = status
        self._append(_Unkept(keys, lasting))
        if first:
            self._queue.rotate(1)
        if self._words > 2 * MOST_WORDS or self._wordless > 2 * len(self._keys) + MOST_AT_ONCE:
            self._tidy_up()

    def take(self) -> tuple[list[Key], list[Action]]:
        """Give out the first of what waits, and what is told of it."""
        keys: dict[Key, None] = {}
        told: list[Action] = []
        while self._queue and len(keys) < MOST_AT_ONCE:
            one = self._queue.popleft()
            self._keys.subtract(one.keys)
            for key in one.keys:
                keys[key] = None
                if not self._keys[key]:
                    del self._keys[key]
            self._words -= len(one.told)
            self._wordless -= not one.told
            told += (action for action in one.told if self._is_news(action))
        if not self._queue:
            self._newest.clear()
        return list(keys), told

    def _append(self, one: _Unkept) -> None:
        self._queue.append(one)
        self._keys.update(one.keys)
        self._words += len(one.told)
        self._wordless += not one.told

    def _is_news(self, action: Action) -> bool:
        if not isinstance(action, SendStatus):
            return True
        if self._newest.get(action.node_id) is not action:
            return False
        del self._newest[action.node_id]
        return True

    def _tidy_up(self) -> None:
        """Keep the newest words, and every thing once."""
        kept: list[_Unkept] = []
        seen: set[Key] = set()
        words = 0
        for one in reversed(self._queue):
            words += len(one.told)
            told = one.told if words <= MOST_WORDS else ()
            if told or not seen.issuperset(one.keys):
                kept.append(_Unkept(one.keys, told))
            seen.update(one.keys)
        self._queue.clear()
        self._keys.clear()
        self._words = self._wordless = 0
        for one in reversed(kept):
            self._append(one)


def _newest_of(told: Sequence[Action]) -> dict[object, SendStatus | None]:
    newest: dict[object, SendStatus | None] = {}
    for action in told:
        if isinstance(action, SendStatus):
            newest[action.node_id] = action
        elif isinstance(action, LogEvent) and action.event == STATUS_CHANGED:
            newest[action.fields.get("node_id")] = None
    return newest


# Takes back what was asked of a node, a claim or a token and could not be saved (§4).
#
# What happened besides, such as beats and lost connections, is not undone, and neither is what the
# registry has decided since: where a status stands on a wish that is gone, the node is led on from there
# at its next look.


class Undo:
    """Undoes what was decided, told to no one, and could not be kept."""

    def __init__(self, house: House) -> None:
        self._house = house

    def as_it_is(self, key: Key) -> Was:
        """Return how a thing is now, as a copy that stays so."""
        kind, name = key
        if kind is DocumentKind.CLAIM:
            return self._house.dispatch.claim_of(name)
        if kind is DocumentKind.TOKEN:
            return self._house.tokens.by_id.get(name)
        record = self._house.roster.records.get(name)
        return None if record is None else replace(record)

    def put_back(self, key: Key, before: Was, after: Was, *, step: Step) -> None:
        """Take back what led from `before` to `after`; None stands for what did not exist."""
        kind, name = key
        if kind is DocumentKind.CLAIM:
            self._claim(name, before, after)
        elif kind is DocumentKind.TOKEN:
            self._token(name, before, after)
        else:
            self._node(name, before, after, step=step)
            step.touched[name] = None

    def _claim(self, job_id: str, before: Was, after: Was) -> None:
        dispatch = self._house.dispatch
        if before is None and isinstance(after, Claim):
            self._house.claiming.disown(after)
        if dispatch.claim_of(job_id) != after:
            return
        if isinstance(before, Claim):
            dispatch.attach(before)
        else:
            dispatch.release(job_id)

    def _token(self, token_id: str, before: Was, after: Was) -> None:
        tokens = self._house.tokens
        present = tokens.by_id.get(token_id)
        if before is None:
            tokens.drop(token_id)
        elif isinstance(before, Token) and isinstance(after, Token) and present is not None:
            tokens.put(taken_back(before, after, present))

    def _node(self, node_id: str, before: Was, after: Was, *, step: Step) -> None:
        house = self._house
        record = house.roster.records.get(node_id)
        if not isinstance(before, NodeRecord):
            if record is not None:
                house.claiming.lose(record, step)
                house.roster.drop(record)
                house.dispatch.forget(node_id)
                house.claiming.forget(node_id)
        elif record is None:  # let go by this, or on the strength of it
            self._bring_back(before)
        elif isinstance(after, NodeRecord):
            self._take_back(record, before, after)

    def _bring_back(self, before: NodeRecord) -> None:
        connection, before.connection = before.connection, None
        self._house.roster.add(before)
        self._reconnect(before, connection)
        self._house.dispatch.refresh(before)

    def _take_back(self, record: NodeRecord, before: NodeRecord, after: NodeRecord) -> None:
        for name, part in parts_of_node(before, after, record).items():
            setattr(record, name, part)
        if record.connection in (after.connection, None):
            self._reconnect(record, before.connection)
        self._house.dispatch.refresh(record)

    def _reconnect(self, record: NodeRecord, connection: int | None) -> None:
        """Let the connection of before stand for the node again, if it is still there."""
        roster = self._house.roster
        if record.connection == connection:
            return
        if record.connection is not None:
            roster.unbind(record.connection)
        if connection is not None and roster.recall(connection):
            roster.bind(record, connection)


# What of a decision can be taken back once other things have happened on top of it.
#
# A part that is still as the decision left it goes back to how it was; a part that has changed since
# stays. A node's status and all that belongs to it is one part. Changes nothing itself.


_Part = TypeVar("_Part")

_STATUS = ("status", "previous_status", "reason_code", "reason", "since", "story")
_FACTS = frozenset({"claims", "connection", "heard_at", "suspected", "next_status_at", *_STATUS})
"""What no decision owns: dispatch has the claims, the roster the connection, and the rest happened."""


def taken_back(before: _Part, after: _Part, present: _Part) -> _Part:
    """Return the present state without what led from `before` to `after`."""
    if present is after or present == after:
        return before
    if isinstance(present, NodeRecord):
        if isinstance(before, NodeRecord) and isinstance(after, NodeRecord):
            parts = parts_of_node(before, after, present)
            if present.connection == after.connection:
                parts["connection"] = before.connection
            return cast("_Part", replace(present, **parts))
        return present
    if is_dataclass(present) and type(before) is type(after) is type(present):
        return cast("_Part", replace(cast("Any", present), **_changed(before, after, present)))
    return present


def parts_of_node(before: NodeRecord, after: NodeRecord, present: NodeRecord) -> dict[str, Any]:
    """Return the parts of a node that go back to how they were, by their names."""
    parts = {name: part for name, part in _changed(before, after, present).items() if name not in _FACTS}
    if not has_moved(after, present):
        parts |= {name: getattr(before, name) for name in _STATUS}
    return parts


def has_moved(after: NodeRecord, present: NodeRecord) -> bool:
    """Say whether a node has been given a status since."""
    return present.story != after.story or present.status != after.status


def _changed(before: object, after: object, present: object) -> dict[str, Any]:
    names = [one.name for one in fields(cast("Any", present))]
    return {
        name: back
        for name in names
        if (back := taken_back(getattr(before, name), getattr(after, name), getattr(present, name)))
        is not getattr(present, name)
    }
