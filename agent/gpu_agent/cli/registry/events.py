"""`gpu-agent registry event list` and `event follow`: the registry's events as lines.

An event that is not known here, as of a newer registry, is printed under its identifier with all its fields.
"""

import json
import time
from collections import deque
from collections.abc import Iterator

import click

from gpu_agent.cli.client.answers import Answer
from gpu_agent.cli.client.events import Lost, Opened, Received, follow_events, past_events
from gpu_agent.cli.client.http import Api, request_options
from gpu_agent.cli.client.resources import Node
from gpu_agent.cli.command import Arguments, ExitCode, positive_number, whole_number
from gpu_agent.cli.declaration import Commands, Declaration, argument, option
from gpu_agent.cli.output.inventory import status_piece
from gpu_agent.cli.output.streams import print_stderr, reader_left
from gpu_agent.cli.output.text import Line, Piece, line, print_json, print_lines, terminal_columns, wrap_after
from gpu_agent.cli.output.units import clock
from gpu_agent.wire.api import EventList, RegistryEvent
from gpu_agent.wire.event_words import MISSED, event_sentence

_ARROW = "→"
_LATEST = 20
_ID_COLUMNS = len("node-5F2A8C1E")

_STYLES = {
    "node_register_refused": "yellow",
    "node_disconnected": "yellow",
    "node_removed": "yellow",
    "session_superseded": "yellow",
    "session_not_resumed": "yellow",
    "node_fault_reported": "red",
    "heartbeat_timeout": "red",
    "mass_disconnect_suspected": "red",
    "claim_lost": "red",
    "claim_gpu_unusable": "red",
    "claim_idle": "yellow",
    "gpu_used_without_claim": "yellow",
    "gpu_uuid_duplicate": "yellow",
    "job_running_without_claim": "yellow",
    MISSED: "red",
}


def declare_list() -> Declaration:
    """Declare what it takes, and its help."""
    return Declaration(
        about="List the latest events, of one node or of all, each on a line.",
        example="gpu-agent registry event list node-7 --limit 50",
        exits={ExitCode.OK: "listed, even if there is none"},
        params=[
            *_which_node(),
            option(
                "--limit",
                metavar="N",
                type=positive_number,
                default=_LATEST,
                help=f"how many of the latest (default {_LATEST})",
            ),
            option("--after", metavar="EVENT_ID", type=whole_number, help="only events after this one"),
            *request_options(
                json_is="each event on a line; for one node what GET /v1/nodes/ID/events answers"
            ),
        ],
    )


def run_list(arguments: Arguments) -> int:
    """Read the latest events and print them."""
    api = Api.of(arguments)
    if arguments.after is None and arguments.node_id is not None:
        answer = _history(api, arguments.node_id, arguments.limit)
        if arguments.json:
            print_json(answer.document)
        else:
            _print_events(answer, arguments)
        return ExitCode.OK
    for received in deque(_past(api, arguments), arguments.limit):
        _print_event(received.event, received.document, arguments)
    return ExitCode.OK


def declare_follow() -> Declaration:
    """Declare what it takes, and its help."""
    return Declaration(
        about="Print each event as it happens, until Ctrl-C; for one node its latest events first. It "
        "waits for a "
        "registry that restarts, and prints what happened meanwhile: no event is missed, none printed twice.",
        example="gpu-agent registry event follow",
        exits={ExitCode.OK: "ended by Ctrl-C or by the output's reader"},
        params=[
            *_which_node(),
            option(
                "--after", metavar="EVENT_ID", type=whole_number, help="from this event on, not from now on"
            ),
            *request_options(json_is="each event on a line"),
        ],
    )


def run_follow(arguments: Arguments) -> int:
    """Print a node's latest events, then each event as it happens."""
    api = Api.of(arguments)
    after = None if arguments.after is None else str(arguments.after)
    try:
        if after is None and arguments.node_id is not None:
            answer = _history(api, arguments.node_id, _LATEST)
            _print_events(answer, arguments)
            after = _last_id(answer)
        _follow(api, arguments, after)
    except KeyboardInterrupt:
        pass
    return ExitCode.OK


def _which_node() -> list[click.Parameter]:
    return [argument("node_id", metavar="ID", help="only this node's events", optional=True)]


def _history(api: Api, node_id: str, limit: int) -> Answer[EventList]:
    return Node(api, node_id).get("/events", EventList, query=(("limit", str(limit)),))


def _print_events(answer: Answer[EventList], arguments: Arguments) -> None:
    documents = answer.document["events"]
    listed = documents if isinstance(documents, list) else ()
    for event, document in zip(answer.model.events, listed, strict=True):
        _print_event(event, document, arguments)


def _last_id(answer: Answer[EventList]) -> str | None:
    ids = [event.id for event in answer.model.events if event.id is not None]
    return str(ids[-1]) if ids else None


def _past(api: Api, arguments: Arguments) -> Iterator[Received]:
    """Yield the latest events; `MISSED`, for older ones, only with `--after`."""
    past = past_events(api, after=arguments.after or 0, node_id=arguments.node_id)
    return (one for one in past if arguments.after is not None or one.event.event != MISSED)


def _follow(api: Api, arguments: Arguments, after: str | None) -> None:
    broken = False
    has_answered = arguments.node_id is not None and arguments.after is None  # with its history
    for happened in follow_events(api, after=after, node_id=arguments.node_id, answered=has_answered):
        match happened:
            case Received(event, document):
                _print_event(event, document, arguments)
            case Lost(why) if not broken:
                broken = True
                print_stderr(f"the registry has gone ({why.partition('. ')[0]}); waiting for it")
            case Opened() if broken:
                broken = False
                print_stderr("the registry is back")
            case _:
                pass  # still lost, open for the first time, or alive without an event
        if reader_left():
            return


def _print_event(event: RegistryEvent, document: object, arguments: Arguments) -> None:
    if arguments.json:
        print(json.dumps(document), flush=True)
    else:
        named = arguments.node_id is None
        print_lines(event_lines(event, terminal_columns(), now=time.time(), node=named))


def event_lines(event: RegistryEvent, columns: int | None, *, now: float, node: bool = True) -> list[Line]:
    """Draw an event with its local time; `node`: with its node's id."""
    name = (event.node_id or "-").ljust(0 if columns is None else _ID_COLUMNS)
    prefix = line(Piece(clock(event.at, now), "dim"), f"  {name}" if node else "", "  ")
    return wrap_after(prefix, line(*event_pieces(event)), columns)


def event_pieces(event: RegistryEvent) -> Iterator[Piece]:
    """Yield what happened, in words."""
    name, fields = event.event, event.fields
    if name == "node_status_changed" and {"from", "to", "reason_code"} <= set(fields):
        before = "new" if fields["from"] is None else fields["from"]
        yield Piece(f"{before} {_ARROW} ")
        yield status_piece(str(fields["to"]))
        yield Piece(f": {fields['reason_code']}")
    else:
        yield Piece(event_sentence(event), _STYLES.get(name, ""))


COMMANDS: Commands = {
    "list": (declare_list, run_list),
    "follow": (declare_follow, run_follow),
}
