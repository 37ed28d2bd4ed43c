import json
from collections.abc import Iterator
from itertools import islice

import pytest

from gpu_agent.cli.client import events as following
from gpu_agent.cli.client.events import (
    Lost,
    Opened,
    Received,
    StreamEvent,
    follow_events,
    parse_messages,
)
from gpu_agent.cli.client.http import Api, Refused
from gpu_agent.cli.command import ExitCode, Failure
from gpu_agent.wire.event_stream import SseMessage
from tests.cli.stand_in import Refusal, Said, Stream, standing_in
from tests.programs import free_port

PATH = "GET /v1/events"


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(following, "FIRST_DELAY_SECONDS", 0.01)


def sent(number: int) -> str:
    event = {"id": number, "at": 1.0, "event": "node_removed", "node_id": "n", "fields": {}}
    return f"id: {number}\nevent: node_removed\ndata: {json.dumps(event)}\n\n"


def in_words(happenings: Iterator[StreamEvent], count: int) -> list[object]:
    return [
        one.event.id if isinstance(one, Received) else type(one).__name__ for one in islice(happenings, count)
    ]


def test_after_a_break_it_goes_on_behind_the_last_event() -> None:
    answers: Iterator[Said] = iter(
        [
            Stream([": hello\n\n", sent(7), sent(8)]),
            Refusal(503, "STARTING"),
            Stream(["id: 11\n\n"]),
            Stream([sent(12)]),
        ]
    )
    with standing_in({PATH: lambda: next(answers)}) as registry:
        assert in_words(follow_events(Api(registry.api), after="6"), 11) == [
            "Opened",
            "KeepAlive",
            7,
            8,
            "Lost",
            "Lost",
            "Opened",
            "KeepAlive",
            "Lost",
            "Opened",
            12,
        ]
        asked = [headers.get("last-event-id") for headers in registry.headers]
        assert asked == ["6", "8", "8", "11"]
        assert registry.headers[0]["accept"] == "text/event-stream"


def test_a_registry_that_goes_is_waited_for() -> None:
    with standing_in({PATH: Stream([sent(1)])}) as registry:
        happenings = follow_events(Api(registry.api))
        assert in_words(happenings, 2) == ["Opened", 1]
    assert in_words(happenings, 3) == ["Lost", "Lost", "Lost"]
    assert isinstance(next(happenings), Lost)


def test_one_that_never_answered_is_not() -> None:
    with pytest.raises(Failure) as failed:
        next(follow_events(Api(f"http://127.0.0.1:{free_port()}")))
    assert failed.value.code is ExitCode.UNREACHABLE


def test_one_that_has_answered_something_else_is_waited_for_from_the_first_opening_on() -> None:
    """A watch whose registry restarted between its first list and its first event ended with 5."""
    happenings = follow_events(Api(f"http://127.0.0.1:{free_port()}"), answered=True)
    assert in_words(happenings, 2) == ["Lost", "Lost"]


@pytest.mark.parametrize("status", [401, 403, 404])
def test_a_refusal_is_reported(status: int) -> None:
    with standing_in({PATH: Refusal(status, "NO")}) as registry, pytest.raises(Refused):
        next(follow_events(Api(registry.api)))


@pytest.mark.parametrize("data", ["no json", "[]", "{}", '{"event": 7, "at": 1}'])
def test_what_is_no_event_ends_it_with_the_next_step(data: str) -> None:
    with standing_in({PATH: Stream([f"data: {data}\n\n"])}) as registry:
        happenings = follow_events(Api(registry.api))
        assert isinstance(next(happenings), Opened)
        with pytest.raises(Failure, match="upgrade"):
            next(happenings)


def test_what_is_no_stream_comes_from_no_registry() -> None:
    with (
        standing_in({PATH: {"nodes": []}}) as registry,
        pytest.raises(Failure, match="no gpu-agent registry"),
    ):
        next(follow_events(Api(registry.api)))


@pytest.mark.parametrize(
    ("written", "read"),
    [
        (b"id: 7\nevent: x\ndata: {}\n\n", [SseMessage("7", "{}")]),
        (b"data:a\ndata: b\n\n", [SseMessage(None, "a\nb")]),
        (b": keeps the connection\n\n", [SseMessage(None, "")]),
        (b"id: 9\n\n", [SseMessage("9", "")]),
        (b"id\ndata: x\r\n\r\n", [SseMessage("", "x")]),
        (b"retry: 500\nunknown: x\n\ndata: y\n\n", [SseMessage(None, ""), SseMessage(None, "y")]),
        (b"id: a\0b\ndata: z\n\n", [SseMessage(None, "z")]),
        (b"data: cut off", []),
        (b"", []),
    ],
)
def test_blocks_are_read_as_the_standard_has_them(written: bytes, read: list[SseMessage]) -> None:
    assert list(parse_messages(written.splitlines(keepends=True))) == read
