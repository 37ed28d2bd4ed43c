import pytest

from gpu_agent.registry.actions import CloseConnection, TellStatus
from gpu_agent.registry.events import ConnectionLost, RegistrationArrived
from gpu_agent.registry.record import LONGEST_DRAIN_SECONDS
from tests.registry.fleets import Registry, closed, codes, declaration, goodbye, of, proof, statuses


def test_a_goodbye_puts_a_node_offline_at_once_and_closes() -> None:
    registry = Registry()
    record = registry.ready()
    left = registry.do(goodbye(reason="upgrade"))
    assert (record.status, record.reason_code) == ("offline", "unregistered")
    assert statuses(left) == ["offline"]
    assert closed(left) == [(1, 1001)]


def test_a_goodbye_that_asks_for_a_drain_lets_the_jobs_finish() -> None:
    registry = Registry()
    record = registry.ready()
    registry.beat(running_jobs=("job-1",))
    assert statuses(registry.do(goodbye(drain=True, deadline_seconds=30))) == ["draining"]
    assert record.drain is not None
    assert record.drain.deadline == registry.now + 30
    left = registry.beat(running_jobs=())
    assert statuses(left) == ["offline"]
    assert closed(left) == [(1, 1001)]


def test_a_drain_that_the_node_asked_for_ends_when_it_registers_again() -> None:
    registry = Registry()
    record = registry.ready()
    registry.beat(running_jobs=("job-1",))
    registry.do(goodbye(drain=True))
    registry.do(ConnectionLost(1))
    again = registry.do(RegistrationArrived(2, declaration(), "unused", credential=proof("node-1")))
    assert statuses(again, 2) == ["registering"]
    assert (record.reason_code, record.drain) == ("resumed", None)


def test_a_drain_asked_while_registering_is_remembered_and_ends_offline_once_the_node_is_healthy() -> None:
    registry = Registry()
    record = registry.ready()
    registry.register(1, "node-1")
    assert statuses(registry.do(goodbye(drain=True))) == ["registering"]
    assert record.drain is not None
    left = registry.beats(3)
    assert statuses(left) == ["ready", "draining", "offline"]
    assert (record.reason_code, closed(left)) == ("drain_complete", [(1, 1001)])


def test_a_node_that_asks_for_a_drain_while_registering_and_falls_silent_times_out() -> None:
    registry = Registry()
    registry.register()
    registry.do(goodbye(drain=True))
    registry.do(ConnectionLost(1))
    registry.pass_time(46.0)
    assert registry.node().reason_code == "heartbeat_timeout"


def test_a_node_may_ask_again_for_its_drain_with_another_deadline() -> None:
    registry = Registry()
    record = registry.ready()
    registry.beat(running_jobs=("job-1",))
    registry.do(goodbye(drain=True, deadline_seconds=30))
    (told,) = of(TellStatus, registry.do(goodbye(drain=True, deadline_seconds=90)))
    assert record.drain is not None
    assert record.drain.deadline == told.drain_deadline == registry.now + 90


def test_a_node_cannot_ask_for_a_drain_that_never_ends() -> None:
    registry = Registry()
    record = registry.ready()
    registry.beat(running_jobs=("job-1",))
    registry.do(goodbye(drain=True, deadline_seconds=1e15))
    assert record.drain is not None
    assert record.drain.deadline == registry.now + LONGEST_DRAIN_SECONDS


@pytest.mark.parametrize("drain", [False, True])
def test_a_goodbyes_reason_is_quoted_and_no_longer_than_a_quote(*, drain: bool) -> None:
    registry = Registry()
    record = registry.ready()
    left = registry.do(goodbye(drain=drain, reason="r" * 4000))
    assert all(len(one.reason) < 300 for one in of(TellStatus, left) + of(CloseConnection, left))
    assert record.drain is None or len(record.drain.reason) == 200


def test_a_goodbye_for_a_node_of_another_connection_is_refused() -> None:
    registry = Registry()
    registry.ready()
    assert codes(registry.do(goodbye(2)), 2) == ["UNKNOWN_NODE"]
    assert registry.node().status == "ready"


def test_a_goodbye_never_shortens_or_lifts_an_operators_drain() -> None:
    registry = Registry()
    record = registry.ready()
    registry.beat(running_jobs=("job-1",))
    registry.drain()
    drain = record.drain
    assert statuses(registry.do(goodbye(drain=True, deadline_seconds=0))) == ["draining"]
    assert record.drain is drain


def test_a_goodbye_after_an_operators_drain_closes_the_open_session() -> None:
    registry = Registry()
    record = registry.ready()
    registry.drain()
    left = registry.do(goodbye())
    assert closed(left) == [(1, 1001)]
    assert record.status == "offline"
    assert record.reason_code == "drain_complete"
