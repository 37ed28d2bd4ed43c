"""A registry whose store answers late, several saves at a time, as `gpu_agent.server` has it.

Each list of actions waits for its own save and for the lists before it. A save that fails takes
with it those that wait and hold the same things: they hold what is undone.
"""

from collections import deque
from collections.abc import Container, Sequence
from dataclasses import dataclass
from typing import Any

from gpu_agent.registry.actions import Action, Kept, Save
from gpu_agent.registry.events import Saved, SaveFailed
from gpu_agent.registry.step import Key
from tests.registry.fleets import Registry


@dataclass
class Errand:
    save: Save | None
    rest: Sequence[Action]
    open: bool

    @property
    def keys(self) -> set[Key]:
        return set() if self.save is None else {(one.kind, one.key) for one in self.save.changes}


class SlowRegistry(Registry):
    """Keeps nothing until it is told to `answer`."""

    def __init__(self, **parts: Any) -> None:  # noqa: ANN401 - thresholds of many types
        self.errands: deque[Errand] = deque()
        super().__init__(**parts)
        self.answer_all()

    @property
    def open(self) -> list[Errand]:
        return [errand for errand in self.errands if errand.open]

    def answer(self, count: int, *, fails: Container[int] = ()) -> None:
        """Let the store answer the oldest saves that wait, in one commit; `fails` are numbers of saves."""
        group = self.open[:count]
        failed: list[Errand] = []
        spoilt: set[Key] = set()
        for errand in self.open:
            assert errand.save is not None
            if errand.keys & spoilt or (errand in group and errand.save.save in fails):
                failed.append(errand)
                spoilt |= errand.keys
        for errand in group:
            if errand not in failed and errand.save is not None:
                self.keep(errand.save)
        for errand in failed:
            self._answered(errand, failed=True)
        for errand in group:
            if errand not in failed:
                self._answered(errand, failed=False)
        self._tell()

    def answer_all(self) -> None:
        """Let the store keep all that waits, and what comes of it."""
        while self.open:
            self.answer(len(self.open))

    def agree(self) -> None:
        """Fail unless the store holds what the fleet does, figures of beats and times aside."""
        names = {(Kept.NODE, record.node_id) for record in self.fleet.nodes()}
        names |= {(Kept.CLAIM, claim.job_id) for claim in self.fleet.claims()}
        names |= {(Kept.TOKEN, token.token_id) for token in self.fleet.tokens()}
        assert set(self.kept) == names
        for record in self.fleet.nodes():
            kept = self.kept[Kept.NODE, record.node_id][0]
            for part in ("status", "reason_code", "epoch", "cordoned", "address"):
                assert kept[part] == getattr(record, part), (record.node_id, part)
            drain = kept["drain"]
            assert (drain and drain["reason"]) == (record.drain and record.drain.reason)  # type: ignore[index]
        for claim in self.fleet.claims():
            assert self.kept[Kept.CLAIM, claim.job_id][0]["node_id"] == claim.node_id

    def _answered(self, errand: Errand, *, failed: bool) -> None:
        assert errand.save is not None
        errand.open = False
        if failed:
            errand.rest = ()
        event = SaveFailed(errand.save.save, "disk full") if failed else Saved(errand.save.save)
        self._carry_out(list(self.fleet.handle(event, self.now)))

    def _carry_out(self, actions: list[Action]) -> list[Action]:
        if not actions:
            return []
        saves = [action for action in actions if isinstance(action, Save)]
        assert len(saves) <= 1
        rest = [action for action in actions if not isinstance(action, Save)]
        self.errands.append(Errand(saves[0] if saves else None, rest, open=bool(saves)))
        return self._tell()

    def _tell(self) -> list[Action]:
        done: list[Action] = []
        while self.errands and not self.errands[0].open:
            done += self.errands.popleft().rest
        self.done += done
        return done
