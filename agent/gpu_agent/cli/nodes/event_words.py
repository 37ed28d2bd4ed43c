"""Events of the registry as lines for people: when, which node, what happened.

An event that is not known here, as of a newer registry, is written down under its identifier
with its fields. It leaves no field of such a one out.
"""

import time
from collections.abc import Iterator, Mapping
from typing import Any

from gpu_agent.cli.durations import in_words
from gpu_agent.cli.lines import Line, Piece, line
from gpu_agent.cli.nodes.sheet import STATUS_STYLES

MISSED = "events_missed"
"""Told in the place of events that are too long ago, or came faster than they were read."""
_DAY_SECONDS = 86400
_ARROW = "→"

SENTENCES: dict[str, str] = {
    "node_register_received": "asks to register (schema {schema_version}, {gpu_count} GPUs)",
    "node_registered": "registered from {address}, {gpu_count} GPUs, session {session_epoch}",
    "node_register_refused": "registration refused: {code}",
    "node_disconnected": "connection lost while {status}",
    "node_removed": "forgotten",
    "node_purged": "record let go after {offline_seconds} s offline",
    "node_control_sent": "asked to {command}",
    "node_fault_reported": "reports a fault: {code}: {message}",
    "node_faults_left_out": "{count} more reports of faults left out",
    "session_superseded": "session {session_epoch} at {address} ended by a newer one from {newer_address}",
    "node_token_issued": "got a node token ({token_id})",
    "heartbeat_timeout": "no beat for its timeout",
    "mass_disconnect_suspected": "over half of the nodes are silent: the registry suspects itself",
    "drain_wished": "drain asked for: {reason}",
    "resume_wished": "resume asked for",
    "cordon_wished": "cordon asked for: {reason}",
    "cordon_lifted": "cordon lifted",
    "rotation_wished": "a new node token asked for",
    "job_assigned": "job {job_id} assigned",
    "claim_released": "claim of job {job_id} released",
    "claim_expired": "claim of job {job_id} expired",
    "claim_lost": "claim of job {job_id} lost: {reason_code}",
    "claim_found_again": "claim of job {job_id} found again",
    "token_made": "token {token_id} made ({kind})",
    "token_purged": "token {token_id} let go: it ended long ago",
    "token_revoked": "token {token_id} revoked ({kind})",
    "dispatch_exclusions": "{failed} jobs found no node within a minute",
    "document_unreadable": "a kept document cannot be read: {detail}",
    "registry_restored": "the registry has started, {nodes} nodes known",
    "save_failed": "not saved: {detail}",
    MISSED: "{count} events missed: they came faster than they were read",
}
"""What each event says; a test holds the fields to those that the registry writes."""

_STYLES = {
    "node_register_refused": "yellow",
    "node_disconnected": "yellow",
    "node_removed": "yellow",
    "session_superseded": "yellow",
    "node_fault_reported": "red",
    "heartbeat_timeout": "red",
    "mass_disconnect_suspected": "red",
    "claim_lost": "red",
    "save_failed": "red",
    MISSED: "red",
}


def event_line(event: Mapping[str, Any], *, now: float, node: bool = True) -> Line:
    """An event with its time by this machine's clock; `node` says whether its node is named."""
    named = f"  {event.get('node_id') or '-'}" if node else ""
    return line(Piece(clock(event["at"], now), "dim"), named, "  ", *said(event))


def event_line_ago(event: Mapping[str, Any], *, now: float) -> Line:
    """An event of one node, with how long ago it was."""
    return line(Piece(f"{in_words(now - event['at']):>7} ago  ", "dim"), *said(event))


def said(event: Mapping[str, Any]) -> Iterator[Piece]:
    """What happened."""
    name, fields = str(event["event"]), event.get("fields") or {}
    if name == "node_status_changed" and {"from", "to", "reason_code"} <= set(fields):
        before = "new" if fields["from"] is None else fields["from"]
        yield Piece(f"{before} {_ARROW} ")
        yield Piece(str(fields["to"]), STATUS_STYLES.get(str(fields["to"]), ""))
        yield Piece(f": {fields['reason_code']}")
    else:
        yield Piece(_sentence(name, fields) or _as_it_is(name, fields), _STYLES.get(name, ""))


def _sentence(name: str, fields: Mapping[str, Any]) -> str | None:
    if name == MISSED and fields.get("count") is None:
        return "events missed: they are too long ago"
    known = SENTENCES.get(name)
    try:
        return None if known is None else known.format_map(fields).removesuffix(": ")
    except KeyError:
        return None  # another registry's, with fields of its own


def clock(at: float, now: float) -> str:
    """The time of day; with the date when that is not of the last day."""
    pattern = "%H:%M:%S" if abs(now - at) < _DAY_SECONDS else "%Y-%m-%d %H:%M:%S"
    return time.strftime(pattern, time.localtime(at))


def _as_it_is(name: str, fields: Mapping[str, Any]) -> str:
    told = (f"{field}={value}" for field, value in fields.items() if field != "node_id")
    return " ".join([name, *told])
