"""What a message says: as the documented JSON, for Slack and for Teams. Which events a receiver wants.

Words of nodes and clients stand in an event, such as hostnames and faults. They are reduced to one line of
printable characters, and are sent where no markup is read: as Slack's `plain_text`, as Teams' `TextRun`.
"""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from gpu_agent.registry.alarms import SendMessage
from gpu_agent.registry.quoting import clip_quote, one_line
from gpu_agent.server.notify.settings import ReceiverSettings
from gpu_agent.wire.api import RegistryEvent
from gpu_agent.wire.event_words import MISSED, event_sentence
from gpu_agent.wire.notification import SHOWN_EVENTS, TEST_EVENT, Notification, NotifiedEvent

SHOWN_LINES = 10
"""Of a message for people."""
LATE_SECONDS = 60.0
"""What is older when it is sent is shown with its time."""
_DAY = "%Y-%m-%d"
_SHOWN_HOSTS = 5
_MOST_LINE = 300
_MOST_IDS = 300
_SLACK_TEXT = 2900
"""Characters: Slack takes 3,000 in a block."""

LabelsOf = Callable[[str], Mapping[str, str] | None]
"""Returns the labels of a node; None for one that is not known any more."""


StatusOf = Callable[[str], str | None]
"""Returns the status of a node now; None for one that is not known any more."""


@dataclass(frozen=True, slots=True)
class Present:
    """What holds when a message is sent, which may be long after its events."""

    at: float
    """Unix time in seconds."""
    status_of: StatusOf


class EventFilter:
    """Which events a receiver wants."""

    def __init__(self, settings: ReceiverSettings, labels_of: LabelsOf) -> None:
        self._settings, self._labels_of = settings, labels_of
        self._by_key: dict[str, bool] = {}

    def wants(self, event: RegistryEvent) -> bool:
        """Say whether an event goes to the receiver.

        An event of a node that the registry knows no more passes the labels: better one message too many.
        """
        fields, key = event.fields, event.event
        if "to" in fields:
            key = f"{key}:{fields['to']}:{fields.get('reason_code')}"
        wanted = self._by_key.get(key)
        if wanted is None:
            wanted = self._by_key[key] = self._is_named(key)
        return wanted and self._is_of_node(event)

    def _is_named(self, key: str) -> bool:
        name, _, rest = key.partition(":")
        forms = {name, f"{name}:{rest.partition(':')[0]}", key}
        return any(fnmatchcase(form, pattern) for form in forms for pattern in self._settings.events)

    def _is_of_node(self, event: RegistryEvent) -> bool:
        hostnames, labels = self._settings.hostnames, self._settings.labels
        if not hostnames and not labels:
            return True
        if event.node_id is None:
            return False
        if hostnames:
            hostname = str(event.fields.get("hostname") or event.node_id)
            if not any(fnmatchcase(hostname, pattern) for pattern in hostnames):
                return False
        known = self._labels_of(event.node_id) if labels else None
        return known is None or all(known.get(name) == value for name, value in labels.items())


def notification(
    message: SendMessage, *, receiver: str, registry: str, now: Present, test: bool = False
) -> Notification:
    """Write a message as the document that webhooks and commands get."""
    events = _events(message, now)
    ids = tuple(one.id for one in events if one.id is not None)
    first, last = (ids[0], ids[-1]) if ids else (message.through, message.through)
    return Notification(
        delivery_id=f"{receiver}:{f'{TEST_EVENT}-{now.at:.3f}' if test else f'{first}-{last}'}",
        receiver=receiver,
        registry=registry,
        sent_at=round(now.at, 3),
        text=_headline(events, now),
        event_ids=ids,
        events=tuple(_notified(one, now) for one in events[:SHOWN_EVENTS]),
        test=test,
    )


def body_of(document: Notification, message: SendMessage, form: str, *, now: Present) -> bytes:
    """Write a message as a receiver of this format reads it."""
    if form == "slack":
        return _json(_slack(document, _lines(_events(message, now), now)))
    if form == "teams":
        return _json(_teams(document, _lines(_events(message, now), now)))
    return document.model_dump_json().encode()


def trial(sent_at: float) -> SendMessage:
    """Return a message that only tries the receiver."""
    return SendMessage((RegistryEvent(round(sent_at, 3), TEST_EVENT),), 0, 0)


def _events(message: SendMessage, now: Present) -> Sequence[RegistryEvent]:
    """Return all for which a message stands: what can only be counted comes first."""
    events = message.events
    if not message.missed:
        return events
    at = events[0].at if events else now.at
    return (RegistryEvent(at, MISSED, fields={"count": message.missed}), *events)


def _notified(event: RegistryEvent, now: Present) -> NotifiedEvent:
    status = None if event.node_id is None else now.status_of(event.node_id)
    return NotifiedEvent(event=event, text=_event_text(event, now), status_now=status)


def _headline(events: Sequence[RegistryEvent], now: Present) -> str:
    if len(events) == 1:
        return _event_text(events[0], now)
    nodes = {one.node_id for one in events if one.node_id is not None}
    first = _event_text(events[0], now)
    return f"{len(events)} events of {len(nodes)} node{'' if len(nodes) == 1 else 's'}, the first: {first}"


