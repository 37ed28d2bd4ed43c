from gpu_agent.registry.actions import Answer, DocumentKind, Level, LogEvent, Refusal
from gpu_agent.registry.node import NodeRecord
from gpu_agent.registry.step import Step
from gpu_agent.wire.codes import NodeStatus
from tests.registry.harness import declaration, hardware


def node() -> NodeRecord:
    return NodeRecord(node_id="n", registration=declaration(), hardware=hardware(), registered_at=0.0)


def test_a_node_is_remembered_as_it_was_before_the_first_change() -> None:
    step, record = Step(1.0), node()
    step.remember(record)
    record.status = NodeStatus.READY
    step.remember(record)
    before = step.before[(DocumentKind.NODE, "n")]
    assert isinstance(before, NodeRecord)
    assert before.status == "registering"


def test_what_is_kept_is_kept_once_and_looked_at_again() -> None:
    step, record = Step(1.0), node()
    step.change_node(record)
    step.change_claim("job-1")
    step.change_node(record)
    assert list(step.keys) == [(DocumentKind.NODE, "n"), (DocumentKind.CLAIM, "job-1")]
    assert list(step.touched) == ["n"]


def test_notes_and_answers_are_collected_apart() -> None:
    step = Step(1.0)
    step.note("heard", {"node_id": "n"}, Level.DEBUG)
    step.answer(1)
    step.refuse(2, "UNKNOWN_NODE", "list the nodes")
    step.refuse_unsaved(3)
    assert step.notes == [LogEvent("heard", {"node_id": "n"}, Level.DEBUG)]
    assert step.told == [Answer(1, None), Answer(2, Refusal("UNKNOWN_NODE", "list the nodes"))]
    (unsaved,) = step.refusals
    assert isinstance(unsaved, Answer)
    assert isinstance(unsaved.result, Refusal)
    assert (unsaved.ref, unsaved.result.code) == (3, "REGISTRY_BUSY")


def test_notes_name_the_trace_of_whoever_asked() -> None:
    step = Step(1.0, trace_id="trace-1")
    step.note("heard", {"node_id": "n"})
    step.trace_id = None
    step.note("heard", {"node_id": "n"})
    assert [note.fields for note in step.notes] == [{"node_id": "n", "trace_id": "trace-1"}, {"node_id": "n"}]
