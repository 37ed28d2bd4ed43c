"""What a new process finds on the disk is exactly what was committed: all of it, and nothing else."""

import json
from collections.abc import Mapping, Sequence

from gpu_agent.registry.actions import Action, Kept, Save
from gpu_agent.store.base import Batch, Loaded
from tests.simulation.broken import Invariant, hold
from tests.simulation.watching import Watch


class DiskWatch(Watch):
    """Keeps a second set of books."""

    def __init__(self) -> None:
        self._documents: dict[tuple[Kept, str], Mapping[str, object]] = {}

    def kept(self, saves: Sequence[Save], batches: Sequence[Batch]) -> None:
        for change in (change for batch in batches for change in batch.changes):
            if change.document is None:
                self._documents.pop((change.kind, change.key), None)
            else:
                self._documents[change.kind, change.key] = change.document

    def restored(self, actions: Sequence[Action], loaded: Loaded) -> None:
        found = {(change.kind, change.key): change.document for change in loaded.changes}
        if found.keys() != self._documents.keys():
            differing = found.keys() ^ self._documents.keys()
            hold(Invariant.STORE_IS_A_PREFIX, holds=False, detail=f"found or missing: {differing}")
        for key, document in self._documents.items():
            if found[key] != json.loads(json.dumps(document)):
                hold(Invariant.STORE_IS_A_PREFIX, holds=False, detail=f"{key}: {found[key]}, kept {document}")
