"""The event log holds histories and recent events, and serves subscribers and streams of them."""

import asyncio
import json
from typing import Any

import pytest

from gpu_agent.registry.actions import Change, DocumentKind
from gpu_agent.server.event_log import (
    EVENTS_PER_SUBSCRIBER,
    HEARTBEAT,
    MOST_IN_A_PIECE,
    OPENING,
    EventFilter,
    EventStreams,
    RegistryEventLog,
)
from gpu_agent.store.base import EVENTS_PER_NODE, RECENT_EVENTS, Batch, Loaded
from gpu_agent.store.memory import MemoryStore
from gpu_agent.wire.api import RegistryEvent
from gpu_agent.wire.event_words import MISSED
from tests.server.sse import Parser
from tests.waiting import patience

STORED = Change(DocumentKind.NODE, "node-1", {})
DELETED = Change(DocumentKind.NODE, "node-1", None)


def event(name: str, node_id: str | None = "node-1", *, at: float = 0.0, number: int = 1) -> RegistryEvent:
    return RegistryEvent(at, name, node_id, id=number)


def names(log: RegistryEventLog, node_id: str = "node-1") -> list[str]:
    return [one.event for one in log.history_of(node_id)]


def filled(*numbers: int) -> RegistryEventLog:
    log = RegistryEventLog()
    for number in numbers:
        log.publish(event(f"event-{number}", number=number))
    return log


async def heard(log: RegistryEventLog, count: int, *, after: int | None) -> list[str]:
    following = log.follow(after=after)
    names = [(await asyncio.wait_for(anext(following), patience(5))).event for _ in range(count)]
    await following.aclose()  # type: ignore[attr-defined]  # it is a generator
    return names


def test_a_history_begins_when_its_node_is_stored_and_stays_in_order() -> None:
    log = RegistryEventLog()
    log.update_histories([STORED])
    for name in ("node_registered", "node_fault_reported", "node_status_changed"):
        log.publish(event(name))
    log.update_histories([STORED])
    assert names(log) == ["node_registered", "node_fault_reported", "node_status_changed"]
    assert names(log, "node-2") == []


def test_a_node_that_is_not_stored_has_no_history() -> None:
    log = RegistryEventLog()
    for number in range(1000):
        log.publish(event("node_register_received", f"made-up-{number}"))
    assert log._histories == {}


def test_a_history_holds_the_newest_events_only() -> None:
    log = RegistryEventLog()
    log.update_histories([STORED])
    for number in range(EVENTS_PER_NODE + 10):
        log.publish(event("node_status_changed", at=float(number)))
    assert [one.at for one in log.history_of("node-1")] == [float(10 + n) for n in range(EVENTS_PER_NODE)]


def test_a_nodes_history_is_deleted_with_its_document() -> None:
    log = RegistryEventLog()
    log.update_histories([STORED])
    log.publish(event("node_registered"))
    log.update_histories([DELETED])
    log.publish(event("node_removed"))
    assert names(log) == []


def test_it_holds_what_a_store_does_and_ids_go_on_after_a_restart() -> None:
    store, log = MemoryStore(), RegistryEventLog()
    for number in range(1, 3 * EVENTS_PER_NODE):
        changes = {1: [STORED], 20: [DELETED], 30: [STORED]}.get(number, [])
        happened = event("something", "node-1" if number % 3 else "node-2", number=log.next_id())
        store.save([Batch(changes, [happened])])
        log.update_histories(changes)
        log.publish(happened)
    again = RegistryEventLog()
    again.restore(store.load())
    assert again.history_of("node-1") == log.history_of("node-1") != ()
    assert again.next_id() == log.next_id()


async def test_over_a_takeover_ids_go_on_without_a_gap_and_none_comes_twice() -> None:
    """The earlier leader drew ids that it did not store, and published less than it stored."""
    store, earlier = MemoryStore(), RegistryEventLog()
    stored = [event(f"event-{number}", number=earlier.next_id()) for number in (1, 2, 3)]
    store.save([Batch([], stored)])
    earlier.publish(stored[0])
    reader = earlier.follow(after=0)
    received = [(await anext(reader)).id]
    await reader.aclose()  # type: ignore[attr-defined]  # it is a generator
    assert earlier.next_id() == 4
    second, later = RegistryEventLog(), RegistryEventLog()
    for log in (second, later):  # the second leader stores nothing
        log.restore(store.load())
        assert log.next_id() == 4
    later.publish(event("event-4", number=4))
    following = later.follow(after=received[-1])
    received += [(await anext(following)).id for _ in range(3)]
    await following.aclose()  # type: ignore[attr-defined]  # it is a generator
    assert received == [1, 2, 3, 4]


