"""What receivers read: the documented JSON, Slack's blocks and Teams' cards, also of hostile names."""

import json
from collections.abc import Mapping
from typing import Any

import pytest

from gpu_agent.registry.alarms import SendMessage
from gpu_agent.server.notify.message import EventFilter, Present, body_of, notification, trial
from gpu_agent.server.notify.settings import ReceiverSettings
from gpu_agent.wire.api import RegistryEvent
from gpu_agent.wire.notification import SHOWN_EVENTS, Notification

HOSTILE = "<!channel> *b* [x](http://evil)\n@all \u202e\x1b[2J &amp;"


def offline(number: int, hostname: str = "rack1-n7", *, status: str = "offline") -> RegistryEvent:
    fields = {"from": "ready", "to": status, "reason_code": "heartbeat_timeout", "hostname": hostname}
    return RegistryEvent(100.0 + number, "node_status_changed", f"node-{hostname}", fields, number)


def written(
    *events: RegistryEvent,
    form: str = "json",
    missed: int = 0,
    at: float = 1.0,
    statuses: Mapping[str, str] | None = None,
) -> Any:  # noqa: ANN401 - what each test reads
    """Write them; without `statuses` each node is what its last event says."""
    through = max((one.id or 0 for one in events), default=7)
    said = {one.node_id or "": str(one.fields.get("to")) for one in events}
    now = Present(at, (said if statuses is None else statuses).get)
    message = SendMessage(events, missed, through)
    document = notification(message, receiver="ops", registry="r", now=now)
    return json.loads(body_of(document, message, form, now=now))


def texts(part: object) -> list[str]:
    """All texts that are shown, wherever they stand in a document."""
    if isinstance(part, dict):
        own = [part["text"]] if isinstance(part.get("text"), str) else []
        return own + [one for inner in part.values() for one in texts(inner)]
    return [one for inner in part for one in texts(inner)] if isinstance(part, list) else []


def test_the_document_names_every_id_and_shows_the_first_events_in_full() -> None:
    document = Notification.model_validate(written(*map(offline, range(1, 301))))
    assert document.event_ids == tuple(range(1, 301))
    assert len(document.events) == SHOWN_EVENTS
    assert document.delivery_id == "ops:1-300"
    assert document.text == ("300 events of 1 node, the first: rack1-n7: ready → offline: heartbeat_timeout")


def test_what_cannot_be_named_is_counted_first() -> None:
    document = Notification.model_validate(written(offline(8), missed=12))
    first = document.events[0].event
    assert (first.event, first.id, first.fields) == ("events_missed", None, {"count": 12})
    assert document.event_ids == (8,)
    alone = Notification.model_validate(written(missed=3))
    assert (alone.event_ids, alone.delivery_id) == ((), "ops:7-7")


@pytest.mark.parametrize("form", ["slack", "teams"])
def test_what_can_only_be_counted_is_shown_in_a_chat_too(form: str) -> None:
    counted = "3 events missed: they came faster than they were read"
    assert counted in "\n".join(texts(written(missed=3, form=form)))
    assert all(texts(written(missed=3, form=form)))
    assert counted in "\n".join(texts(written(offline(8), missed=3, form=form)))


def test_a_late_message_says_when_it_happened_and_what_the_nodes_are_by_now() -> None:
    events = [offline(number, f"n{number}") for number in range(1, 4)]
    by_now = {"node-n1": "ready", "node-n2": "offline"}
    document = Notification.model_validate(written(*events, at=3600.0, statuses=by_now))
    assert document.text == (
        "3 events of 3 nodes, the first: 00:01:41 UTC, n1: ready → offline: heartbeat_timeout (by now ready)"
    )
    assert [(one.text, one.status_now) for one in document.events[1:]] == [
        ("00:01:42 UTC, n2: ready → offline: heartbeat_timeout", "offline"),
        ("00:01:43 UTC, n3: ready → offline: heartbeat_timeout (by now removed)", None),
    ]
    assert "UTC" not in written(*events, at=161.0)["text"]


def test_a_late_chat_shows_from_when_to_when_and_parts_nodes_that_are_back() -> None:
    events = [offline(number, f"n{number}") for number in range(1, 4)]
    by_now = {"node-n1": "ready", "node-n2": "offline", "node-n3": "ready"}
    body = written(*events, at=86_400.0, statuses=by_now, form="slack")
    when = "1970-01-01 00:01:41 to 1970-01-01 00:01:43 UTC"
    assert body["blocks"][0]["text"]["text"].splitlines() == [
        f"{when}, n1, n3: ready → offline: heartbeat_timeout (by now ready)",
        "1970-01-01 00:01:42 UTC, n2: ready → offline: heartbeat_timeout",
    ]


