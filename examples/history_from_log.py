"""Reconstructs every node's history from the registry's log alone.

    python examples/history_from_log.py registry.log [older-first.log ...]

Reads the JSON lines of `gpu-agent registry serve` (several files, oldest first, or standard input)
and prints one JSON object: for each node that is still known, its last events as
`GET /v1/nodes/{id}/events` shows them. A line counts when it has an `event_id`; its own lines
about other things, and those of other programs, are passed over.
"""

import fileinput
import json
from collections import deque
from collections.abc import Iterable
from typing import Any

EVENTS_PER_NODE = 50
OPENS = "node_status_changed"
CLOSES = frozenset({"node_removed", "node_purged"})
REFUSES = "node_register_refused"
FRAME = frozenset({"timestamp", "level", "part", "event", "event_id", "node_id"})
"""What a line says besides the event's own fields."""

Event = dict[str, Any]


def histories(lines: Iterable[str]) -> dict[str, list[Event]]:
    """Return the last events of each node by its id, oldest first."""
    past = Past()
    for line in lines:
        event_line = _read(line)
        if event_line is not None:
            past.add(event_line)
    return {node_id: list(events) for node_id, events in sorted(past.known.items())}


class Past:
    """What the log holds of each node so far."""

    def __init__(self) -> None:
        self.known: dict[str, deque[Event]] = {}
        self._claimed: dict[str, list[Event]] = {}
        """What was said of an id that is no node yet: its first registration may still be refused."""

    def add(self, event_line: Event) -> None:
        """Take in one event."""
        node_id, event = event_line["node_id"], event_line["event"]
        fields = {name: value for name, value in event_line.items() if name not in FRAME}
        entry = {"id": event_line["event_id"], "event": event, "fields": fields}
        if event in CLOSES:
            self.known.pop(node_id, None)
        elif node_id in self.known:
            self.known[node_id].append(entry)
        elif event == OPENS:
            self.known[node_id] = deque([*self._claimed.pop(node_id, ()), entry], EVENTS_PER_NODE)
        elif event == "node_register_received":
            self._claimed[node_id] = [entry]
        elif event == REFUSES:
            self._claimed.pop(node_id, None)
        elif node_id in self._claimed:
            self._claimed[node_id].append(entry)


def _read(line: str) -> Event | None:
    try:
        event_line = json.loads(line)
    except ValueError:
        return None
    is_event = isinstance(event_line, dict) and {"event_id", "node_id", "event"} <= event_line.keys()
    return event_line if is_event else None


if __name__ == "__main__":
    with fileinput.input(encoding="utf-8") as lines:
        print(json.dumps(histories(lines), indent=2))
