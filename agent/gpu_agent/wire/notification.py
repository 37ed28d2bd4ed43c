"""The documents of alarms: the message that a receiver gets, and the state of the receivers."""

from typing import Annotated, Any

from pydantic import Field

from gpu_agent.wire.api import RegistryEvent
from gpu_agent.wire.codes import NodeStatus
from gpu_agent.wire.documents import ApiAnswer, open_words
from gpu_agent.wire.probe_document import DIALECT

RECEIVER_STATES = ("idle", "gathering", "sending", "waiting", "quiet")
RECEIVER_FORMATS = ("json", "slack", "teams", "command")
SHOWN_EVENTS = 100
"""A message holds so many events in full; of the others their ids."""
TEST_EVENT = "notify_test"
"""The event of a test message."""


class NotifiedEvent(ApiAnswer):
    """An event, with the sentence that people read."""

    event: RegistryEvent = Field(description="As `GET /v1/events` shows it.")
    text: str = Field(
        description="What happened, with the node: one line of printable characters. With its time where it "
        "is older than a minute, and the node's status by now where that has changed since."
    )
    status_now: Annotated[str, open_words(*NodeStatus)] | None = Field(
        default=None,
        description="The node's status when the message is sent; null without a node, or for one that is "
        "not known any more.",
    )


class Notification(ApiAnswer):
    """One message to a receiver: a webhook's body, or what a command reads from its standard input."""

    delivery_id: str = Field(
        description="Names the receiver, and the ids of the first and the last event. A message may come "
        "again, alone or with later events: remember the ids of events."
    )
    receiver: str = Field(description="The receiver's name in the settings.")
    registry: str = Field(description="The registry that sends it: its machine's or its instance's name.")
    sent_at: float = Field(description="Of this attempt, Unix time in seconds.")
    text: str = Field(description="What happened, in a line.")
    event_ids: tuple[int, ...] = Field(description="The ids of all events for which it stands, in order.")
    events: tuple[NotifiedEvent, ...] = Field(
        description=f"The first {SHOWN_EVENTS} of them in full. An event `events_missed`, without an id, "
        "says how many before them are too long ago, or were too many, to be named."
    )
    test: bool = Field(default=False, description="Whether an operator sends it to try the receiver.")


class ReceiverView(ApiAnswer):
    """One receiver of alarms: what it got, and what waits for it."""

    name: str = Field(description="Its name in the settings.")
    format: Annotated[str, open_words(*RECEIVER_FORMATS)] = Field(description="How its messages are written.")
    target: str = Field(description="The host of its URL, or its program; no path, since that may be secret.")
    state: Annotated[str, open_words(*RECEIVER_STATES)] = Field(
        description="`waiting` is for the next attempt after a failure; `quiet`: events wait in quiet hours."
    )
    position: int = Field(description="Every event up to this id is delivered, or not wanted.")
    waiting: int = Field(description="How many events wait for it.")
    lag_seconds: float | None = Field(
        description="The age of the oldest of them, in seconds; null without any."
    )
    failures: int = Field(description="Attempts that failed since the last success.")
    problem: str | None = Field(description="Why the last attempt failed; null where it succeeded.")
    delivered_at: float | None = Field(
        description="When it took the last message, in Unix time; null before the first under this leader."
    )
    next_attempt_seconds: float | None = Field(
        description="When the next message is sent, in seconds from now; null while none is due."
    )


class ReceiverList(ApiAnswer):
    """The receivers of alarms, in the order of the settings."""

    receivers: tuple[ReceiverView, ...] = Field(description="The receivers.")


class ReceiverTest(ApiAnswer):
    """What a receiver made of a test message."""

    name: str = Field(description="The receiver.")
    delivered: bool = Field(description="Whether it took the message.")
    problem: str | None = Field(description="Why not; null where it did.")
    seconds: float = Field(description="How long it took.")


def notification_schema() -> dict[str, Any]:
    """Return the JSON Schema of a message."""
    return {
        "$schema": DIALECT,
        **Notification.model_json_schema(mode="serialization"),
        "title": "notification",
        "description": "What a receiver of alarms gets: a webhook as its body, a command on its standard "
        "input (see *Alarms* in the documentation).",
    }