def _event_text(event: RegistryEvent, now: Present) -> str:
    where = _where(event)
    sentence = _sentence(event, now)
    return f"{_when((event,), now)}{where}: {sentence}" if where else f"{_when((event,), now)}{sentence}"


def _when(events: Sequence[RegistryEvent], now: Present) -> str:
    """Say when these happened, in front of a line; empty where the message comes at once."""
    first, last = events[0].at, events[-1].at
    if now.at - first <= LATE_SECONDS:
        return ""
    form = "%H:%M:%S" if _utc(first, _DAY) == _utc(now.at, _DAY) else f"{_DAY} %H:%M:%S"
    times = [_utc(at, form) for at in (first, last)]
    return f"{' to '.join(dict.fromkeys(times))} UTC, "


def _utc(at: float, form: str) -> str:
    return time.strftime(form, time.gmtime(at))


def _where(event: RegistryEvent) -> str:
    return clip_quote(one_line(str(event.fields.get("hostname") or event.node_id or "")))


def _sentence(event: RegistryEvent, now: Present) -> str:
    if event.event == TEST_EVENT:
        return "this is a test: this receiver gets the alarms of the registry"
    text = one_line(event_sentence(event))
    text = text if len(text) <= _MOST_LINE else f"{text[: _MOST_LINE - 1]}…"
    return f"{text}{_since_then(event, now)}"


def _since_then(event: RegistryEvent, now: Present) -> str:
    """Say which status a node has by now, where an event gave it another one."""
    if "to" not in event.fields or event.node_id is None:
        return ""
    status = now.status_of(event.node_id)
    if status == event.fields["to"]:
        return ""
    return " (by now removed)" if status is None else f" (by now {status})"


def _lines(events: Sequence[RegistryEvent], now: Present) -> list[str]:
    """Write what happened in a few lines: what several nodes have in common is one."""
    alike: dict[str, list[RegistryEvent]] = {}
    for one in events:
        alike.setdefault(_sentence(one, now), []).append(one)
    lines = []
    for sentence, those in list(alike.items())[:SHOWN_LINES]:
        named = [one for one in dict.fromkeys(map(_where, those)) if one]
        more = f" and {len(named) - _SHOWN_HOSTS} more" if len(named) > _SHOWN_HOSTS else ""
        count = f" ({len(those)} times)" if len(those) > max(1, len(named)) else ""
        shown = f"{', '.join(named[:_SHOWN_HOSTS])}{more}: " if named else ""
        lines.append(f"{_when(those, now)}{shown}{sentence}{count}")
    if len(alike) > SHOWN_LINES:
        lines.append(f"and {len(alike) - SHOWN_LINES} other things")
    return lines


def _foot(document: Notification) -> str:
    ids = document.event_ids
    named = f", events {_runs(ids)}" if ids else ""
    return f"{one_line(document.registry)}{named}"


def _runs(ids: Sequence[int]) -> str:
    """Write ids as `3-7, 9`; of very many the first ones, the last one and their number."""
    runs: list[list[int]] = []
    for one in ids:
        if runs and one == runs[-1][-1] + 1:
            runs[-1] = [runs[-1][0], one]
        else:
            runs.append([one])
    text = ", ".join("-".join(map(str, run)) for run in runs)
    if len(text) <= _MOST_IDS:
        return text
    return f"{text[: text.rindex(',', 0, _MOST_IDS)]}, … {ids[-1]} ({len(ids)} in all)"


def _slack(document: Notification, lines: Sequence[str]) -> Mapping[str, object]:
    """Write the body of an incoming webhook. What `text` holds is escaped; blocks are plain text."""
    escaped = document.text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")

    def plain(text: str) -> Mapping[str, object]:
        return {"type": "plain_text", "text": text[:_SLACK_TEXT], "emoji": False}

    return {
        "text": escaped,
        "mrkdwn": False,
        "unfurl_links": False,
        "blocks": [
            {"type": "section", "text": plain("\n".join(lines))},
            {"type": "context", "elements": [plain(_foot(document))]},
        ],
    }


def _teams(document: Notification, lines: Sequence[str]) -> Mapping[str, object]:
    """Write what a Teams workflow ("when a webhook request is received") posts as a card."""

    def block(text: str, **style: object) -> Mapping[str, object]:
        return {"type": "RichTextBlock", "inlines": [{"type": "TextRun", "text": text, **style}]}

    return {
        "type": "message",
        "attachments": [
            {
                "contentType": "application/vnd.microsoft.card.adaptive",
                "contentUrl": None,
                "content": {
                    "$schema": "http://adaptivecards.io/schemas/adaptive-card.json",
                    "type": "AdaptiveCard",
                    "version": "1.4",
                    "fallbackText": document.text,
                    "body": [
                        block(document.text, weight="Bolder"),
                        *(block(one) for one in lines if one != document.text),
                        block(_foot(document), isSubtle=True, size="Small"),
                    ],
                },
            }
        ],
    }


def _json(document: Mapping[str, object]) -> bytes:
    return json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode()
