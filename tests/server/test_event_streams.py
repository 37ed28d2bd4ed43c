import asyncio
import json
from contextlib import AbstractContextManager
from typing import Any

import pytest

from gpu_agent.server.chronicle import EVENTS_PER_LISTENER, MISSED, Chronicle, Listener, RegistryEvent
from gpu_agent.server.event_streams import HEARTBEAT, MOST_IN_A_PIECE, OPENING, EventStreams
from tests.server.sse import Parser

SOON = 5


class Source:
    def __init__(self) -> None:
        self.chronicle = Chronicle()

    def listening(self, *, after: int | None) -> AbstractContextManager[Listener]:
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
