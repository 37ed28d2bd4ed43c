"""`gpu-agent registry nodes`: every node with its status and reason."""

import argparse
import time
from collections.abc import Iterator
from typing import Any

from gpu_agent.cli.answers import NODES
from gpu_agent.cli.argument_values import label
from gpu_agent.cli.asking.api import Api
from gpu_agent.cli.asking.paging import listed
from gpu_agent.cli.nodes.sheet import NO_NODES, STATUS_STYLES, node_lines
from gpu_agent.cli.options import add_asking, print_json
from gpu_agent.cli.outcome import ExitCode
from gpu_agent.cli.teaching import teach
from gpu_agent.cli.terminal import columns, show

NO_MATCH = "No node is like that; `gpu-agent registry nodes` lists all of them."


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    teach(
        parser,
        "List the nodes that the registry knows, each with its status, for how long it has\n"
        "had it, and, unless it is ready, why. Only `ready` and connected nodes take jobs;\n"
        "`registry why ID` says what stands in the way. In a pipe each node is one line.",
        example="gpu-agent registry nodes --status degraded --status offline --label zone=a",
        exits={ExitCode.OK: "listed, even if there is none; with --watch: ended by Ctrl-C"},
    )
    which = parser.add_argument_group("which nodes (all of them must hold)")
    which.add_argument(
        "--status",
        action="append",
        default=[],
        choices=tuple(STATUS_STYLES),
        metavar="STATUS",
        help=f"one of {', '.join(STATUS_STYLES)} (repeatable: any of them)",
    )
    which.add_argument("--model", metavar="M", help="has this model ready")
    which.add_argument(
        "--label", action="append", type=label, default=[], metavar="K=V", help="has this label (repeatable)"
    )
    which.add_argument("--gpu-name", metavar="NAME", help="has a GPU whose name holds this")
    parser.add_argument(
        "--watch",
        action="store_true",
        help="keep the list current until Ctrl-C; in a pipe: a line for each change",
    )
    add_asking(
        parser,
        json_is="what GET /v1/nodes answers, all pages as one; with --watch on one line whenever it changed",
    )


def main(arguments: argparse.Namespace) -> int:
    """Ask and print."""
    api, query = Api.of(arguments), tuple(_query(arguments))

    def read() -> dict[str, Any]:
        return listed(api, "/v1/nodes", NODES, key="nodes", query=query)

    if arguments.watch:
        from gpu_agent.cli.watching.watching import main as watch

        return watch(api, read, as_json=arguments.json)
    answer = read()
    if arguments.json:
        print_json(answer)
        return ExitCode.OK
    show(node_lines(answer, columns(), now=time.time()))
    if not answer["nodes"]:
        print(NO_MATCH if query else NO_NODES)
    return ExitCode.OK


def _query(arguments: argparse.Namespace) -> Iterator[tuple[str, str]]:
    yield from (("status", status) for status in arguments.status)
    yield from (("label", f"{key}={value}") for key, value in arguments.label)
    for name, wish in (("model", arguments.model), ("gpu_name", arguments.gpu_name)):
        if wish is not None:
            yield name, wish
