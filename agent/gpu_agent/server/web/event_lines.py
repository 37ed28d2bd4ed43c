"""Events as a person reads them: when, where, what, and how serious."""

from collections.abc import Iterable
from dataclasses import dataclass

from gpu_agent.server.service import RegistryService
from gpu_agent.wire.api import RegistryEvent
from gpu_agent.wire.event_words import event_sentence

_MARKS = {
    "claim_gpu_unusable": "l",
    "claim_lost": "no",
    "events_missed": "d",
    "heartbeat_timeout": "o",
    "mass_disconnect_suspected": "d",
    "node_fault_reported": "d",
    "node_register_refused": "d",
    "gpu_used_without_claim": "n",
    "claim_idle": "z",
}
"""The mark of an event that asks for a look."""
_STATUS_MARKS = {"offline": "o", "degraded": "d"}


@dataclass(frozen=True, slots=True)
class EventLine:
    """One event in words."""

    id: int | None
    at: float
    """Unix time."""
    event: str
    node_id: str | None
    name: str
    """The node's hostname, or its id; empty where it concerns none."""
    sentence: str
    mark: str
    """The class of its mark; empty for an event that asks for nothing."""


def event_lines(registry: RegistryService, events: Iterable[RegistryEvent]) -> list[EventLine]:
    """Write events in words, in their order."""
    return [event_line(registry, one) for one in events]


def event_line(registry: RegistryService, event: RegistryEvent) -> EventLine:
    """Write one event in words."""
    fields, record = event.fields, None if event.node_id is None else registry.record(event.node_id)
    hostname = fields.get("hostname") if record is None else record.hostname
    name = str(hostname or event.node_id or "")
    mark = _MARKS.get(event.event, "")
    if event.event == "node_status_changed":
        before, after = fields.get("from"), str(fields.get("to"))
        sentence = f"{before or 'new'} → {after}: {fields.get('reason_code')}"
        mark = _STATUS_MARKS.get(after, "")
    else:
        sentence = event_sentence(event)
    return EventLine(event.id, event.at, event.event, event.node_id, name, sentence, mark)
