"""`registry node list|show|refresh|check|reregister|remove`."""

import sys
import time
from collections.abc import Iterator

import click

from gpu_agent.cli.client.answers import Answer
from gpu_agent.cli.client.http import Api, reason_option, request_options, without_none
from gpu_agent.cli.command import Arguments, ExitCode, Failure, label_pair
from gpu_agent.cli.declaration import Commands, Declaration, argument, option
from gpu_agent.cli.output.text import print_json, print_lines, terminal_columns
from gpu_agent.wire.codes import NodeStatus

SORTS = ("host", "id", "status", "gpus", "memory", "load", "slots", "models", "version", "age")
_WHICH = "which nodes (all of them must hold)"
NO_MATCH = "No node is like that; `gpu-agent registry node list` lists all of them."


def declare_list() -> Declaration:
    """Declare what it takes, and its help."""
    return Declaration(
        about="List the nodes that the registry knows: hostname, id, status and, unless it is ready, why. "
        "GPUS "
        "counts those that a claim could get now, of all, and those with a fault; MEMORY and LOAD are of the "
        "GPUs; AGE is how long the node has had its status. A narrow terminal leaves columns out. In a pipe "
        "each node is one line. `registry explain node ID` says why a node takes no job.",
        example="gpu-agent registry node list --status degraded --status offline --label zone=a",
        exits={ExitCode.OK: "listed, even if there is none; with --watch: ended by Ctrl-C"},
        params=[
            option(
                "--status",
                choices=tuple(status.value for status in NodeStatus),
                metavar="STATUS",
                help=f"one of {', '.join(NodeStatus)} (repeatable: any of them)",
                repeatable=True,
                subject=_WHICH,
            ),
            option(
                "--model",
                metavar="M",
                help="has this model ready",
                subject=_WHICH,
            ),
            option(
                "--label",
                type=label_pair,
                metavar="K=V",
                help="has this label; the same one again: another value that will do (repeatable)",
                repeatable=True,
                subject=_WHICH,
            ),
            option(
                "--gpu-name",
                metavar="NAME",
                help="has a GPU whose name holds this",
                subject=_WHICH,
            ),
            option("--output", short="-o", choices=("wide",), help="wide: more columns, and whole names"),
            option(
                "--sort",
                choices=SORTS,
                metavar="COLUMN",
                help=f"one of {', '.join(SORTS)}: words from a to z, figures the most first (default host)",
            ),
            option(
                "--watch",
                help="keep the list current until Ctrl-C; in a pipe: a line for each change",
                flag=True,
            ),
            *request_options(
                json_is="what GET /v1/nodes answers, all pages as one; with --watch on one line whenever "
                "it changed"
            ),
        ],
    )


def run_list(arguments: Arguments) -> int:
    """Read the list and print it, or watch it."""
    from gpu_agent.cli.output.nodes import NO_NODES, ListStyle, node_table
    from gpu_agent.wire.api import NodeList

    api, query = Api.of(arguments), tuple(_query(arguments))

    def read() -> Answer[NodeList]:
        return api.get_pages("/v1/nodes", NodeList, members="nodes", query=query)

    style = ListStyle(sort=arguments.sort, wide=arguments.output == "wide")
    if arguments.watch:
        from gpu_agent.cli.registry.watch import watch_nodes

        return watch_nodes(api, read, as_json=arguments.json, style=style)
    answer = read()
    if arguments.json:
        print_json(answer.document)
        return ExitCode.OK
    print_lines(node_table(answer.model, terminal_columns(), now=time.time(), style=style))
    if not answer.model.nodes:
        print(NO_MATCH if query else NO_NODES)
    return ExitCode.OK


def _query(arguments: Arguments) -> Iterator[tuple[str, str]]:
    yield from (("status", status) for status in arguments.status)
    yield from (("label", f"{key}={value}") for key, value in arguments.label)
    for name, value in (("model", arguments.model), ("gpu_name", arguments.gpu_name)):
        if value is not None:
            yield name, value


def declare_show() -> Declaration:
    """Declare what it takes, and its help."""
    return Declaration(
        about="Show one node: its status and what would change it, jobs, drain, labels, GPUs, models, the "
        "checks "
        "that fail, and what happened to it lately. GPUs have the numbers that their driver gives them.",
        example="gpu-agent registry node show node-7",
        exits={ExitCode.OK: "shown, whatever its status"},
        params=[*_node_id(), *request_options(json_is="what GET /v1/nodes/ID answers")],
    )


def run_show(arguments: Arguments) -> int:
    """Read the node and print its page."""
    from gpu_agent.cli.client.resources import Node
    from gpu_agent.cli.registry.node_page import node_page

    node = Node(Api.of(arguments), arguments.node_id).detail()
    if arguments.json:
        print_json(node.document)
    else:
        print_lines(node_page(node.model, terminal_columns(), now=time.time()))
    return ExitCode.OK


