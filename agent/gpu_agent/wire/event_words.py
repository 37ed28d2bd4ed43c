"""What an event of the registry says to a person: one sentence for each, for the command line and for alarms.

An event that is not known here, as of a newer registry, is written under its identifier with all its fields.
"""

import string
from collections.abc import Mapping

from gpu_agent.wire.api import RegistryEvent

MISSED = "events_missed"
"""Stands for events that are too long ago, or came faster than they were read."""
_STATUS_CHANGED = "node_status_changed"

SENTENCES: dict[str, str] = {
    "node_register_received": "asks to register (schema {schema_version}, {gpu_count:GPU})",
    "node_registered": "registered from {address}, {gpu_count:GPU}, session {session_epoch}",
    "node_register_refused": "registration refused: {code}",
    "node_disconnected": "connection lost while {status}",
    "node_removed": "removed",
    "node_purged": "record removed after {offline_seconds} s offline",
    "node_control_sent": "command sent: {command}",
    "node_checks_changed": "{count:admission check} failed: {failed}",
    "node_fault_reported": "reports a fault: {code}: {message}",
    "node_faults_left_out": "{count:more report} of faults left out",
    "session_superseded": "session {session_epoch} at {address} ended by a newer one from {newer_address}",
    "session_not_resumed": "session {session_epoch} does not go on under the new leader: {reason}",
    "node_token_issued": "got a node token ({token_id})",
    "heartbeat_timeout": "no heartbeat within its timeout",
    "mass_disconnect_suspected": "over half of the nodes are silent: the registry suspects itself",
    "drain_requested": "drain requested: {reason}",
    "resume_requested": "resume requested",
    "node_cordoned": "cordoned: {reason}",
    "node_uncordoned": "uncordoned",
    "token_rotation_requested": "a new node token requested",
    "job_assigned": "job {job_id} assigned",
    "claim_released": "claim of job {job_id} released",
    "claim_expired": "claim of job {job_id} expired",
    "claim_lost": "claim of job {job_id} lost: {reason_code}",
    "claim_reattached": "claim of job {job_id} reattached",
    "claim_idle": "job {job_id} has left its GPUs idle for {idle_seconds} s",
    "claim_gpu_unusable": "GPU {gpu_uuid} of job {job_id} is unusable: {health}",
    "held_gpus_freed": "GPUs held for job {job_id} are free: {reason}",
    "job_queued": "job {job_id} waits for capacity",
    "job_running_without_claim": "job {job_id} runs without a claim",
    "gpu_used_without_claim": "GPU {gpu_uuid} is used without a claim",
    "gpu_uuid_duplicate": "GPU {gpu_uuid} is also declared by {other_nodes}: two agents on one machine?",
    "gpu_cordoned": "GPU {gpu_uuid} cordoned: {reason}",
    "gpu_uncordoned": "GPU {gpu_uuid} uncordoned",
    "token_created": "token {token_id} created ({kind})",
    "token_purged": "token {token_id} removed: it ended long ago",
    "token_revoked": "token {token_id} revoked ({kind})",
    "dispatch_exclusions": "{failed:job} found no node within a minute",
    "document_unreadable": "a stored document cannot be read: {detail}",
    "document_word_unknown": "{field} {word} of the stored {document} is not known: read as {read_as}",
    "registry_restored": "the registry has started, {nodes:node} known",
    MISSED: "{count:event} missed: they came faster than they were read",
}
"""One sentence for each event; a test compares the fields with those that the registry writes.

A noun behind a colon is counted: `{count:job}` becomes `1 job` or `2 jobs`.
"""


WARNINGS = frozenset(
    {
        "claim_gpu_unusable",
        "claim_idle",
        "claim_lost",
        "document_unreadable",
        "document_word_unknown",
        "gpu_used_without_claim",
        "gpu_uuid_duplicate",
        "heartbeat_timeout",
        "job_running_without_claim",
        "mass_disconnect_suspected",
        "node_fault_reported",
        "node_faults_left_out",
        "node_register_refused",
        "node_removed",
        "session_not_resumed",
        "session_superseded",
        MISSED,
    }
)
"""The events that the registry logs as warnings, but for `node_checks_changed`; a test compares."""


def is_warning(event: RegistryEvent) -> bool:
    """Whether the registry logs an event as a warning."""
    if event.event == "node_checks_changed":
        return event.fields.get("count") != 0
    return event.event in WARNINGS


def event_sentence(event: RegistryEvent) -> str:
    """Say what happened, without node and time. Words of nodes and clients stand in it as they are."""
    name, fields = event.event, event.fields
    if name == _STATUS_CHANGED and {"from", "to", "reason_code"} <= set(fields):
        before = "new" if fields["from"] is None else fields["from"]
        return f"{before} → {fields['to']}: {fields['reason_code']}"
    known = _known_sentence(name, fields)
    return _raw(name, fields) if known is None else known + _of_operator(name, fields)


def _of_operator(name: str, fields: Mapping[str, object]) -> str:
    """Say why an operator did it, where the sentence does not, and who it was."""
    reason, by = fields.get("reason"), fields.get("by")
    why = f": {reason}" if name in _WITH_REASON and reason else ""
    return f"{why} (by {by})" if by else why


def _known_sentence(name: str, fields: Mapping[str, object]) -> str | None:
    if name == MISSED and fields.get("count") is None:
        return "events missed: they are too long ago"
    if name == "node_checks_changed" and fields.get("count") == 0:
        return "no admission check fails"
    if name == "token_purged" and "reason" in fields:
        return f"token {fields.get('token_id')} removed: {fields['reason']}"
    known = SENTENCES.get(name)
    try:
        said = {"reason": "", **fields}  # an operator need not give one
        return None if known is None else _Counting().vformat(known, (), said).removesuffix(": ")
    except KeyError:
        return None  # another version's, with fields of its own


_WITH_REASON = frozenset(
    {
        "resume_requested",
        "node_uncordoned",
        "gpu_uncordoned",
        "node_control_sent",
        "node_removed",
        "claim_released",
    }
)
"""What operators may give a reason for, and did not in earlier versions."""


class _Counting(string.Formatter):
    """Writes a field that has a noun as a number of these."""

    def format_field(self, value: object, format_spec: str) -> str:
        plural = "" if value == 1 else "s"
        return f"{value} {format_spec}{plural}" if format_spec else str(value)


def _raw(name: str, fields: Mapping[str, object]) -> str:
    return " ".join([name, *(f"{field}={value}" for field, value in fields.items() if field != "node_id")])
