"""The registry's event stream: followed over broken connections, without missing or repeating an event.

After a break it asks for the events after the last one that it received. A registry that never answered is
not waited for: its name is wrong.
"""

import json
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode

from gpu_agent.cli.client.http import EVENT, TIMEOUT_SECONDS, Api, Refused, missing_part
from gpu_agent.cli.command import ExitCode, Failure


@dataclass(frozen=True, slots=True)
class SseMessage:
    """One block of a stream; without data it says at most which id has been reached."""

    id: str | None
    data: str


def parse_messages(lines: Iterable[bytes]) -> Iterator[SseMessage]:
    """Read blocks, comments too; a block that the end of the stream cuts off never was one."""
    reached: str | None = None
    data: list[str] = []
    for raw in lines:
        words = raw.decode("utf-8", "replace").rstrip("\r\n")
        if not words:
            yield SseMessage(reached, "\n".join(data))
            reached, data = None, []
            continue
        name, _, value = words.partition(":")
        value = value.removeprefix(" ")
        if name == "data":
            data.append(value)
        elif name == "id" and "\0" not in value:
            reached = value


EVENTS_PATH = "/v1/events"
FIRST_DELAY_SECONDS = 0.25
LONGEST_DELAY_SECONDS = 5.0
"""How long a registry that went away is left alone before it is asked again: twice as long each time."""
SILENCE_SECONDS = 60.0
"""A registry says something more often than that, if only that it is there."""
_STARTING = 503


@dataclass(frozen=True, slots=True)
class Opened:
    """The stream is open: what is asked for now is not older than what it will tell."""


@dataclass(frozen=True, slots=True)
class Received:
    """An event, as the API tells it."""

    event: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Lost:
    """The stream broke; it will be opened again."""

    why: str


@dataclass(frozen=True, slots=True)
class KeepAlive:
    """Nothing happened, and the registry says that it is there."""


StreamEvent = Opened | Received | KeepAlive | Lost


def follow_events(
    api: Api, *, after: str | None = None, node_id: str | None = None, answered: bool = False
) -> Iterator[StreamEvent]:
    """Yield what happens, to one node or to any, behind this event or from now on; raises `Failure`.

    Where nothing happens it yields now and then all the same, so that whoever follows can look up and leave.

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
                    yield Received(_parse_event(message)) if message.data else KeepAlive()
            why = "the stream ended"
        except Refused as refused:
            if refused.problem.status != _STARTING:
                raise
            why = str(refused)
        except Failure as failure:
            if failure.code is not ExitCode.UNREACHABLE or not answered:
                raise
            why = str(failure)
        yield Lost(why)
        time.sleep(delay)
        delay = min(2 * delay, LONGEST_DELAY_SECONDS)


def past_events(api: Api, *, after: int = 0, node_id: str | None = None) -> Iterator[Mapping[str, Any]]:
    """Yield the events of the recent past, the oldest first; raises `Failure`."""
    whose = {} if node_id is None else {"node_id": node_id}
    query = urlencode({"after": after, "follow": "false", **whose})
    with api.stream(f"{EVENTS_PATH}?{query}", last_id=None, silence_seconds=TIMEOUT_SECONDS) as lines:
        for message in parse_messages(lines):
            if message.data:
                yield _parse_event(message)


def _parse_event(message: SseMessage) -> Mapping[str, Any]:
    try:
        event = json.loads(message.data)
    except ValueError:
        event = None
    if not isinstance(event, dict) or missing_part(event, EVENT) is not None:
        raise Failure(
            "what this registry tells as an event is none that this version knows; upgrade gpu-agent here"
        )
    return event