def test_slack_shows_what_several_nodes_have_in_common_in_a_line() -> None:
    events = [offline(number, f"n{number}") for number in range(1, 41)]
    body = written(*events, offline(50, "x", status="degraded"), form="slack")
    lines = body["blocks"][0]["text"]["text"].splitlines()
    assert lines == [
        "n1, n2, n3, n4, n5 and 35 more: ready → offline: heartbeat_timeout",
        "x: ready → degraded: heartbeat_timeout",
    ]
    assert body["blocks"][1]["elements"][0]["text"] == "r, events 1-40, 50"


@pytest.mark.parametrize("form", ["slack", "teams"])
def test_names_of_nodes_are_text_and_never_markup(form: str) -> None:
    body = written(offline(1, HOSTILE), offline(2, "other"), form=form)
    assert all(line.isprintable() for text in texts(body) for line in text.split("\n"))
    kinds = {one["type"] for one in _typed(body)}
    if form == "slack":
        assert kinds == {"section", "context", "plain_text"}
        assert "<" not in body["text"]
        assert "&lt;!channel&gt;" in body["text"]
    else:
        assert kinds == {"message", "AdaptiveCard", "RichTextBlock", "TextRun"}  # none reads Markdown


def _typed(part: object) -> list[dict[str, Any]]:
    if isinstance(part, dict):
        own = [part] if "type" in part else []
        return own + [one for inner in part.values() for one in _typed(inner)]
    return [one for inner in part for one in _typed(inner)] if isinstance(part, list) else []


@pytest.mark.parametrize("form", ["slack", "teams"])
def test_a_thousand_different_events_fit_into_what_a_chat_takes(form: str) -> None:
    events = [
        RegistryEvent(
            1.0, "node_fault_reported", f"n{one}", {"code": "X" * 500, "message": "y" * 500}, 2 * one
        )
        for one in range(1, 1001)
    ]
    body = written(*events, form=form)
    assert all(len(text) <= 3000 for text in texts(body))
    assert len(json.dumps(body)) < 25_000
    assert any("(1000 in all)" in text for text in texts(body))


def test_a_test_message_says_that_it_is_one() -> None:
    message = trial(5.0)
    now = Present(5.0, dict[str, str]().get)
    document = notification(message, receiver="ops", registry="r", now=now, test=True)
    assert (document.test, document.event_ids, document.delivery_id) == (
        True,
        (),
        "ops:notify_test-5.000",
    )


def wants(event: RegistryEvent, **settings: object) -> bool:
    receiver = ReceiverSettings.model_validate({"name": "ops", "command": ["true"], **settings})
    known = {"node-a": {"zone": "a"}}
    return EventFilter(receiver, known.get).wants(event)


def change(to: str, reason: str) -> RegistryEvent:
    return RegistryEvent(
        1.0, "node_status_changed", "node-a", {"from": "x", "to": to, "reason_code": reason}, 1
    )


@pytest.mark.parametrize(
    ("event", "wakes"),
    [
        (change("degraded", "gpu_unavailable"), True),
        (change("offline", "heartbeat_timeout"), True),
        (change("offline", "unregistered"), False),
        (change("offline", "drain_complete"), False),
        (change("ready", "recovered"), False),
        (RegistryEvent(1.0, "claim_lost", "node-a", {}, 1), True),
        (RegistryEvent(1.0, "claim_released", "node-a", {}, 1), False),
        (RegistryEvent(1.0, "mass_disconnect_suspected", None, {}, 1), True),
    ],
)
def test_without_a_choice_what_wakes_an_operator_is_sent(event: RegistryEvent, *, wakes: bool) -> None:
    assert wants(event) is wakes


def test_a_status_and_its_reason_can_be_named() -> None:
    event = change("ready", "recovered")
    for pattern in ("node_status_changed", "node_*", "node_status_changed:ready", "*:ready:recovered"):
        assert wants(event, events=[pattern]), pattern
    for pattern in ("node_status_changed:offline", "node_status_changed:ready:registered"):
        assert not wants(event, events=[pattern]), pattern


def test_a_receiver_of_some_nodes_gets_nothing_of_others_nor_of_none() -> None:
    of_none = RegistryEvent(1.0, "mass_disconnect_suspected", None, {}, 1)
    assert not wants(of_none, labels={"zone": "a"})
    assert wants(change("degraded", "flapping"), labels={"zone": "a"})
    assert not wants(change("degraded", "flapping"), labels={"zone": "b"})
    assert wants(offline(1, "rack1-n7"), hostnames=["rack1-*"])
    assert not wants(offline(1, "rack2-n7"), hostnames=["rack1-*"])


def test_an_event_of_a_node_that_is_gone_passes_its_labels() -> None:
    assert wants(offline(1), labels={"zone": "a"})
