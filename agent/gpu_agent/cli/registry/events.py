"""`gpu-agent registry events`: what happened to a node, and what happens."""

import argparse
import json
import time
from collections import deque
from collections.abc import Iterator, Mapping
from typing import Any

from gpu_agent.cli.answers import EVENTS
from gpu_agent.cli.argument_values import at_least_one, whole
from gpu_agent.cli.asking.api import Api
from gpu_agent.cli.asking.following import Lost, Opened, Told, followed, told_so_far
from gpu_agent.cli.nodes.event_words import MISSED, event_line
from gpu_agent.cli.options import add_asking, print_json
from gpu_agent.cli.outcome import ExitCode
from gpu_agent.cli.registry.node_action import Node
from gpu_agent.cli.streams import complain, reader_left
from gpu_agent.cli.teaching import teach
from gpu_agent.cli.terminal import show


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    teach(
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
        type=whole,
        help="only what happened behind this event; with --follow from there on, not from now",
    )
    parser.add_argument(
        "--limit", metavar="N", type=at_least_one, default=20, help="how much of what was (default 20)"
    )
    add_asking(
        parser,
        json_is="each event on a line; for one node without --follow what GET /v1/nodes/ID/events answers",
    )


def main(arguments: argparse.Namespace) -> int:
    """Show, and follow if so told."""
    api = Api.of(arguments)
    after = None if arguments.after is None else str(arguments.after)
    if after is None and arguments.node_id is not None:
        after = _history(api, arguments)
    elif not arguments.follow:
        for event in deque(_past(api, arguments), arguments.limit):
            _say(event, arguments)
    if arguments.follow:
        try:
            _follow(api, arguments, after)
        except KeyboardInterrupt:
            return ExitCode.OK
    return ExitCode.OK


def _past(api: Api, arguments: argparse.Namespace) -> Iterator[Mapping[str, Any]]:
    """What happened lately; that there was more before that is nobody's news, unless it was asked for."""
    past = told_so_far(api, after=arguments.after or 0, node_id=arguments.node_id)
    return (event for event in past if arguments.after is not None or event["event"] != MISSED)


def _history(api: Api, arguments: argparse.Namespace) -> str | None:
    """Show a node's history; returns the id of its last event."""
    answer = Node(api, arguments.node_id).get(f"/events?limit={arguments.limit}", shape=EVENTS)
    if arguments.json and not arguments.follow:
        print_json(answer)
    else:
        for event in answer["events"]:
            _say(event, arguments)
    ids = [event["id"] for event in answer["events"] if event.get("id") is not None]
    return str(ids[-1]) if ids else None


def _follow(api: Api, arguments: argparse.Namespace, after: str | None) -> None:
    broken = False
    has_answered = arguments.node_id is not None and arguments.after is None  # with its history
    for happening in followed(api, after=after, node_id=arguments.node_id, answered=has_answered):
        match happening:
            case Told(event):
                _say(event, arguments)
            case Lost(why) if not broken:
                broken = True
                complain(f"the registry has gone ({why.partition('. ')[0]}); waiting for it")
            case Opened() if broken:
                broken = False
                complain("the registry is back")
            case _:
                pass  # lost still, open for the first time, or a sign of life
        if reader_left():
            return


def _say(event: Mapping[str, Any], arguments: argparse.Namespace) -> None:
    if arguments.json:
        print(json.dumps(event), flush=True)
    else:
        show([event_line(event, now=time.time(), node=arguments.node_id is None)])
