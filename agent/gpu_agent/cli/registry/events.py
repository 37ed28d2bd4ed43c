"""`gpu-agent registry events`: the registry's events as lines.

An event that is not known here, as of a newer registry, is printed under its identifier with all its fields.
"""

import argparse
import json
import time
from collections import deque
from collections.abc import Iterator, Mapping
from typing import Any

from gpu_agent.cli.client.events import Lost, Opened, Received, follow_events, past_events
from gpu_agent.cli.client.http import EVENTS, Api
from gpu_agent.cli.client.resources import Node
from gpu_agent.cli.command import Commands, ExitCode, describe
from gpu_agent.cli.options import add_request_options, positive_number, print_json, whole_number
from gpu_agent.cli.output.nodes import STATUS_STYLES
from gpu_agent.cli.output.streams import print_stderr, reader_left
from gpu_agent.cli.output.text import Line, Piece, line, print_lines
from gpu_agent.cli.output.units import duration_in_words


def configure_events(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    describe(
        parser,
        "Show what happened lately, to one node or to all, each event on a line; with --follow what "
        "happens from now on (for one node behind its history), until Ctrl-C. A registry that restarts "
        "is waited for, and what happened meanwhile is told then: nothing is missed, nothing told twice.",
        example="gpu-agent registry events --follow",
        exits={ExitCode.OK: "shown; with --follow: ended by Ctrl-C or by whoever reads the output"},
    )
    parser.add_argument("node_id", metavar="ID", nargs="?", help="only this node's")
    parser.add_argument("--follow", action="store_true", help="go on with what happens")
    parser.add_argument(
        "--after",
        metavar="EVENT_ID",
        type=whole_number,
        help="only what happened behind this event; with --follow from there on, not from now",
    )
    parser.add_argument(
        "--limit", metavar="N", type=positive_number, default=20, help="how much of what was (default 20)"
    )
    add_request_options(
        parser,
        json_is="each event on a line; for one node without --follow what GET /v1/nodes/ID/events answers",
    )


def run_events(arguments: argparse.Namespace) -> int:
    """Show, and follow if so told."""
    api = Api.of(arguments)
    after = None if arguments.after is None else str(arguments.after)
    if after is None and arguments.node_id is not None:
        after = _history(api, arguments)
    elif not arguments.follow:
        for event in deque(_past_events(api, arguments), arguments.limit):
            _print_event(event, arguments)
    if arguments.follow:
        try:
            _follow(api, arguments, after)
        except KeyboardInterrupt:
            return ExitCode.OK
    return ExitCode.OK


def _past_events(api: Api, arguments: argparse.Namespace) -> Iterator[Mapping[str, Any]]:
    """What happened lately; that there was more before that is nobody's news, unless it was asked for."""
    past = past_events(api, after=arguments.after or 0, node_id=arguments.node_id)
    return (event for event in past if arguments.after is not None or event["event"] != MISSED)


def _history(api: Api, arguments: argparse.Namespace) -> str | None:
    """Show a node's history; returns the id of its last event."""
    answer = Node(api, arguments.node_id).get(f"/events?limit={arguments.limit}", shape=EVENTS)
    if arguments.json and not arguments.follow:
        print_json(answer)
    else:
        for event in answer["events"]:
            _print_event(event, arguments)
    ids = [event["id"] for event in answer["events"] if event.get("id") is not None]
    return str(ids[-1]) if ids else None


def _follow(api: Api, arguments: argparse.Namespace, after: str | None) -> None:
    broken = False
    has_answered = arguments.node_id is not None and arguments.after is None  # with its history
    for happening in follow_events(api, after=after, node_id=arguments.node_id, answered=has_answered):
        match happening:
            case Received(event):
                _print_event(event, arguments)
            case Lost(why) if not broken:
                broken = True
                print_stderr(f"the registry has gone ({why.partition('. ')[0]}); waiting for it")
            case Opened() if broken:
                broken = False
                print_stderr("the registry is back")
            case _:
                pass  # lost still, open for the first time, or a sign of life
        if reader_left():
            return


def _print_event(event: Mapping[str, Any], arguments: argparse.Namespace) -> None:
    if arguments.json:
        print(json.dumps(event), flush=True)
    else:
        print_lines([event_line(event, now=time.time(), node=arguments.node_id is None)])


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
    "drain_requested": "drain asked for: {reason}",
    "resume_requested": "resume asked for",
    "node_cordoned": "cordon asked for: {reason}",
    "node_uncordoned": "cordon lifted",
    "token_rotation_requested": "a new node token asked for",
    "job_assigned": "job {job_id} assigned",
    "claim_released": "claim of job {job_id} released",
    "claim_expired": "claim of job {job_id} expired",
    "claim_lost": "claim of job {job_id} lost: {reason_code}",
    "claim_reattached": "claim of job {job_id} found again",
    "token_created": "token {token_id} made ({kind})",
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
    return line(Piece(clock(event["at"], now), "dim"), named, "  ", *event_pieces(event))


def event_line_ago(event: Mapping[str, Any], *, now: float) -> Line:
    """An event of one node, with how long ago it was."""
    return line(Piece(f"{duration_in_words(now - event['at']):>7} ago  ", "dim"), *event_pieces(event))


def event_pieces(event: Mapping[str, Any]) -> Iterator[Piece]:
    """What happened."""
    name, fields = str(event["event"]), event.get("fields") or {}
    if name == "node_status_changed" and {"from", "to", "reason_code"} <= set(fields):
        before = "new" if fields["from"] is None else fields["from"]
        yield Piece(f"{before} {_ARROW} ")
        yield Piece(str(fields["to"]), STATUS_STYLES.get(str(fields["to"]), ""))
        yield Piece(f": {fields['reason_code']}")
    else:
        yield Piece(_event_sentence(name, fields) or _raw_event(name, fields), _STYLES.get(name, ""))


def _event_sentence(name: str, fields: Mapping[str, Any]) -> str | None:
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


def _raw_event(name: str, fields: Mapping[str, Any]) -> str:
    told = (f"{field}={value}" for field, value in fields.items() if field != "node_id")
    return " ".join([name, *told])


COMMANDS: Commands = {
    "events": (configure_events, run_events),
}
