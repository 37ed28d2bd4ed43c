"""What one event leads to is collected in order, each document once."""

from gpu_agent.registry.actions import Answer, DocumentKind, Level, LogEvent, Refusal, Step
from gpu_agent.registry.job import Claim, Grant, Job
from tests.registry.harness import node_record


def test_a_document_is_written_once_and_its_nodes_deadline_is_scheduled_again() -> None:
    step = Step(1.0)
    record = node_record(node_id="n")
    step.change_node(record)
    claim = Claim(
        claim_id="c0ffee",
        job=Job(job_id="job-1"),
        owner=None,
        grants=(Grant(node_id="n"),),
        granted_at=0.0,
        expires_at=60.0,
        ttl_seconds=60.0,
    )
    step.change_claim(claim)
    step.change_node(record)
    assert list(step.changed) == [(DocumentKind.NODE, "n"), (DocumentKind.CLAIM, "job-1")]
    assert list(step.touched) == ["n"]


def test_log_events_and_answers_are_collected_apart() -> None:
    step = Step(1.0)
    step.log("received", {"node_id": "n"}, Level.DEBUG)
    step.answer(1)
    step.refuse(2, "UNKNOWN_NODE", "list the nodes")
    assert step.logged == [LogEvent("received", {"node_id": "n"}, Level.DEBUG)]
    assert step.effects == [Answer(1, None), Answer(2, Refusal("UNKNOWN_NODE", "list the nodes"))]


def test_log_events_name_the_trace_of_the_request() -> None:
    step = Step(1.0, trace_id="trace-1")
    step.log("received", {"node_id": "n"})
    step.trace_id = None
    step.log("received", {"node_id": "n"})
    assert [event.fields for event in step.logged] == [
        {"node_id": "n", "trace_id": "trace-1"},
        {"node_id": "n"},
    ]
