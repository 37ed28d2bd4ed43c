"""What is saved, asked for or decided, and who undoes it, as the tests of saves have it."""

from gpu_agent.registry.actions import Change, DocumentKind
from gpu_agent.registry.node import NodeRecord
from gpu_agent.registry.saves import Saves
from gpu_agent.registry.step import Key, Step, Was
from tests.registry.harness import declaration, hardware


class Undone:
    """Remembers what was put back."""

    def __init__(self) -> None:
        self.keys: list[tuple[str, Was]] = []

    def as_it_is(self, key: Key) -> Was:
        return node(key[1]) if key[0] is DocumentKind.NODE else None

    def put_back(self, key: Key, before: Was, after: Was, *, step: Step) -> None:  # noqa: ARG002
        self.keys.append((key[1], before))


def saves(undone: Undone) -> Saves:
    return Saves(write=lambda key, now: Change(*key, {"at": now}), undo=undone, retry_seconds=1.0)


def node(node_id: str = "node-1") -> NodeRecord:
    return NodeRecord(node_id=node_id, registration=declaration(), hardware=hardware(), registered_at=0.0)


def asked(ref: int, now: float = 0.0) -> Step:
    step = Step(now)
    step.note("heard", {})
    step.remember(node())
    step.change_node(node())
    step.refuse_unsaved(ref)
    step.answer(ref)
    return step


def verdict(now: float = 0.0, node_id: str = "node-1") -> Step:
    step = Step(now)
    step.change_node(node(node_id))
    step.note("decided", {"node_id": node_id})
    return step


def fleet_of_unkept(count: int) -> Saves:
    subject = saves(Undone())
    for number in range(1, count + 1):
        subject.sealed(verdict(node_id=f"node-{number}"))
        subject.failed(number, "disk full", Step(1.0))
    return subject
