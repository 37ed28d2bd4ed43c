"""What one event leads to, collected while it is handled: documents to change, events to log, effects.

Holds no rule of the protocol.
"""

from collections.abc import Mapping

from gpu_agent.registry.actions import Answer, DocumentKind, Effect, Level, LogEvent, Refusal, Result, Send
from gpu_agent.registry.node import NodeRecord

Key = tuple[DocumentKind, str]
"""Names one document."""

STATUS_CHANGED = "node_status_changed"


class Step:
    """The consequences of one event."""

    __slots__ = (
        "changed",
        "effects",
        "immediate",
        "logged",
        "node_tokens_issued",
        "now",
        "registered",
        "tokens_created",
        "touched",
        "trace_id",
    )

    def __init__(self, now: float, *, trace_id: str | None = None) -> None:
        self.now = now
        self.trace_id = trace_id
        """The trace of the request that led to this; None where there is none."""
        self.changed: dict[Key, None] = {}
        """The documents to write as they are at the end of the step."""
        self.logged: list[LogEvent] = []
        self.effects: list[Effect] = []
        self.immediate: list[Answer | Send] = []
        """Answers that depend on nothing that is not stored."""
        self.tokens_created: list[str] = []
        """Tokens whose text is sent with this step's answer, and to no one if that is not sent."""
        self.node_tokens_issued: list[NodeRecord] = []
        """Nodes whose acknowledgement brings them another token."""
        self.registered: list[NodeRecord] = []
        """Nodes whose acknowledgement is among the effects."""
        self.touched: dict[str, None] = {}
        """Nodes whose deadline must be scheduled again."""

    def log(self, event: str, fields: Mapping[str, object], level: Level = Level.INFO) -> None:
        """Log an event, with the trace of its cause, once the changes are stored."""
        traced = fields if self.trace_id is None else {**fields, "trace_id": self.trace_id}
        self.logged.append(LogEvent(event, traced, level))

    def change_node(self, record: NodeRecord) -> None:
        """Store a node, or delete it where it is not known any more."""
        self.changed[(DocumentKind.NODE, record.node_id)] = None
        self.touched[record.node_id] = None

    def change_claim(self, job_id: str) -> None:
        """Store a job's claim, or delete it where it has ended."""
        self.changed[(DocumentKind.CLAIM, job_id)] = None

    def change_token(self, token_id: str) -> None:
        """Store a join or operator token, or delete it where it is not known any more."""
        self.changed[(DocumentKind.TOKEN, token_id)] = None

    def add(self, effect: Effect) -> None:
        """Carry this out once the changes are stored."""
        self.effects.append(effect)

    def answer(self, ref: int, result: Result = None) -> None:
        """Answer a request once the changes are stored."""
        self.effects.append(Answer(ref, result))

    def refuse(self, ref: int, code: str, message: str) -> None:
        """Refuse a request, once every change before it is stored."""
        self.effects.append(Answer(ref, Refusal(code, message)))
