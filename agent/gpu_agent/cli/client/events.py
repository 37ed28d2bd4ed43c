"""The registry's event stream: followed over broken connections, without missing or repeating an event.

After a break it requests the events after the last one that it received. A registry that never answered is
not waited for: its name is wrong.
"""

import json
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from urllib.parse import urlencode

from pydantic import TypeAdapter, ValidationError

from gpu_agent.cli.client.answers import Document
from gpu_agent.cli.client.http import TIMEOUT_SECONDS, Api, Refused
from gpu_agent.cli.command import ExitCode, Failure
from gpu_agent.wire.api import RegistryEvent
from gpu_agent.wire.event_stream import EventStreamParser, SseMessage

EVENTS_PATH = "/v1/events"
FIRST_DELAY_SECONDS = 0.25
LONGEST_DELAY_SECONDS = 5.0
"""Delay before a registry that went away is tried again: twice as long each time, up to this."""
SILENCE_SECONDS = 60.0
"""A registry sends at least a comment more often than this."""
_STARTING = 503
_EVENT = TypeAdapter(RegistryEvent)


@dataclass(frozen=True, slots=True)
class Opened:
    """The stream is open: an answer to a request that is made now is not older than its events."""


@dataclass(frozen=True, slots=True)
class Received:
    """An event, and its JSON as the registry sent it."""

    event: RegistryEvent
    document: Document


@dataclass(frozen=True, slots=True)
class Lost:
    """The stream broke; it will be opened again."""

    why: str


@dataclass(frozen=True, slots=True)
class KeepAlive:
    """No event, and the registry is there."""


StreamEvent = Opened | Received | KeepAlive | Lost


def follow_events(
    api: Api, *, after: str | None = None, node_id: str | None = None, answered: bool = False
) -> Iterator[StreamEvent]:
    """Yield events, of one node or of all, after this event or from now on; raises `Failure`.

    Without events it yields `KeepAlive` now and then, so that its user can end.

    `answered` says that this registry has answered before, so that it is waited for from the first
    opening on. `Refused` at the first opening may mean that it has no such stream.
    """
    path = EVENTS_PATH if node_id is None else f"{EVENTS_PATH}?{urlencode({'node_id': node_id})}"
    delay = FIRST_DELAY_SECONDS
    while True:
        try:
            with api.stream(path, last_id=after, silence_seconds=SILENCE_SECONDS) as lines:
                delay, answered = FIRST_DELAY_SECONDS, True
                yield Opened()
                for message in parse_messages(lines):
                    after = message.id or after
                    yield _received(message) if message.data else KeepAlive()
            why = "the stream ended"
        except Refused as refused:
            if refused.status != _STARTING:
                raise
            why = str(refused)
        except Failure as failure:
            if failure.code is not ExitCode.UNREACHABLE or not answered:
                raise
            why = str(failure)
        yield Lost(why)
        time.sleep(delay)
        delay = min(2 * delay, LONGEST_DELAY_SECONDS)


def past_events(api: Api, *, after: int = 0, node_id: str | None = None) -> Iterator[Received]:
    """Yield the events of the recent past, the oldest first; raises `Failure`."""
    of_node = {} if node_id is None else {"node_id": node_id}
    query = urlencode({"after": after, "follow": "false", **of_node})
    with api.stream(f"{EVENTS_PATH}?{query}", last_id=None, silence_seconds=TIMEOUT_SECONDS) as lines:
        for message in parse_messages(lines):
            if message.data:
                yield _received(message)


def parse_messages(lines: Iterable[bytes]) -> Iterator[SseMessage]:
    """Yield the blocks of a stream, as the WHATWG specifies them; one that the stream's end cuts off is none.

    A comment is a block without data.
    """
    parser = EventStreamParser()
    for raw in lines:
        message = parser.read_line(raw.decode("utf-8", "replace"))
        if message is not None:
            yield message


def _received(message: SseMessage) -> Received:
    try:
        document = json.loads(message.data)
        return Received(_EVENT.validate_python(document), document)
    except (ValueError, ValidationError):
        raise Failure(
            "this registry sends an event that this version cannot read; upgrade gpu-agent here"
        ) from None
