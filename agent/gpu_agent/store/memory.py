"""A keeper that forgets: its documents live as long as the process.

Documents are held as JSON text, so that what this keeper accepts every other one does
too, and no caller can change what is kept from outside. Writes no file.
"""

import json
from collections.abc import Iterable, Sequence

from gpu_agent.registry.actions import Change, Kept
from gpu_agent.store.base import StoreError


class MemoryStore:
    """Keeps documents in memory; a restart of the registry starts with none."""

    def __init__(self) -> None:
        self._texts: dict[tuple[Kept, str], str] = {}
        self._closed = False

    def load(self) -> Iterable[Change]:
        """Return all that is kept; raises `StoreError` when closed."""
        self._refuse_when_closed()
        return [Change(kind, key, json.loads(text)) for (kind, key), text in self._texts.items()]

    def save(self, changes: Sequence[Change]) -> None:
        """Keep all of these or none; raises `StoreError` when closed, or for what JSON cannot hold."""
        self._refuse_when_closed()
        for (kind, key), text in [((one.kind, one.key), _text(one)) for one in changes]:
            if text is None:
                self._texts.pop((kind, key), None)
            else:
                self._texts[kind, key] = text

    def close(self) -> None:
        """Forget everything."""
        self._closed = True
        self._texts.clear()

    def _refuse_when_closed(self) -> None:
        if self._closed:
            raise StoreError("the store is closed; start the registry again to open it")


def _text(change: Change) -> str | None:
    if change.document is None:
        return None
    try:
        return json.dumps(change.document, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise StoreError(
            f"the {change.kind.value} {change.key!r} cannot be kept: {error}; this is a bug, please report it"
        ) from error