async def test_a_subscriber_receives_what_it_missed_and_then_what_follows() -> None:
    log = filled(1, 2, 3, 4)
    following = log.follow(after=2)
    assert [(await anext(following)).id, (await anext(following)).id] == [3, 4]
    log.publish(event("event-5", number=5))
    assert (await asyncio.wait_for(anext(following), patience(5))).id == 5
    await following.aclose()  # type: ignore[attr-defined]  # it is a generator


async def test_a_subscriber_that_was_away_too_long_receives_that_first() -> None:
    log = filled(1, RECENT_EVENTS, RECENT_EVENTS + 1)
    assert await heard(log, 3, after=0) == [
        MISSED,
        f"event-{RECENT_EVENTS}",
        f"event-{RECENT_EVENTS + 1}",
    ]
    assert await heard(log, 2, after=RECENT_EVENTS - 1) == [
        f"event-{RECENT_EVENTS}",
        f"event-{RECENT_EVENTS + 1}",
    ]


async def test_a_subscriber_that_names_an_unknown_event_receives_that() -> None:
    """As after a restore: what came after the backup is gone, though a subscriber may have received it."""
    assert await heard(filled(1, 2), 1, after=90) == [MISSED]


async def test_a_subscriber_receives_every_event_from_its_subscription_on() -> None:
    log = RegistryEventLog()
    log.publish(event("before"))
    with log.subscribe() as subscriber:
        log.publish(event("first", None))
        log.publish(event("second"))
        assert [(await subscriber.next()).event, (await subscriber.next()).event] == ["first", "second"]


async def test_a_subscriber_waits_for_the_next_event() -> None:
    log = RegistryEventLog()
    with log.subscribe() as subscriber:
        waiting = asyncio.ensure_future(subscriber.next())
        await asyncio.sleep(0)
        assert not waiting.done()
        log.publish(event("at last"))
        assert (await asyncio.wait_for(waiting, patience(5))).event == "at last"


async def test_a_slow_subscriber_loses_the_oldest_events_and_receives_how_many() -> None:
    log = RegistryEventLog()
    with log.subscribe() as subscriber:
        for number in range(EVENTS_PER_SUBSCRIBER + 3):
            log.publish(event("e", at=float(number)))
        missed = await subscriber.next()
        assert (missed.event, missed.fields) == (MISSED, {"count": 3})
        assert (await subscriber.next()).at == 3.0


async def test_a_subscriber_that_has_gone_costs_nothing() -> None:
    log = RegistryEventLog()
    following = log.follow()
    first = asyncio.ensure_future(anext(following))
    await asyncio.sleep(0)
    log.publish(event("first"))
    assert (await first).event == "first"
    await following.aclose()  # type: ignore[attr-defined]
    assert log.subscribers == 0


async def test_who_waits_for_an_event_hears_whether_it_came_also_by_a_restore() -> None:
    log = RegistryEventLog()
    assert not await log.reach(1, within_seconds=0.01)
    waiting = asyncio.ensure_future(log.reach(1, within_seconds=60))
    await asyncio.sleep(0)
    log.restore(Loaded([], [event("first")], {}))
    assert await asyncio.wait_for(waiting, patience(5))


SOON = 5


class Source:
    def __init__(self) -> None:
        self.event_log = RegistryEventLog()

    def happen(self, *numbers: int, node_id: str | None = None) -> None:
        for number in numbers:
            self.event_log.publish(RegistryEvent(1.5, f"event_{number}", node_id, {"n": number}, number))


async def begun(streams: EventStreams, source: Source, **asked: Any) -> Any:  # noqa: ANN401 - a generator
    stream = streams.stream(source.event_log, **{"after": None, **asked})
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


async def test_events_that_follow_closely_are_written_together_and_the_first_one_at_once() -> None:
    source, streams = Source(), EventStreams()
    stream = await begun(streams, source)
    others = [await begun(streams, source) for _ in range(39)]

    async def happen() -> None:
        for number in range(1, 101):
            source.happen(number)
            await asyncio.sleep(0.002)

    happening = asyncio.ensure_future(happen())
    pieces = [await read(stream)]
    while b"event_100\n" not in pieces[-1]:
        pieces.append(await read(stream))
    await happening
    for one in (stream, *others):
        await one.aclose()
    assert [event.id for event in Parser().feed(pieces[0])] == ["1"]
    assert [event.id for event in Parser().feed(b"".join(pieces))] == [str(n) for n in range(1, 101)]
    assert len(pieces) < 30


