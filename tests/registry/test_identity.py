import pytest

from gpu_agent.registry import identity
from gpu_agent.registry.events import RegistrationArrived
from gpu_agent.registry.record import NodeRecord
from gpu_agent.registry.roster import Roster
from gpu_agent.wire.codes import ErrorCode, NodeStatus
from gpu_agent.wire.messages import NodeError
from tests.registry.fleets import declaration, hardware, proof

NOW = 1000.0


def arrival(wanted: str | None, *, proven: str | None = None, connection: int = 9) -> RegistrationArrived:
    credential = None if proven is None else proof(proven)
    return RegistrationArrived(connection, declaration(wanted), "node-FRESH", credential=credential)


def roster_with(status: NodeStatus = NodeStatus.READY, *, connection: int | None = 1) -> Roster:
    roster = Roster()
    record = NodeRecord(
        node_id="node-A",
        registration=declaration(),
        hardware=hardware(),
        registered_at=NOW - 312,
        status=status,
        address="10.0.0.7",
    )
    roster.add(record)
    if connection is not None:
        roster.bind(record, connection)
    return roster


def decide(event: RegistrationArrived, roster: Roster, *, auth_off: bool = False) -> str:
    """Return the id, or the code of the refusal."""
    verdict = identity.decide(event, roster, auth_off=auth_off, now=NOW)
    return verdict.code if isinstance(verdict, NodeError) else verdict


def test_a_node_that_suggests_nothing_gets_the_id_that_was_drawn() -> None:
    assert decide(arrival(None), Roster()) == "node-FRESH"


def test_a_suggested_id_that_nobody_holds_is_granted() -> None:
    assert decide(arrival("node-B"), roster_with()) == "node-B"


def test_r06_a_held_id_is_refused_without_proof_and_the_message_says_how_to_go_on() -> None:
    refusal = identity.decide(arrival("node-A"), roster_with(), auth_off=False, now=NOW)
    assert isinstance(refusal, NodeError)
    assert refusal.code == ErrorCode.NODE_ID_CONFLICT
    assert refusal.message == (
        "node id 'node-A' is held by a node at 10.0.0.7 that registered 5 min ago (ready, connected): "
        "present its node token, have an operator remove its record, "
        "or register with node_id null to be given a fresh id"
    )


@pytest.mark.parametrize(("seconds", "ago"), [(5, "5 s"), (312, "5 min"), (9000, "2.5 h")])
def test_r06_the_message_tells_since_when_the_id_is_held(seconds: int, ago: str) -> None:
    roster = roster_with()
    roster.records["node-A"].registered_at = NOW - seconds
    refusal = identity.decide(arrival("node-A"), roster, auth_off=False, now=NOW)
    assert isinstance(refusal, NodeError)
    assert f"registered {ago} ago" in refusal.message


def test_r06_a_held_id_stays_refused_after_its_node_is_gone() -> None:
    assert decide(arrival("node-A"), roster_with(NodeStatus.OFFLINE, connection=None)) == "NODE_ID_CONFLICT"


def test_with_auth_off_an_id_that_is_offline_or_disconnected_may_be_taken_over() -> None:
    offline = roster_with(NodeStatus.OFFLINE, connection=None)
    disconnected = roster_with(NodeStatus.READY, connection=None)
    assert decide(arrival("node-A"), offline, auth_off=True) == "node-A"
    assert decide(arrival("node-A"), disconnected, auth_off=True) == "node-A"
    assert decide(arrival("node-A"), roster_with(), auth_off=True) == "NODE_ID_CONFLICT"


def test_an_id_whose_connection_is_open_is_not_taken_over_though_its_node_is_suspected() -> None:
    roster = roster_with()
    roster.records["node-A"].suspected = True
    refusal = identity.decide(arrival("node-A"), roster, auth_off=True, now=NOW)
    assert isinstance(refusal, NodeError)
    assert "(ready, connected)" in refusal.message


def test_a_proven_id_is_granted_whoever_is_connected() -> None:
    assert decide(arrival("node-A", proven="node-A"), roster_with()) == "node-A"
    assert decide(arrival(None, proven="node-A"), roster_with()) == "node-A"


def test_another_id_beside_a_proven_one_is_a_conflict() -> None:
    assert decide(arrival("node-B", proven="node-A"), Roster()) == "NODE_ID_CONFLICT"


def test_a_connection_keeps_the_id_that_it_registered() -> None:
    roster = roster_with()
    assert decide(arrival(None, connection=1), roster) == "node-A"
    assert decide(arrival("node-A", connection=1), roster) == "node-A"
    assert decide(arrival("node-B", connection=1), roster) == "NODE_ID_CONFLICT"


def test_an_id_drawn_twice_is_drawn_again() -> None:
    event = RegistrationArrived(9, declaration(), "node-A")
    assert decide(event, roster_with()) == "REGISTRY_BUSY"
