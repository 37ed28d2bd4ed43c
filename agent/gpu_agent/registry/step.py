"""What one event brings about, collected while it is handled: notes, then one save, then what may be told.

The order is the promise of §4, *save before telling*: whatever is told stands behind the
save of the same step. Holds no rule of the protocol.
"""

from collections.abc import Mapping
from dataclasses import replace

from gpu_agent.registry.actions import Action, Answer, DocumentKind, Level, LogEvent, Refusal, Result
from gpu_agent.registry.job import Claim
from gpu_agent.registry.node import NodeRecord
from gpu_agent.registry.tokens import Token
from gpu_agent.wire.codes import ErrorCode

Key = tuple[DocumentKind, str]
"""What names one kept thing."""

STATUS_CHANGED = "node_status_changed"
"""The note that a node was given another status."""

Was = NodeRecord | Claim | Token | None
"""How one kept thing was; None when it was not there."""


_NOT_KEPT = "the registry could not save this just now, and undid it: ask again in a moment"


class Step:
    """One event's consequences in the making."""

    __slots__ = ("before", "keys", "notes", "now", "refusals", "stands", "told", "touched", "trace_id")

    def __init__(self, now: float, *, trace_id: str | None = None) -> None:
        self.now = now
        self.trace_id = trace_id
        """The trace of whoever asked for this; None for what came about otherwise."""
        self.notes: list[LogEvent] = []
        self.keys: dict[Key, None] = {}
        """What must be kept before anything is told, in order."""
        self.before: dict[Key, Was] = {}
        """How it was, should what somebody asked have to be undone; None for what was not there."""
        self.refusals: list[Action] = []
        """What is said instead, should the save fail; empty for the registry's own verdicts."""
        self.stands: dict[Key, LogEvent] = {}
        """What merely happened beside what was asked, and stands even if that is undone; how it is noted."""
        self.told: list[Action] = []
        self.touched: dict[str, None] = {}
        """Nodes whose next look must be planned anew."""

    def note(self, event: str, fields: Mapping[str, object], level: Level = Level.INFO) -> None:
        """Log an event, with the trace of its cause; this waits for no save."""
        traced = fields if self.trace_id is None else {**fields, "trace_id": self.trace_id}
        self.notes.append(LogEvent(event, traced, level))

    def remember(self, record: NodeRecord) -> None:
        """Remember how a node was before this step, should what is asked have to be undone."""
        self.before.setdefault((DocumentKind.NODE, record.node_id), replace(record))

    def remember_token(self, token_id: str, token: Token | None) -> None:
        """Remember how a token was before this step; None when it was not there."""
        self.before.setdefault((DocumentKind.TOKEN, token_id), token)

    def change_node(self, record: NodeRecord) -> None:
        """Save a node, as it stands at the end of the step, before anything is told."""
        self.keys[(DocumentKind.NODE, record.node_id)] = None
        self.touched[record.node_id] = None

    def change_claim(self, job_id: str) -> None:
        """Save a claim, or that it is gone, before anything is told."""
        self.keys[(DocumentKind.CLAIM, job_id)] = None

    def change_token(self, token_id: str) -> None:
        """Save a join or operator token, or that it is gone, before anything is told."""
        self.keys[(DocumentKind.TOKEN, token_id)] = None

    def tell(self, action: Action) -> None:
        """Do this once the save is kept."""
        self.told.append(action)

    def answer(self, ref: int, result: Result = None) -> None:
        """Answer a request once the save is kept."""
        self.told.append(Answer(ref, result))

    def refuse_unsaved(self, ref: int) -> None:
        """Answer a request with a refusal instead, should the save fail."""
        self.refusals.append(Answer(ref, Refusal(ErrorCode.REGISTRY_BUSY, _NOT_KEPT)))

    def refuse(self, ref: int, code: str, message: str) -> None:
        """Answer a request with a refusal."""
        self.told.append(Answer(ref, Refusal(code, message)))
