"""A registry whose store answers late, several saves at a time, as `gpu_agent.server` has it.

Each list of actions waits for its own save and for the lists before it. A save that fails takes
with it those that wait and hold the same things: they hold what is undone.
"""

from collections import deque
from collections.abc import Container, Sequence
from dataclasses import dataclass
from typing import Any

from gpu_agent.registry.actions import Action, DocumentKind, Save
from gpu_agent.registry.events import Saved, SaveFailed
from gpu_agent.registry.node import NodeRecord
from gpu_agent.registry.step import Key
from tests.registry.harness import Registry


@dataclass
class Course:
    save: Save | None
    rest: Sequence[Action]
    open: bool

    @property
    def keys(self) -> set[Key]:
        return set() if self.save is None else {(one.kind, one.key) for one in self.save.changes}


class SlowRegistry(Registry):
    """Keeps nothing until it is told to `answer`."""

    def __init__(self, **parts: Any) -> None:  # noqa: ANN401 - thresholds of many types
        self.courses: deque[Course] = deque()
        super().__init__(**parts)
        self.answer_all()

    @property
    def open(self) -> list[Course]:
        return [course for course in self.courses if course.open]

    def answer(self, count: int, *, fails: Container[int] = ()) -> None:
        """Let the store answer the oldest saves that wait, in one commit; `fails` are numbers of saves."""
        group = self.open[:count]
        failed: list[Course] = []
        spoilt: set[Key] = set()
        for course in self.open:
            assert course.save is not None
            if course.keys & spoilt or (course in group and course.save.save in fails):
                failed.append(course)
                spoilt |= course.keys
        for course in group:
            if course not in failed and course.save is not None:
                self.keep(course.save)
        for course in failed:
            self._answered(course, failed=True)
        for course in group:
            if course not in failed:
                self._answered(course, failed=False)
        self._tell()

    def answer_all(self) -> None:
        """Let the store keep all that waits, and what comes of it."""
        while self.open:
            self.answer(len(self.open))

    def agree(self) -> None:
        """Fail unless the store holds what the fleet does, figures of beats and times aside."""
        names = {(DocumentKind.NODE, record.node_id) for record in self.fleet.nodes()}
        names |= {(DocumentKind.CLAIM, claim.job_id) for claim in self.fleet.claims()}
        names |= {(DocumentKind.TOKEN, token.token_id) for token in self.fleet.tokens()}
        assert set(self.kept) == names
        for record in self.fleet.nodes():
            kept = self.kept[DocumentKind.NODE, record.node_id][0]
            for part in ("status", "reason_code", "epoch", "cordoned", "address"):
                assert kept[part] == getattr(record, part), (record.node_id, part)
            drain = kept["drain"]
            assert (drain and drain["reason"]) == (record.drain and record.drain.reason)  # type: ignore[index]
        for claim in self.fleet.claims():
            assert self.kept[DocumentKind.CLAIM, claim.job_id][0]["node_id"] == claim.node_id

    def _answered(self, course: Course, *, failed: bool) -> None:
        assert course.save is not None
        course.open = False
        if failed:
            course.rest = ()
        event = SaveFailed(course.save.save, "disk full") if failed else Saved(course.save.save)
        self._carry_out(list(self.fleet.handle(event, self.now)))

    def _carry_out(self, actions: list[Action]) -> list[Action]:
        if not actions:
            return []
        saves = [action for action in actions if isinstance(action, Save)]
        assert len(saves) <= 1
        rest = [action for action in actions if not isinstance(action, Save)]
        self.courses.append(Course(saves[0] if saves else None, rest, open=bool(saves)))
        return self._tell()

    def _tell(self) -> list[Action]:
        done: list[Action] = []
        while self.courses and not self.courses[0].open:
            done += self.courses.popleft().rest
        self.done += done
        return done


def numbers(registry: SlowRegistry) -> list[int]:
    """The saves that wait for their answer."""
    return [course.save.save for course in registry.open if course.save is not None]


def ready(registry: SlowRegistry) -> NodeRecord:
    registry.register()
    registry.answer_all()
    registry.beats(3)
    registry.answer_all()
    record = registry.node()
    assert record.status == "ready"
    return record