async def test_a_piece_is_written_once_for_all_followers_that_are_as_far() -> None:
    source, streams = Source(), EventStreams()
    first, second = await begun(streams, source), await begun(streams, source)
    source.happen(1, 2, 3)
    assert await read(first) is await read(second)
    for stream in (first, second):
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
    stream = streams.stream(source.event_log, after=None)
    assert await anext(stream) == OPENING + b"id: 2\n\n"
    streams.close()
    assert [piece async for piece in stream] == []


@pytest.mark.parametrize(("node_id", "sent"), [(None, ["2", "3"]), ("node-1", ["3"])])
async def test_who_wants_only_what_was_reads_to_the_present_and_no_further(
    node_id: str | None, sent: list[str]
) -> None:
    source = Source()
    source.happen(1, 2)
    source.happen(3, node_id="node-1")
    stream = EventStreams().stream(
        source.event_log, after=1, wanted=EventFilter(node_id=node_id), follow=False
    )
    async with asyncio.timeout(SOON):
        text = b"".join([piece async for piece in stream])
    assert [event.id for event in Parser().feed(text)] == sent
    assert source.event_log.subscribers == 0


async def test_who_reads_slowly_loses_the_oldest_and_is_told_how_many() -> None:
    source = Source()
    stream = await begun(EventStreams(), source)
    source.happen(*range(1, EVENTS_PER_SUBSCRIBER + 6))
    first, second, *_ = Parser().feed(await read(stream))
    assert (first.name, first.id, json.loads(first.data)["fields"]) == (MISSED, None, {"count": 5})
    assert second.id == "6"
    await stream.aclose()


async def test_events_of_other_nodes_are_left_out_but_not_that_some_were_missed() -> None:
    source = Source()
    stream = await begun(EventStreams(), source, wanted=EventFilter(node_id="node-1"))
    source.happen(*range(1, EVENTS_PER_SUBSCRIBER + 2), node_id="node-2")
    source.happen(last := EVENTS_PER_SUBSCRIBER + 2, node_id="node-1")
    parser, names = Parser(), list[str]()
    while f"event_{last}" not in names:
        names += [event.name for event in parser.feed(await read(stream))]
    assert names == [MISSED, f"event_{last}"]
    await stream.aclose()


async def test_a_stream_shows_that_it_lives_and_how_far_it_has_come() -> None:
    source = Source()
    stream = await begun(EventStreams(heartbeat_seconds=0.02), source, wanted=EventFilter(node_id="node-1"))
    assert await read(stream) == HEARTBEAT
    source.happen(4, node_id="node-2")
    assert await read(stream) == b"id: 4\n\n"
    assert await read(stream) == HEARTBEAT
    await stream.aclose()


async def test_a_busy_fleet_does_not_keep_a_quiet_stream_from_showing_that_it_lives() -> None:
    source, streams = Source(), EventStreams(heartbeat_seconds=0.05)
    stream = await begun(streams, source, wanted=EventFilter(node_id="node-1"))
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
    assert source.event_log.subscribers == 0


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
    assert source.event_log.subscribers == 0


@pytest.mark.parametrize("happens", [False, True])
async def test_a_stream_ends_within_a_second_of_its_token_with_events_or_without(*, happens: bool) -> None:
    source, valid = Source(), [True]
    streams = EventStreams(heartbeat_seconds=3600.0)
    stream = await begun(streams, source, wanted=EventFilter(node_id="node-1"), is_valid=lambda: valid[0])
    reading = asyncio.ensure_future(anext(stream))
    await asyncio.sleep(0)
    valid.clear()
    valid.append(False)
    if happens:
        source.happen(1, node_id="node-1")
    with pytest.raises(StopAsyncIteration):
        await asyncio.wait_for(reading, patience(2))
    assert source.event_log.subscribers == 0


async def test_events_that_a_long_outage_dropped_are_counted_for_followers() -> None:
    log = filled(1, 2)
    with log.subscribe() as subscriber:
        for number in (6, 7):
            log.publish(event(f"event-{number}", number=number))
        async with asyncio.timeout(patience(5)):
            received = [await subscriber.next() for _ in range(3)]
    assert [(one.event, one.fields) for one in received] == [
        (MISSED, {"count": 3}),
        ("event-6", {}),
        ("event-7", {}),
    ]


async def test_who_comes_back_after_a_dropped_event_learns_of_it() -> None:
    assert await heard(filled(1, 2, 6), 2, after=2) == [MISSED, "event-6"]


async def test_a_full_queue_counts_what_a_dropped_note_counted() -> None:
    log = filled(1)
    with log.subscribe() as subscriber:
        for number in range(6, 6 + EVENTS_PER_SUBSCRIBER):
            log.publish(event(f"event-{number}", number=number))
        assert (await subscriber.next()).fields == {"count": 4}
