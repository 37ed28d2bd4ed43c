"""The nodes' documents of a standby's copy, read ahead of a takeover.

A new leader loads its whole fleet before it decides anything, and reading documents is half of that. A
standby has the time: it reads each document once it has not changed for a while, some of them at a time.
"""

import time
from collections.abc import Iterable, Mapping

from gpu_agent.registry.actions import Change, DocumentKind
from gpu_agent.registry.persistence import UnreadableDocumentError, prepare_node
from gpu_agent.registry.settings import Thresholds
from gpu_agent.server.effects import DOCUMENT, stored_documents
from gpu_agent.store.base import parse_text
from gpu_agent.store.etcd.store import NODE_DOCUMENT, ParsedValue

SETTLED_SECONDS = 20.0
"""A document that has not changed for so long is read: a node that registers changes its own several times,
and the machine has more to do then."""
SLICE_SECONDS = 0.005
"""How long `prepare` takes, but for its last document."""


class PreparedNodes:
    """Which documents are to be read, and those that were."""

    def __init__(self, prefix: str, thresholds: Thresholds) -> None:
        self._start = f"{prefix}/doc/{DocumentKind.NODE.value}/".encode()
        self._thresholds = thresholds
        self._waiting: dict[bytes, float] = {}
        """By key: when the document changed, the earliest first; monotonic seconds."""
        self._values: dict[bytes, ParsedValue] = {}

    def replace(self, keys: Iterable[bytes], now: float) -> None:
        """Take in that these are all keys, and that their values may be others."""
        self._waiting = {key: now for key in keys if key.startswith(self._start)}
        self._values = {key: one for key, one in self._values.items() if key in self._waiting}

    def changed(self, key: bytes, now: float, *, deleted: bool) -> None:
        """Take in that a value has changed."""
        if key.startswith(self._start):
            self._values.pop(key, None)
            self._waiting.pop(key, None)
            if not deleted:
                self._waiting[key] = now

    def prepare(self, rows: Mapping[bytes, bytes], now: float) -> bool:
        """Read some of the documents that are due; returns whether more of them are."""
        ends = time.monotonic() + SLICE_SECONDS
        while self._waiting:
            key, since = next(iter(self._waiting.items()))
            if now - since < SETTLED_SECONDS:
                return False
            del self._waiting[key]
            value = self._values.get(key)
            if value is None or value[0] != rows[key]:
                self._read(key, rows[key])
            if time.monotonic() >= ends:
                return True
        return False

    def take(self, now: float) -> Mapping[bytes, ParsedValue]:
        """Return what was read, for one fleet: another one needs all of it again."""
        taken, self._values = self._values, {}
        self._waiting = dict.fromkeys(taken, now) | self._waiting
        return taken

    def _read(self, key: bytes, value: bytes) -> None:
        """Read a document; one that cannot be read is left to the leader, which logs it."""
        self._values.pop(key, None)
        try:
            parsed = parse_text(value.decode())
            wrapped = parsed[NODE_DOCUMENT]
            change = Change(DocumentKind.NODE, key[len(self._start) :].decode(), wrapped)
            for stored in stored_documents([change], time.time()):
                prepared = prepare_node(stored, self._thresholds)
                self._values[key] = (value, {**parsed, NODE_DOCUMENT: {**wrapped, DOCUMENT: prepared}})
        except (ValueError, TypeError, KeyError, UnreadableDocumentError):
            return
