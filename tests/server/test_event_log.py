""""""

import asyncio
import json
from contextlib import AbstractContextManager
from typing import Any

import pytest

from gpu_agent.registry.actions import Change, DocumentKind
from gpu_agent.server import event_log as chronicle
from gpu_agent.server.event_log import (
    EVENTS_PER_LISTENER,
    HEARTBEAT,
    MISSED,
    MOST_IN_A_PIECE,
    OPENING,
    EventStreams,
    RegistryEventLog,
    Subscriber,
)
from gpu_agent.store.base import EVENTS_PER_NODE, RECENT_EVENTS, Batch
from gpu_agent.store.memory import MemoryStore
from gpu_agent.wire.api import RegistryEvent
from tests.server.sse import Parser

KEPT = Change(DocumentKind.NODE, "node-1", {})
GONE = Change(DocumentKind.NODE, "node-1", None)


def event(
    name: str, node_id: str | None = "node-1", *, at: float = 0.0, number: int | None = 1
) -> RegistryEvent:
    return RegistryEvent(at, name, node_id, id=number)


def names(written: RegistryEventLog, node_id: str = "node-1") -> list[str]:
    return [one.event for one in written.of(node_id)]


def filled(*numbers: int) -> RegistryEventLog:
    written = RegistryEventLog()
    for number in numbers:
        written.add(event(f"event-{number}", number=number))
    return written


async def heard(written: RegistryEventLog, count: int, *, after: int | None) -> list[str]:
    following = chronicle.follow(written, after=after)
    names = [(await asyncio.wait_for(anext(following), 5)).event for _ in range(count)]
    await following.aclose()  # type: ignore[attr-defined]  # it is a generator
    return names


def test_a_history_begins_when_its_node_is_kept_and_keeps_the_order() -> None:
    written = RegistryEventLog()
    written.keep([KEPT])
    for name in ("node_registered", "node_fault_reported", "node_status_changed"):
        written.add(event(name))
    written.keep([KEPT])
    assert names(written) == ["node_registered", "node_fault_reported", "node_status_changed"]
    assert names(written, "node-2") == []


def test_whoever_only_claims_an_id_leaves_no_history() -> None:
    written = RegistryEventLog()
    for number in range(1000):
        written.add(event("node_register_received", f"made-up-{number}"))
    assert written._histories == {}


def test_a_history_keeps_the_newest_events_only() -> None:
    written = RegistryEventLog()
    written.keep([KEPT])
    for number in range(EVENTS_PER_NODE + 10):
        written.add(event("node_status_changed", at=float(number)))
    assert [one.at for one in written.of("node-1")] == [float(10 + n) for n in range(EVENTS_PER_NODE)]


def test_with_its_document_a_nodes_history_goes() -> None:
    written = RegistryEventLog()
    written.keep([KEPT])
    written.add(event("node_registered"))
    written.keep([GONE])
    written.add(event("node_removed"))
    assert names(written) == []


def test_what_could_not_be_kept_joins_no_history() -> None:
    written = RegistryEventLog()
    written.keep([KEPT])
    written.add(event("node_registered", number=None))
    assert names(written) == []


def test_it_remembers_what_a_store_does_and_numbers_go_on_after_a_restart() -> None:
    store, written = MemoryStore(), RegistryEventLog()
    for number in range(1, 3 * EVENTS_PER_NODE):
        changes = {1: [KEPT], 20: [GONE], 30: [KEPT]}.get(number, [])
        happened = event("something", "node-1" if number % 3 else "node-2", number=written.next_id())
        store.save([Batch(changes, [happened])])
        written.keep(changes)
        written.add(happened)
    again = RegistryEventLog()
    again.restore(store.load())
    assert again.of("node-1") == written.of("node-1") != ()
    assert again.next_id() == written.next_id()


async def test_who_was_away_hears_what_happened_meanwhile_then_what_happens() -> None:
    written = filled(1, 2, 5, 6)
    following = chronicle.follow(written, after=2)
    assert [(await anext(following)).id, (await anext(following)).id] == [5, 6]
    written.add(event("event-7", number=7))
    assert (await asyncio.wait_for(anext(following), 5)).id == 7
    await following.aclose()  # type: ignore[attr-defined]  # it is a generator


