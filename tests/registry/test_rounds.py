from gpu_agent.registry.actions import Refusal
from gpu_agent.registry.events import RenewalAsked
from gpu_agent.registry.rounds import MOST_AT_ONCE
from tests.registry.fleets import Registry, answer, notes


def crowd(count: int, **thresholds: float) -> Registry:
    """A fleet too large to be looked at in one waking."""
    registry = Registry(**thresholds)  # type: ignore[arg-type] # floats only
    for connection in range(1, count + 1):
        registry.register(connection)
    for _ in range(3):
        registry.pass_time(2.0)
        for connection in range(1, count + 1):
            registry.beat(connection)
    return registry


def in_status(registry: Registry, status: str) -> int:
    return sum(record.status == status for record in registry.fleet.nodes())


def test_many_that_fall_silent_together_are_judged_in_parts_at_the_same_time() -> None:
    registry = crowd(3 * MOST_AT_ONCE)
    half = range(1, len(registry.fleet.nodes()) // 2 + 1)
    for _ in range(4):
        registry.pass_time(10.0)
        for connection in half:
            registry.beat(connection)
    registry.now += 6.0
    parts = []
    while registry.fleet.deadline is not None and registry.fleet.deadline <= registry.now:
        parts.append(len(notes(registry.wake(), "heartbeat_timeout")))
    assert max(parts) <= MOST_AT_ONCE
    assert sum(parts) == in_status(registry, "offline") == 3 * MOST_AT_ONCE - len(half)


def test_what_a_scan_leaves_is_asked_for_at_once_and_done_before_the_next_scan_interval() -> None:
    registry = crowd(3 * MOST_AT_ONCE, node_status_interval_seconds=1000.0)
    registry.now += 200.0
    wakings = 0
    while in_status(registry, "ready"):
        assert registry.fleet.deadline is not None
        assert registry.fleet.deadline <= registry.now
        registry.wake()
        wakings += 1
    assert wakings == 3
    assert registry.fleet.deadline is None or registry.fleet.deadline > registry.now


def test_the_fleet_is_asked_for_mass_silence_once_for_all_that_are_due_together() -> None:
    registry = crowd(3 * MOST_AT_ONCE, node_status_interval_seconds=1000.0)
    registry.now += 46.0
    first = registry.wake()
    (note,) = notes(first, "mass_disconnect_suspected")
    assert note.fields["waited_for"] == 3 * MOST_AT_ONCE
    assert registry.claim("job-1").counts == {"disconnected": 3 * MOST_AT_ONCE}
    assert notes(registry.pass_time(10.0), "mass_disconnect_suspected") == []
    assert in_status(registry, "ready") == 3 * MOST_AT_ONCE


def test_many_claims_that_are_over_end_in_parts_and_one_that_is_asked_for_before() -> None:
    count = 2 * MOST_AT_ONCE
    registry = Registry(claim_ttl_seconds=10.0)
    registry.ready(max_concurrent_jobs=count)
    for number in range(count):
        registry.claim(f"job-{number}")
    registry.now += 11.0
    renewed = answer(registry.do(RenewalAsked(registry.ref(), "job-99")))
    assert isinstance(renewed, Refusal)
    assert len(registry.fleet.claims()) == count - MOST_AT_ONCE - 1
    registry.pass_time(0.0)
    assert registry.fleet.claims() == []
