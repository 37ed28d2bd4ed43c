"""What the loop does with a fleet's output, for tests that play a fleet without a loop: store, then send.

The store is a dictionary that can fail. While it fails every waiting request is refused, and the rest waits.
"""

import json
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import replace

from gpu_agent.registry.actions import Change, DocumentKind, Effect, Output
from gpu_agent.registry.events import Stored, StoreFailed, StoreRecovered
from gpu_agent.registry.fleet import Fleet
from gpu_agent.registry.persistence import StoredDocument, split_answers


class FleetShell:
    """Carries out what one fleet asks for; `execute` is called for each effect."""

    def __init__(self, fleet: Fleet, *, now: Callable[[], float], execute: Callable[[Effect], None]) -> None:
        self.fleet = fleet
        self.documents: dict[tuple[DocumentKind, str], tuple[Mapping[str, object], float]] = {}
        """What the store holds, and when it was written."""
        self.stored: list[Change] = []
        """Every change that was stored, in order."""
        self.failing = False
        self._fails = False
        self._failing_since = 0.0
        self._now = now
        self._execute = execute
        self._waiting = deque[Output]()

    def carry_out(self, output: Output) -> None:
        """Store the changes of an output and carry out its effects, after all that waits."""
        for answer in output.immediate:
            self._execute(answer)
        if output.changes or output.effects:
            self._waiting.append(output)
            if self._fails:
                self._refuse_waiting()
            else:
                self._store_waiting()

    def let_store_fail(self, *, fails: bool, outage_seconds: float | None = None) -> None:
        """Let the store fail, or answer again; the outage is what the clock shows, unless it is given."""
        self._fails = fails
        if not fails and self.failing:
            self.failing = False
            self._store_waiting()
            seconds = self._now() - self._failing_since if outage_seconds is None else outage_seconds
            self.carry_out(self.fleet.handle(StoreRecovered(seconds), self._now()))

    def load(self, *, away: float = 0.0) -> list[StoredDocument]:
        """Return what the store holds, through JSON, with the age that it has after so many seconds more."""
        return [
            StoredDocument(kind, key, json.loads(json.dumps(document)), self._now() + away - at)
            for (kind, key), (document, at) in self.documents.items()
        ]

    def _store_waiting(self) -> None:
        while self._waiting:
            output = self._waiting.popleft()
            self._store(output)
            if output.number is not None:
                self.carry_out(self.fleet.handle(Stored(output.number), self._now()))
            for effect in output.effects:
                self._execute(effect)

    def _store(self, output: Output) -> None:
        self.stored += output.changes
        for change in output.changes:
            if change.document is None:
                self.documents.pop((change.kind, change.key), None)
            else:
                self.documents[change.kind, change.key] = (change.document, self._now())

    def _refuse_waiting(self) -> None:
        """Refuse every waiting request, and let the fleet know once."""
        for place, output in enumerate(self._waiting):
            refusals, rest = split_answers(output.effects, "disk full")
            self._waiting[place] = replace(output, effects=tuple(rest))
            for refusal in refusals:
                self._execute(refusal)
        if not self.failing:
            self.failing, self._failing_since = True, self._now()
            self.carry_out(self.fleet.handle(StoreFailed("disk full"), self._now()))
