import asyncio

from gpu_agent.server import chronicle
from gpu_agent.server.chronicle import EVENTS_PER_LISTENER, EVENTS_PER_NODE, MISSED, Chronicle, RegistryEvent


def event(name: str, node_id: str | None = "node-1", at: float = 0.0) -> RegistryEvent:
    return RegistryEvent(at, name, node_id)


def names(written: Chronicle, node_id: str = "node-1") -> list[str]:
    return [one.event for one in written.of(node_id)]


def test_a_history_begins_with_a_registration_and_keeps_the_order() -> None:
    written = Chronicle()
    for name in ("node_registered", "node_fault_reported", "node_status_changed"):
        written.add(event(name))
    assert names(written) == ["node_registered", "node_fault_reported", "node_status_changed"]
    assert names(written, "node-2") == []


def test_whoever_only_claims_an_id_leaves_no_trace() -> None:
    written = Chronicle()
    for number in range(1000):
        written.add(event("node_register_received", f"made-up-{number}"))
        written.add(event("node_register_refused", f"made-up-{number}"))
    assert written._histories == {}


def test_a_history_keeps_the_newest_events_only() -> None:
    written = Chronicle()
    for number in range(EVENTS_PER_NODE + 10):
        written.add(event("node_status_changed", at=float(number)))
    assert [one.at for one in written.of("node-1")] == [float(10 + n) for n in range(EVENTS_PER_NODE)]


def test_with_its_record_a_nodes_history_goes() -> None:
    for ending in ("node_removed", "node_purged"):
        written = Chronicle()
        written.add(event("node_registered"))
        written.add(event(ending))
        assert names(written) == []


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