async def test_who_was_away_too_long_is_told_so_first() -> None:
    written = filled(1, RECENT_EVENTS, RECENT_EVENTS + 1)
    assert await heard(written, 3, after=0) == [
        MISSED,
        f"event-{RECENT_EVENTS}",
        f"event-{RECENT_EVENTS + 1}",
    ]
    assert await heard(written, 2, after=RECENT_EVENTS - 1) == [
        f"event-{RECENT_EVENTS}",
        f"event-{RECENT_EVENTS + 1}",
    ]


async def test_who_knows_of_events_that_never_were_is_told_so() -> None:
    """As after a restore: what came after the backup is gone, whoever heard it."""
    assert await heard(filled(1, 2), 1, after=90) == [MISSED]


async def test_a_listener_hears_everything_from_its_subscription_on() -> None:
    written = RegistryEventLog()
    written.add(event("before"))
    with written.listening() as listener:
        written.add(event("first", None))
        written.add(event("second"))
        assert [(await listener.next()).event, (await listener.next()).event] == ["first", "second"]


async def test_a_listener_waits_for_what_has_not_happened_yet() -> None:
    written = RegistryEventLog()
    with written.listening() as listener:
        waiting = asyncio.ensure_future(listener.next())
        await asyncio.sleep(0)
        assert not waiting.done()
        written.add(event("at last"))
        assert (await asyncio.wait_for(waiting, 5)).event == "at last"


async def test_a_slow_listener_loses_the_oldest_and_is_told_how_many() -> None:
    written = RegistryEventLog()
    with written.listening() as listener:
        for number in range(EVENTS_PER_LISTENER + 3):
            written.add(event("e", at=float(number)))
        missed = await listener.next()
        assert (missed.event, missed.fields) == (MISSED, {"count": 3})
        assert (await listener.next()).at == 3.0


async def test_who_stops_listening_costs_nothing_any_more() -> None:
    written = RegistryEventLog()
    following = chronicle.follow(written)
    first = asyncio.ensure_future(anext(following))
    await asyncio.sleep(0)
    written.add(event("first"))
    assert (await first).event == "first"
    await following.aclose()  # type: ignore[attr-defined]
    assert written._listeners == set()


SOON = 5


class Source:
    def __init__(self) -> None:
        self.chronicle = RegistryEventLog()

    def listening(self, *, after: int | None) -> AbstractContextManager[Subscriber]:
        return self.chronicle.listening(after=after)

    def happen(self, *numbers: int, node_id: str | None = None) -> None:
        for number in numbers:
            self.chronicle.add(RegistryEvent(1.5, f"event_{number}", node_id, {"n": number}, number))


async def begun(streams: EventStreams, source: Source, **asked: Any) -> Any:  # noqa: ANN401 - a generator
    stream = streams.stream(source, **{"after": None, **asked})
    assert await anext(stream) == OPENING
    return stream


async def read(stream: Any) -> bytes:  # noqa: ANN401
    async with asyncio.timeout(SOON):
        piece: bytes = await anext(stream)
        return piece


async def test_an_event_is_written_with_its_number_its_identifier_and_its_fields() -> None:
    source = Source()
    stream = await begun(EventStreams(), source)
    source.happen(7, node_id="node-1")
    (event,) = Parser().feed(await read(stream))
    assert (event.id, event.name) == ("7", "event_7")
    assert json.loads(event.data) == {
        "at": 1.5,
        "event": "event_7",
        "node_id": "node-1",
        "fields": {"n": 7},
        "id": 7,
    }
    await stream.aclose()


async def test_what_waits_is_written_in_few_pieces_and_in_order() -> None:
    source = Source()
    stream = await begun(EventStreams(), source)
    source.happen(*range(1, MOST_IN_A_PIECE + 2))
    parser = Parser()
    first, second = parser.feed(await read(stream)), parser.feed(await read(stream))
    assert [len(first), len(second)] == [MOST_IN_A_PIECE, 1]
    assert [event.id for event in first + second] == [str(n) for n in range(1, MOST_IN_A_PIECE + 2)]
    await stream.aclose()


