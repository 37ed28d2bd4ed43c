import pytest

from gpu_agent.registry.actions import Note
from gpu_agent.server.tally import Tally


def counted(*notes: Note) -> Tally:
    tally = Tally()
    for note in notes:
        tally.count(note.event, note.fields)
    return tally


def test_registrations_are_counted_and_refusals_by_code() -> None:
    tally = counted(
        Note("node_registered", {"node_id": "a"}),
        Note("node_register_refused", {"code": "GPU_REQUIRED"}),
        Note("node_register_refused", {"code": "GPU_REQUIRED"}),
    )
    assert (tally.registrations, tally.refusals) == (1, {"GPU_REQUIRED": 2})


def test_changes_of_status_are_counted_by_what_changed_and_why() -> None:
    fields = {"node_id": "a", "from": "ready", "to": "offline", "reason_code": "heartbeat_timeout"}
    assert counted(Note("node_status_changed", fields)).status_changes == {
        ("ready", "offline", "heartbeat_timeout"): 1
    }


def test_the_first_status_of_a_node_is_counted_as_from_none() -> None:
    fields = {"node_id": "n", "from": None, "to": "registering", "reason_code": "registered"}
    assert counted(Note("node_status_changed", fields)).status_changes == {
        ("none", "registering", "registered"): 1
    }


@pytest.mark.parametrize(
    ("event", "outcome"),
    [
        ("job_assigned", "granted"),
        ("claim_released", "released"),
        ("claim_lost", "lost"),
        ("claim_expired", "expired"),
        ("claim_found_again", "found_again"),
    ],
)
def test_what_became_of_claims_is_counted(event: str, outcome: str) -> None:
    tally = counted(Note(event, {"job_id": "j"}))
    assert tally.claims[outcome] == tally.claims.total() == 1


def test_a_failed_dispatch_counts_once_and_its_reasons_node_by_node() -> None:
    failed = Note("dispatch_failed", {"job_id": "j", "counts": {"cordoned": 3, "disconnected": 1}})
    tally = counted(failed, failed)
    assert (tally.failures, tally.exclusions) == (2, {"cordoned": 6, "disconnected": 2})


def test_what_is_not_counted_leaves_no_trace() -> None:
    tally = counted(Note("drain_wished", {"node_id": "a"}))
    assert tally.registrations == tally.failures == tally.claims.total() == 0
