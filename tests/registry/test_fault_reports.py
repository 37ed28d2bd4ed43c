from gpu_agent.registry.actions import Effect, LogEvent
from gpu_agent.registry.events import ConnectionLost, FaultReported
from gpu_agent.registry.fault_reports import FAULTS_PER_WINDOW
from gpu_agent.wire.messages import NodeError
from tests.registry.harness import Registry, logged, of


def faults(registry: Registry, count: int, *, connection: int = 1) -> list[Effect]:
    fault = FaultReported(connection, NodeError(code="NVML_HUNG", message="no answer for 60 s"))
    return [action for _ in range(count) for action in registry.do(fault)]


def test_a_fault_is_logged_with_its_node() -> None:
    registry = Registry()
    registry.ready()
    (entry,) = of(LogEvent, faults(registry, 1))
    assert (entry.event, entry.level) == ("node_fault_reported", "warning")
    assert entry.fields == {"node_id": "node-1", "code": "NVML_HUNG", "message": "no answer for 60 s"}


def test_what_a_node_writes_into_a_fault_is_clipped() -> None:
    registry = Registry()
    registry.ready()
    (entry,) = of(LogEvent, registry.do(FaultReported(1, NodeError(code="c" * 1000, message="m" * 4000))))
    assert (len(str(entry.fields["code"])), len(str(entry.fields["message"]))) == (200, 200)


def test_a_fault_from_a_connection_that_registered_no_node_is_ignored() -> None:
    registry = Registry()
    registry.ready()
    assert faults(registry, 1, connection=2) == []


def test_of_many_faults_a_minute_some_are_logged_and_the_rest_counted_when_it_is_over() -> None:
    registry = Registry()
    registry.ready()
    registry.ready(2)
    assert len(logged(faults(registry, 200), "node_fault_reported")) == FAULTS_PER_WINDOW
    assert len(logged(faults(registry, 1, connection=2), "node_fault_reported")) == 1
    registry.do(ConnectionLost(1))
    done = registry.pass_time(61.0)
    (entry,) = logged(done, "node_faults_left_out")
    assert entry.fields == {"node_id": "node-1", "count": 200 - FAULTS_PER_WINDOW}
    assert not logged(registry.pass_time(600.0), "node_faults_left_out")


def test_the_next_minute_has_room_again() -> None:
    registry = Registry()
    registry.ready()
    faults(registry, 50)
    registry.now += 60.0
    done = faults(registry, 1)
    assert [entry.event for entry in of(LogEvent, done)] == ["node_faults_left_out", "node_fault_reported"]