async def test_who_comes_back_goes_on_behind_what_was_read() -> None:
    source = Source()
    source.happen(1, 2, 3)
    stream = await begun(EventStreams(), source, after=1)
    assert [event.id for event in Parser().feed(await read(stream))] == ["2", "3"]
    await stream.aclose()


async def test_who_begins_now_is_told_where_that_is_and_can_go_on_from_there() -> None:
    source = Source()
    source.happen(1, 2)
    streams = EventStreams()
    stream = streams.stream(source, after=None)
    assert await anext(stream) == OPENING + b"id: 2\n\n"
    streams.close()
    assert [piece async for piece in stream] == []


@pytest.mark.parametrize(("node_id", "told"), [(None, ["2", "3"]), ("node-1", ["3"])])
async def test_who_wants_only_what_was_reads_to_the_present_and_no_further(
    node_id: str | None, told: list[str]
) -> None:
    source = Source()
    source.happen(1, 2)
    source.happen(3, node_id="node-1")
    stream = EventStreams().stream(source, after=1, node_id=node_id, on=False)
    async with asyncio.timeout(SOON):
        text = b"".join([piece async for piece in stream])
    assert [event.id for event in Parser().feed(text)] == told
    assert source.chronicle.listeners == 0


async def test_who_reads_slowly_loses_the_oldest_and_is_told_how_many() -> None:
    source = Source()
    stream = await begun(EventStreams(), source)
    source.happen(*range(1, EVENTS_PER_LISTENER + 6))
    first, second, *_ = Parser().feed(await read(stream))
    assert (first.name, first.id, json.loads(first.data)["fields"]) == (MISSED, None, {"count": 5})
    assert second.id == "6"
    await stream.aclose()


async def test_events_of_other_nodes_are_left_out_but_not_that_some_were_missed() -> None:
    source = Source()
    stream = await begun(EventStreams(), source, node_id="node-1")
    source.happen(*range(1, EVENTS_PER_LISTENER + 2), node_id="node-2")
    source.happen(5000, node_id="node-1")
    parser, names = Parser(), list[str]()
    while "event_5000" not in names:
        names += [event.name for event in parser.feed(await read(stream))]
    assert names == [MISSED, "event_5000"]
    await stream.aclose()


async def test_a_stream_shows_that_it_lives_and_how_far_it_has_come() -> None:
    source = Source()
    stream = await begun(EventStreams(heartbeat_seconds=0.02), source, node_id="node-1")
    assert await read(stream) == HEARTBEAT
    source.happen(4, node_id="node-2")
    assert await read(stream) == b"id: 4\n\n"
    assert await read(stream) == HEARTBEAT
    await stream.aclose()


async def test_a_busy_fleet_does_not_keep_a_quiet_stream_from_showing_that_it_lives() -> None:
    source, streams = Source(), EventStreams(heartbeat_seconds=0.05)
    stream = await begun(streams, source, node_id="node-1")
    reading = asyncio.ensure_future(read(stream))
    for number in range(1, 1000):
        if reading.done():
            break
        source.happen(number, node_id="node-2")
        await asyncio.sleep(0.001)
    assert (await reading).startswith(b"id: ")
    await stream.aclose()


async def test_no_more_streams_are_open_than_may_be_and_room_opens_again() -> None:
    source, streams = Source(), EventStreams(most=1)
    fullness = [streams.full]
    stream = await begun(streams, source)
    fullness.append(streams.full)
    await stream.aclose()
    fullness.append(streams.full)
    assert fullness == [False, True, False]
    assert source.chronicle.listeners == 0


async def test_closing_ends_streams_that_wait_and_lets_nobody_in() -> None:
    source, streams = Source(), EventStreams()
    stream = await begun(streams, source)
    reading = asyncio.ensure_future(anext(stream))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    streams.close()
    with pytest.raises(StopAsyncIteration):
        await asyncio.wait_for(reading, SOON)
    assert streams.full
    assert source.chronicle.listeners == 0
