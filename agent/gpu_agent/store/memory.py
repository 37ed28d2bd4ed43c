"""A store without a disk: what it holds lives as long as the process.

Everything is held as JSON text, so that this store accepts what every other one does, and no caller can
change it from outside. Writes no file.
"""

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from gpu_agent.registry.actions import Change, DocumentKind
from gpu_agent.store.base import (
    EVENTS_PER_NODE,
    RECENT_EVENTS,
    Batch,
    Loaded,
    NothingToBackUpError,
    StoreError,
    document_text,
    fields_text,
    parse_text,
)
from gpu_agent.wire.api import RegistryEvent

_Written = tuple[RegistryEvent, str]
"""An event without its fields, and those as text."""


class MemoryStore:
    """Holds everything in memory; a restart of the registry starts with nothing."""

    def __init__(self) -> None:
        self._texts: dict[tuple[DocumentKind, str], str] = {}
        self._recent: deque[_Written] = deque()
        self._histories: dict[str, deque[_Written]] = {}
        self._closed = False

    def load(self) -> Loaded:
        """Return all that is stored; raises `StoreError` when closed."""
        self._refuse_when_closed()
        return Loaded(
            changes=[Change(kind, key, parse_text(text)) for (kind, key), text in self._texts.items()],
            recent=_read(self._recent),
            histories={node_id: _read(events) for node_id, events in self._histories.items() if events},
        )

    def save(self, batches: Sequence[Batch]) -> None:
        """Store all of these or none; raises `StoreError` when closed, or for what JSON cannot hold."""
        self._refuse_when_closed()
        written = [
            (
                [(one.kind, one.key, document_text(one)) for one in batch.changes],
                [(replace(event, fields={}), fields_text(event)) for event in batch.events],
            )
            for batch in batches
        ]
        for documents, events in written:
            for kind, key, text in documents:
                self._store(kind, key, text)
            for event in events:
                self._add(event)

    def backup(self, target: Path, *, overwrite: bool = False) -> None:  # noqa: ARG002 - the contract's signature
        """Refuse: nothing here outlives the process."""
        raise NothingToBackUpError(
            f"nothing is written to {target}: this registry holds everything in memory only; start it with "
            "`--store sqlite:///PATH` to have something to back up"
        )

    def close(self) -> None:
        """Drop everything."""
        self._closed = True
        self._texts.clear()
        self._recent.clear()
        self._histories.clear()

    def _store(self, kind: DocumentKind, key: str, text: str | None) -> None:
        if text is None:
            self._texts.pop((kind, key), None)
        else:
            self._texts[kind, key] = text
        if kind is DocumentKind.NODE:
            if text is None:
                self._histories.pop(key, None)
            else:
                self._histories.setdefault(key, deque(maxlen=EVENTS_PER_NODE))

    def _add(self, written: _Written) -> None:
        number = written[0].id or 0
        if not self._recent or number > (self._recent[-1][0].id or 0):  # else it is stored already
            self._recent.append(written)
            while (self._recent[0][0].id or 0) <= number - RECENT_EVENTS:
                self._recent.popleft()
        history = self._histories.get(written[0].node_id or "")
        if history is not None and (not history or number > (history[-1][0].id or 0)):
            history.append(written)

    def _refuse_when_closed(self) -> None:
        if self._closed:
            raise StoreError("the store is closed; start the registry again to open it")


def _read(written: Iterable[_Written]) -> list[RegistryEvent]:
    return [replace(event, fields=parse_text(fields)) for event, fields in written]