def declare_refresh() -> Declaration:
    """Declare what it takes, and its help."""
    return Declaration(
        about="Have a connected node probe its GPUs and models now and send all that it finds,\n"
        "rather than wait until it does so by itself.",
        example="gpu-agent registry node refresh node-7",
        exits={ExitCode.OK: "requested; what the node finds comes with its next heartbeat"},
        params=[
            *_node_id(),
            reason_option(),
            *request_options(json_is="what POST /v1/nodes/ID/refresh answers"),
        ],
    )


def run_refresh(arguments: Arguments) -> int:
    """Request it and print."""
    return _control(
        arguments, "refresh", "was asked to probe again; what it finds comes with its next heartbeat"
    )


def declare_check() -> Declaration:
    """Declare what it takes, and its help."""
    return Declaration(
        about="Have a connected node run its admission checks now and report their results, as after\n"
        "a repair. It checks no GPU that is in use; cordon it first where a claim could come\n"
        "in between.",
        example="gpu-agent registry node check node-7",
        exits={ExitCode.OK: "requested; `registry node show` shows the age of each result"},
        params=[
            *_node_id(),
            reason_option(),
            *request_options(json_is="what POST /v1/nodes/ID/check answers"),
        ],
    )


def run_check(arguments: Arguments) -> int:
    """Request it and print."""
    return _control(
        arguments, "check", "was asked to run its checks; `registry node show` shows the age of each result"
    )


def declare_reregister() -> Declaration:
    """Declare what it takes, and its help."""
    return Declaration(
        about="Have a connected node register again: it declares its hardware, models and labels,\n"
        "and becomes ready as a new node does. It keeps its id and its jobs, and gets no new\n"
        "job until it is ready.",
        example="gpu-agent registry node reregister node-7",
        exits={ExitCode.OK: "requested"},
        params=[
            *_node_id(),
            reason_option(),
            *request_options(json_is="what POST /v1/nodes/ID/reregister answers"),
        ],
    )


def run_reregister(arguments: Arguments) -> int:
    """Request it and print."""
    return _control(
        arguments, "reregister", "was asked to register again; `registry node show` shows when it has"
    )


def _control(arguments: Arguments, command: str, words: str) -> int:
    from gpu_agent.cli.client.resources import Node
    from gpu_agent.wire.api import NodeDetail

    body = without_none(reason=arguments.reason)
    answer = Node(Api.of(arguments), arguments.node_id).act(command, NodeDetail, body)
    if arguments.json:
        print_json(answer.document)
    else:
        print(f"{arguments.node_id} {words}")
    return ExitCode.OK


def declare_remove() -> Declaration:
    """Declare what it takes, and its help."""
    return Declaration(
        about="Remove a node's record: its identity, claims, drain, cordon and history. What is\n"
        "lost is shown first; on a terminal you have to type the id. An agent that still runs\n"
        "there is disconnected and comes back only as a new node.",
        example="gpu-agent registry node remove node-7 --yes",
        exits={
            ExitCode.OK: "removed",
            ExitCode.FAILED: "the id was not typed; nothing was removed",
            ExitCode.CONFIGURATION: "wrong arguments, or no terminal to ask at and no --yes",
        },
        params=[
            *_node_id(),
            option("--yes", help="do not ask", flag=True),
            reason_option(),
            *request_options(json_is="nothing, as DELETE /v1/nodes/ID answers nothing"),
        ],
    )


def run_remove(arguments: Arguments) -> int:
    """Show what is lost, ask, and remove the record."""
    from gpu_agent.cli.client.resources import Node
    from gpu_agent.cli.registry.node_targets import losses_in_words

    node = Node(Api.of(arguments), arguments.node_id)
    lost = "\n".join(losses_in_words(node.detail().model))
    if not arguments.yes:
        _confirm(arguments.node_id, lost)
    node.remove(arguments.reason)
    if not arguments.json:
        print(f"{arguments.node_id} is removed." + (f"\n{lost}" if arguments.yes else ""))
    return ExitCode.OK


def _confirm(node_id: str, lost: str) -> None:
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        raise Failure(
            f"there is no terminal to ask at. {lost}\nAdd --yes to remove {node_id} all the same.",
            code=ExitCode.CONFIGURATION,
        )
    print(f"{lost}\nType the id to remove it: ", end="", file=sys.stderr, flush=True)
    if sys.stdin.readline().strip() != node_id:
        raise Failure(f"that is not {node_id}: nothing was removed")


def _node_id() -> list[click.Parameter]:
    return [argument("node_id", metavar="ID", help="the node, as `registry node list` shows it")]


COMMANDS: Commands = {
    "list": (declare_list, run_list),
    "show": (declare_show, run_show),
    "refresh": (declare_refresh, run_refresh),
    "check": (declare_check, run_check),
    "reregister": (declare_reregister, run_reregister),
    "remove": (declare_remove, run_remove),
}
