import pytest

from gpu_agent.registry.actions import Action
from gpu_agent.registry.silence import FEWEST_NODES, suspected
from gpu_agent.registry.step import Step
from gpu_agent.wire.codes import NodeStatus
from tests.registry.dispatch.nodes import node
from tests.registry.fleets import Registry, notes, proof, statuses


def fleet_of(count: int, **thresholds: float) -> Registry:
    registry = Registry(**thresholds)  # type: ignore[arg-type] # floats only
    for connection in range(1, count + 1):
        registry.register(connection)
    for _ in range(3):
        registry.pass_time(2.0)
        for connection in range(1, count + 1):
            registry.beat(connection)
    return registry


def beat_on(registry: Registry, connections: range, seconds: float) -> list[Action]:
    done = []
    for _ in range(int(seconds / 10)):
        done += registry.pass_time(10.0)
        for connection in connections:
            done += registry.beat(connection)
    return done


def in_status(registry: Registry, status: str) -> int:
    return sum(record.status == status for record in registry.fleet.nodes())


def test_when_most_of_a_fleet_falls_silent_the_registry_suspects_itself_first() -> None:
    registry = fleet_of(12)
    done = beat_on(registry, range(1, 6), 60.0)
    (note,) = notes(done, "mass_disconnect_suspected")
    assert note.fields == {"live": 12, "silent": 7, "waited_for": 7}
    assert in_status(registry, "ready") == 12


def test_suspected_nodes_are_disconnected_for_dispatch_until_they_beat() -> None:
    registry = fleet_of(12)
    beat_on(registry, range(1, 6), 60.0)
    assert registry.claim("job-1", allowed_nodes=("node-9",)).counts == {"disconnected": 7, "not_allowed": 5}
    registry.beat(9)
    assert registry.claim("job-1", allowed_nodes=("node-9",)).node_id == "node-9"


def test_suspected_nodes_are_waited_for_once_and_no_longer_than_two_timeouts() -> None:
    registry = fleet_of(12)
    beat_on(registry, range(1, 6), 90.0)
    done = registry.pass_time(1.0)
    assert in_status(registry, "offline") == 7
    assert not notes(done, "mass_disconnect_suspected")


def test_a_suspected_node_that_beats_again_has_its_whole_timeout_again() -> None:
    registry = fleet_of(12)
    beat_on(registry, range(1, 6), 60.0)
    done = beat_on(registry, range(1, 13), 120.0)
    assert in_status(registry, "ready") == 12
    assert not [one for connection in range(1, 13) for one in statuses(done, connection) if one == "offline"]


def test_s06_a_suspected_node_that_beats_once_more_has_one_timeout_from_that_beat() -> None:
    registry = fleet_of(12, node_status_interval_seconds=72.0)
    beat_on(registry, range(2, 13), 10.0)
    registry.pass_time(40.0)
    assert registry.node("node-2").suspected
    registry.beat(2)
    beat_on(registry, range(3, 13), 40.0)
    assert registry.node("node-2").status == "ready"
    registry.pass_time(6.0)
    assert registry.node("node-2").status == "offline"


def test_a_suspected_node_that_registers_is_not_suspected_any_more() -> None:
    registry = fleet_of(12)
    beat_on(registry, range(1, 6), 60.0)
    assert registry.node("node-9").suspected
    registry.arrive(proof("node-9"), 20, "node-9")
    for _ in range(3):
        registry.beat(20, "node-9")
    assert registry.claim("job-1", allowed_nodes=("node-9",)).node_id == "node-9"
    beat_on(registry, range(1, 6), 40.0)
    assert registry.pass_time(6.0)
    assert registry.node("node-9").status == "offline"


def test_half_of_a_fleet_falling_silent_is_no_sign_of_anything() -> None:
    registry = fleet_of(12)
    done = beat_on(registry, range(1, 7), 60.0)
    assert not notes(done, "mass_disconnect_suspected")
    assert in_status(registry, "offline") == 6


@pytest.mark.parametrize(("count", "offline"), [(9, 9), (10, 0)])
def test_ten_live_nodes_are_enough_to_suspect_the_registry_and_nine_are_not(count: int, offline: int) -> None:
    registry = fleet_of(count)
    done = registry.pass_time(46.0)
    assert len(notes(done, "mass_disconnect_suspected")) == (offline == 0)
    assert in_status(registry, "offline") == offline


@pytest.mark.parametrize(("seconds", "silent"), [(20.0, 0), (20.001, FEWEST_NODES)])
def test_a_node_is_silent_after_more_than_two_of_its_intervals(seconds: float, silent: int) -> None:
    heard = [node(f"node-{place}", heard_at=1000.0, interval_seconds=10.0) for place in range(FEWEST_NODES)]
    assert suspected(heard, Step(1000.0 + seconds)) == heard[:silent]


@pytest.mark.parametrize("status", NodeStatus)
def test_every_node_that_is_not_offline_lives_and_may_be_waited_for(status: NodeStatus) -> None:
    heard = [node(f"node-{place}", heard_at=1000.0, status=status) for place in range(FEWEST_NODES)]
    waited_for = suspected(heard, Step(2000.0))
    assert waited_for == ([] if status is NodeStatus.OFFLINE else heard)
