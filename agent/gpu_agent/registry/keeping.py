"""What the fleet keeps of each thing as it stands, and how it takes a kept thing back (§4, restart).

How a document reads is `documents`'; when something is saved, `saves`'.
"""

from collections.abc import Iterable, Iterator

from gpu_agent.registry import documents
from gpu_agent.registry.actions import Change, Kept, Level
from gpu_agent.registry.documents import Restored, UnreadableDocumentError
from gpu_agent.registry.house import House
from gpu_agent.registry.step import Key, Step


class Keeping:
    """Writes the house's documents, and fills the house from them."""

    def __init__(self, house: House) -> None:
        self._house = house

    def written(self, key: Key, now: float) -> Change:
        """Write the change that keeps one thing as it is now, or lets it go."""
        kind, name = key
        if kind is Kept.CLAIM:
            claim = self._house.dispatch.claim_of(name)
            return Change(kind, name, None if claim is None else documents.of_claim(claim, now))
        if kind is Kept.TOKEN:
            token = self._house.tokens.by_id.get(name)
            return Change(kind, name, None if token is None else documents.of_token(token, now))
        record = self._house.roster.records.get(name)
        return Change(kind, name, None if record is None else documents.of_node(record, now))

    def taking_back(self, kept: Iterable[Restored], now: float) -> Iterator[Step]:
        """Know again what was kept, thing by thing; what cannot be read is noted and left out."""
        # Claims stand on nodes, in whatever order the store gives them back.
        for one in sorted(kept, key=lambda one: one.kind is Kept.CLAIM):
            step = Step(now)
            try:
                self._take_back(one, step)
            except UnreadableDocumentError as error:
                step.note("document_unreadable", {"detail": str(error)}, Level.WARNING)
            yield step

    def _take_back(self, kept: Restored, step: Step) -> None:
        house = self._house
        if kept.kind is Kept.NODE:
            record = documents.node_from(kept, house.thresholds, step.now)
            house.roster.add(record)
            house.dispatch.refresh(record)
            step.touched[record.node_id] = None
        elif kept.kind is Kept.TOKEN:
            house.tokens.put(documents.token_from(kept, step.now))
        elif not house.claiming.restore(documents.claim_from(kept, house.thresholds, step.now)):
            step.keep_claim(kept.key)
