"""How a session tells of refusals: sentences for `status`, notes for the log. Both bounded."""

from gpu_agent.session.actions import Note
from gpu_agent.wire.codes import ErrorCode, known
from gpu_agent.wire.messages import NodeError, NodeStatusMessage

_LONGEST = 500
_CREDENTIAL_CODES = frozenset({ErrorCode.UNAUTHORIZED, ErrorCode.FORBIDDEN})


def refusal(error: NodeError) -> str:
    """Say a refusal as a sentence, with the code it came under."""
    return f"{clipped(error.message) or 'no reason given'} ({clipped(error.code)})"


def refusal_note(error: NodeError, *, registering: bool) -> Note:
    """Log a refusal; one of malformed messages with the paths that were wrong."""
    fields: dict[str, object] = {"code": clipped(error.code), "message": clipped(error.message)}
    if known(error.code) is ErrorCode.INVALID_MESSAGE and error.details:
        fields["errors"] = clipped(repr(error.details.get("errors")))
    return Note("node_register_refused" if registering else "registry_error", fields, problem=True)


def status_note(before: NodeStatusMessage | None, after: NodeStatusMessage) -> Note:
    """Log a change of status."""
    fields = {
        "node_id": after.node_id,
        "from": None if before is None else clipped(before.status),
        "to": clipped(after.status),
        "reason_code": None if after.reason_code is None else clipped(after.reason_code),
        "reason": clipped(after.reason),
    }
    return Note("node_status_changed", fields)


def blames_credential(error: NodeError) -> bool:
    """Tell whether a refusal is about who the agent is, not about what it said."""
    return known(error.code) in _CREDENTIAL_CODES


def clipped(text: str) -> str:
    """Bound what a peer wrote."""
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…"
