import asyncio

from gpu_agent.registry.actions import Change, Kept
from gpu_agent.server import chronicle
from gpu_agent.server.chronicle import EVENTS_PER_LISTENER, MISSED, Chronicle
from gpu_agent.store.base import EVENTS_PER_NODE, RECENT_EVENTS, Batch, RegistryEvent
from gpu_agent.store.memory import MemoryStore

KEPT = Change(Kept.NODE, "node-1", {})
GONE = Change(Kept.NODE, "node-1", None)


def event(
    name: str, node_id: str | None = "node-1", *, at: float = 0.0, number: int | None = 1
) -> RegistryEvent:
    return RegistryEvent(at, name, node_id, id=number)


def names(written: Chronicle, node_id: str = "node-1") -> list[str]:
    return [one.event for one in written.of(node_id)]


def filled(*numbers: int) -> Chronicle:
    written = Chronicle()
    for number in numbers:
        written.add(event(f"event-{number}", number=number))
    return written


async def heard(written: Chronicle, count: int, *, after: int | None) -> list[str]:
    following = chronicle.follow(written, after=after)
    names = [(await asyncio.wait_for(anext(following), 5)).event for _ in range(count)]
    await following.aclose()  # type: ignore[attr-defined]  # it is a generator
    return names


def test_a_history_begins_when_its_node_is_kept_and_keeps_the_order() -> None:
    written = Chronicle()
    written.keep([KEPT])
    for name in ("node_registered", "node_fault_reported", "node_status_changed"):
        written.add(event(name))
    written.keep([KEPT])
    assert names(written) == ["node_registered", "node_fault_reported", "node_status_changed"]
    assert names(written, "node-2") == []


def test_whoever_only_claims_an_id_leaves_no_history() -> None:
    written = Chronicle()
    for number in range(1000):
        written.add(event("node_register_received", f"made-up-{number}"))
    assert written._histories == {}


def test_a_history_keeps_the_newest_events_only() -> None:
    written = Chronicle()
    written.keep([KEPT])
    for number in range(EVENTS_PER_NODE + 10):
        written.add(event("node_status_changed", at=float(number)))
    assert [one.at for one in written.of("node-1")] == [float(10 + n) for n in range(EVENTS_PER_NODE)]


def test_with_its_document_a_nodes_history_goes() -> None:
    written = Chronicle()
    written.keep([KEPT])
    written.add(event("node_registered"))
    written.keep([GONE])
    written.add(event("node_removed"))
    assert names(written) == []


def test_what_could_not_be_kept_joins_no_history() -> None:
    written = Chronicle()
    written.keep([KEPT])
    written.add(event("node_registered", number=None))
    assert names(written) == []


def test_it_remembers_what_a_store_does_and_numbers_go_on_after_a_restart() -> None:
    store, written = MemoryStore(), Chronicle()
    for number in range(1, 3 * EVENTS_PER_NODE):
        changes = {1: [KEPT], 20: [GONE], 30: [KEPT]}.get(number, [])
        happened = event("something", "node-1" if number % 3 else "node-2", number=written.next_id())
        store.save([Batch(changes, [happened])])
        written.keep(changes)
        written.add(happened)
    again = Chronicle()
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
    written = Chronicle()
    written.add(event("before"))
    with written.listening() as listener:
        written.add(event("first", None))
        written.add(event("second"))
        assert [(await listener.next()).event, (await listener.next()).event] == ["first", "second"]


async def test_a_listener_waits_for_what_has_not_happened_yet() -> None:
    written = Chronicle()
    with written.listening() as listener:
        waiting = asyncio.ensure_future(listener.next())
        await asyncio.sleep(0)
        assert not waiting.done()
        written.add(event("at last"))
        assert (await asyncio.wait_for(waiting, 5)).event == "at last"


async def test_a_slow_listener_loses_the_oldest_and_is_told_how_many() -> None:
    written = Chronicle()
    with written.listening() as listener:
        for number in range(EVENTS_PER_LISTENER + 3):
            written.add(event("e", at=float(number)))
        missed = await listener.next()
        assert (missed.event, missed.fields) == (MISSED, {"count": 3})
        assert (await listener.next()).at == 3.0


async def test_who_stops_listening_costs_nothing_any_more() -> None:
    written = Chronicle()
    following = chronicle.follow(written)
    first = asyncio.ensure_future(anext(following))
    await asyncio.sleep(0)
    written.add(event("first"))
    assert (await first).event == "first"
    await following.aclose()  # type: ignore[attr-defined]
    assert written._listeners == set()
