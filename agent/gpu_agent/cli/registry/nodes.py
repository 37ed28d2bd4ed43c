"""`gpu-agent registry nodes`, `node`, `why`, and the actions on one node."""

import argparse
import sys
import time
import urllib.parse
from collections.abc import Iterator, Mapping
from typing import Any

from gpu_agent.cli.client.http import NODE_DETAIL, NODES, WHY, Api, get_all_pages
from gpu_agent.cli.client.resources import Node
from gpu_agent.cli.command import Commands, ExitCode, Failure, describe
from gpu_agent.cli.options import add_node_id, add_request_options, label_pair, print_json, without_none
from gpu_agent.cli.output.exclusions import acceptance_line, exclusion_table
from gpu_agent.cli.output.nodes import NO_NODES, STATUS_STYLES, node_table
from gpu_agent.cli.output.streams import StatusLine, print_stderr
from gpu_agent.cli.output.text import BLANK, Line, Piece, line, print_lines, printable, terminal_columns, wrap
from gpu_agent.cli.output.units import duration_in_words, parse_duration
from gpu_agent.cli.registry.node_page import node_page

NO_MATCH = "No node is like that; `gpu-agent registry nodes` lists all of them."


def configure_nodes(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    describe(
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
        "--label",
        action="append",
        type=label_pair,
        default=[],
        metavar="K=V",
        help="has this label (repeatable)",
    )
    which.add_argument("--gpu-name", metavar="NAME", help="has a GPU whose name holds this")
    parser.add_argument(
        "--watch",
        action="store_true",
        help="keep the list current until Ctrl-C; in a pipe: a line for each change",
    )
    add_request_options(
        parser,
        json_is="what GET /v1/nodes answers, all pages as one; with --watch on one line whenever it changed",
    )


def run_nodes(arguments: argparse.Namespace) -> int:
    """Ask and print."""
    api, query = Api.of(arguments), tuple(_query(arguments))

    def read() -> dict[str, Any]:
        return get_all_pages(api, "/v1/nodes", NODES, key="nodes", query=query)

    if arguments.watch:
        from gpu_agent.cli.registry.watch import watch_nodes as watch

        return watch(api, read, as_json=arguments.json)
    answer = read()
    if arguments.json:
        print_json(answer)
        return ExitCode.OK
    print_lines(node_table(answer, terminal_columns(), now=time.time()))
    if not answer["nodes"]:
        print(NO_MATCH if query else NO_NODES)
    return ExitCode.OK


def _query(arguments: argparse.Namespace) -> Iterator[tuple[str, str]]:
    yield from (("status", status) for status in arguments.status)
    yield from (("label", f"{key}={value}") for key, value in arguments.label)
    for name, wish in (("model", arguments.model), ("gpu_name", arguments.gpu_name)):
        if wish is not None:
            yield name, wish


def configure_node(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    describe(
        parser,
        "Show one node: its status and what would change it, jobs, drain, labels, GPUs,\n"
        "models, every health check, and what happened to it lately.",
        example="gpu-agent registry node node-7",
        exits={ExitCode.OK: "shown, whatever its status"},
    )
    add_node_id(parser)
    add_request_options(parser, json_is="what GET /v1/nodes/ID answers")


def run_node(arguments: argparse.Namespace) -> int:
    """Ask and print."""
    node = Node(Api.of(arguments), arguments.node_id).get(shape=NODE_DETAIL)
    if arguments.json:
        print_json(node)
    else:
        print_lines(node_page(node, terminal_columns(), now=time.time()))
    return ExitCode.OK


_ENDLESS = 1_000_000


def configure_why(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    describe(
        parser,
        "Say which jobs a node would be refused now, and why: first what may pass, with what would "
        "clear it, then what the node is, beyond which no job ever fits. With --model also how it "
        "stands with that model there.",
        example="gpu-agent registry why node-7 --model my/model",
        exits={ExitCode.OK: "said, whatever it is"},
    )
    add_node_id(parser)
    parser.add_argument("--model", metavar="M", help="also how it stands with this model there")
    add_request_options(parser, json_is="what GET /v1/nodes/ID/explain answers")


def run_why(arguments: argparse.Namespace) -> int:
    """Ask and print."""
    query = "" if arguments.model is None else f"?{urllib.parse.urlencode({'model': arguments.model})}"
    answer = Node(Api.of(arguments), arguments.node_id).get(f"/explain{query}", shape=WHY)
    if arguments.json:
        print_json(answer)
    else:
        print_lines(_explanation_page(answer, terminal_columns()))
    return ExitCode.OK


def _explanation_page(answer: Mapping[str, Any], columns: int | None) -> Iterator[Line]:
    objections, limits = answer["objections"], answer["limits"]
    yield acceptance_line(answer["node_id"], answer)
    if objections:
        yield BLANK
        yield from exclusion_table("NOW REFUSED", objections, columns)
    if limits:
        yield BLANK
        yield from exclusion_table("NEVER FITS", limits, columns)
    if answer.get("model"):
        yield BLANK
        yield from wrap(_model_line(answer["model"]), _ENDLESS if columns is None else columns)


def _model_line(model: Mapping[str, Any]) -> Line:
    style = "green" if model["ready"] else "yellow"
    versions = ", ".join(
        f"{one['version']} {one['status']}{'' if one['enabled'] else ' disabled'}"
        for one in model["versions"]
    )
    told = f" (versions: {versions})" if versions else ""
    return line(f"Model {model['model_id']}: ", Piece(model["state"], style), told)


def configure_drain(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    describe(
        parser,
        "Give a node no more jobs, let those in flight end, then take it offline.\n"
        "After the deadline it goes offline whatever runs. The wish outlives restarts of\n"
        "both sides; `registry resume` lifts it.",
        example="gpu-agent registry drain node-7 --deadline 10m --reason 'new fans' --wait",
        exits={
            ExitCode.OK: "the drain is under way; with --wait: the node is offline",
            ExitCode.FAILED: "with --wait: somebody lifted the drain meanwhile",
            ExitCode.INTERRUPTED: "with --wait: interrupted; the drain goes on",
        },
    )
    add_node_id(parser)
    parser.add_argument(
        "--deadline",
        type=parse_duration,
        metavar="TIME",
        help="how long jobs may take, such as 10m (default: the registry's)",
    )
    parser.add_argument("--reason", metavar="TEXT", help="why, for whoever looks at the node")
    parser.add_argument(
        "--wait", action="store_true", help="show the jobs in flight, and end when it is offline"
    )
    add_request_options(
        parser, json_is="the node, as POST /v1/nodes/ID/drain answers it; with --wait when it is over"
    )


def run_drain(arguments: argparse.Namespace) -> int:
    """Ask, wait if so told, and print."""
    node = Node(Api.of(arguments), arguments.node_id)
    asked = without_none(deadline_seconds=arguments.deadline, reason=arguments.reason)
    now = node.post("drain", asked, shape=NODE_DETAIL)
    if arguments.wait:
        try:
            now = wait_until_offline(node, now, quiet=arguments.json)
        except KeyboardInterrupt:
            print_stderr(f"the drain of {node.node_id} goes on; `gpu-agent registry resume` would lift it")
            return ExitCode.INTERRUPTED
    if arguments.json:
        print_json(now)
    else:
        print(f"{now['node_id']} is {now['status']}: {printable(now['reason'])}")
    return ExitCode.OK


LOOK_SECONDS = 1.0
"""How often the registry is asked: what is left counts down by the second, also while it is away."""


def wait_until_offline(node: Node, now: Mapping[str, Any], *, quiet: bool = False) -> dict[str, Any]:
    """Look until the node is offline; raises `Failure` when its drain is lifted or it is forgotten."""
    with StatusLine(quiet=quiet) as line:
        while now["status"] != "offline":
            if now["status"] != "draining" and now.get("drain") is None:
                raise Failure(f"the drain of {node.node_id} was lifted: it is {now['status']}")
            counted, named = _in_flight(now)
            line.show(counted, left=_time_left(now), more=named)
            time.sleep(LOOK_SECONDS)
            now = _read_node(node, line) or now
    return dict(now)


def _read_node(node: Node, line: StatusLine) -> dict[str, Any] | None:
    try:
        return node.get(shape=NODE_DETAIL)
    except Failure as failure:
        if failure.code is not ExitCode.UNREACHABLE:
            raise
        line.show("the registry does not answer; waiting for it")
        return None


def _in_flight(now: Mapping[str, Any]) -> tuple[str, str]:
    """How many jobs there are, and which."""
    jobs = sorted({*(now.get("claimed_jobs") or ()), *(now.get("running_jobs") or ())})
    count = max(len(jobs), int(now["in_flight_jobs"]))
    named = f": {', '.join(map(printable, jobs))}" if jobs else ""
    return f"{now['node_id']} is {now['status']}, {count} {'job' if count == 1 else 'jobs'} in flight", named


def _time_left(now: Mapping[str, Any]) -> str:
    drain = now.get("drain")
    if not isinstance(drain, dict) or not isinstance(drain.get("deadline"), int | float):
        return ""
    return f", {duration_in_words(drain['deadline'] - time.time())} left"


def configure_resume(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    describe(
        parser,
        "Lift a node's drain. It proves itself anew, registering and then ready; if its\n"
        "agent is not connected, as soon as it is.",
        example="gpu-agent registry resume node-7",
        exits={ExitCode.OK: "the drain is lifted"},
    )
    add_node_id(parser)
    add_request_options(parser, json_is="the node, as POST /v1/nodes/ID/resume answers it")


def run_resume(arguments: argparse.Namespace) -> int:
    """Ask and print."""
    node = Node(Api.of(arguments), arguments.node_id).post("resume", shape=NODE_DETAIL)
    if arguments.json:
        print_json(node)
    else:
        print(f"{node['node_id']} is {node['status']}: {printable(node['reason'])}")
    return ExitCode.OK


def configure_cordon(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    describe(
        parser,
        "Give a node no new jobs. Its status and the jobs that it has stay as they are;\n"
        "the cordon outlives restarts of both sides, until `registry uncordon`.",
        example="gpu-agent registry cordon node-7 --reason 'odd noise, watch it'",
        exits={ExitCode.OK: "the node gets no new jobs"},
    )
    add_node_id(parser)
    parser.add_argument("--reason", metavar="TEXT", help="why, for whoever looks at the node")
    add_request_options(parser, json_is="the node, as POST /v1/nodes/ID/cordon answers it")


def run_cordon(arguments: argparse.Namespace) -> int:
    """Ask and print."""
    node = Node(Api.of(arguments), arguments.node_id).post(
        "cordon", without_none(reason=arguments.reason), shape=NODE_DETAIL
    )
    if arguments.json:
        print_json(node)
    else:
        jobs = node["in_flight_jobs"]
        kept = f", and keeps its {jobs} {'job' if jobs == 1 else 'jobs'}" if jobs else ""
        print(f"{node['node_id']} gets no new jobs until `registry uncordon`; it is {node['status']}{kept}")
    return ExitCode.OK


def configure_uncordon(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    describe(
        parser,
        "Lift a cordon: the node may have new jobs whenever it is ready.",
        example="gpu-agent registry uncordon node-7",
        exits={ExitCode.OK: "the cordon is lifted"},
    )
    add_node_id(parser)
    add_request_options(parser, json_is="the node, as POST /v1/nodes/ID/uncordon answers it")


def run_uncordon(arguments: argparse.Namespace) -> int:
    """Ask and print."""
    node = Node(Api.of(arguments), arguments.node_id).post("uncordon", shape=NODE_DETAIL)
    ready = node["status"] == "ready" and node["connected"]
    when = "now" if ready else f"once it is ready and connected; it is {node['status']}"
    if arguments.json:
        print_json(node)
    else:
        print(f"{node['node_id']} may have new jobs {when}")
    return ExitCode.OK


def configure_refresh(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    describe(
        parser,
        "Ask a connected node to probe its GPUs and models again and to send all it finds,\n"
        "rather than wait until it does so by itself.",
        example="gpu-agent registry refresh node-7",
        exits={ExitCode.OK: "the node was asked; what it finds comes with its next beat"},
    )
    add_node_id(parser)
    add_request_options(parser, json_is="what POST /v1/nodes/ID/refresh answers")


def run_refresh(arguments: argparse.Namespace) -> int:
    """Ask and print."""
    answer = Node(Api.of(arguments), arguments.node_id).post("refresh")
    if arguments.json:
        print_json(answer)
    else:
        print(f"{arguments.node_id} was asked to probe again; what it finds comes with its next beat")
    return ExitCode.OK


def configure_reregister(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    describe(
        parser,
        "Ask a connected node to register again: it declares its hardware, models and\n"
        "labels anew and proves itself as a newcomer does. It keeps its id and its jobs,\n"
        "and gets no new job until it is ready.",
        example="gpu-agent registry reregister node-7",
        exits={ExitCode.OK: "the node was asked"},
    )
    add_node_id(parser)
    add_request_options(parser, json_is="what POST /v1/nodes/ID/reregister answers")


def run_reregister(arguments: argparse.Namespace) -> int:
    """Ask and print."""
    answer = Node(Api.of(arguments), arguments.node_id).post("reregister")
    if arguments.json:
        print_json(answer)
    else:
        print(f"{arguments.node_id} was asked to register again; `registry node` shows when it has")
    return ExitCode.OK


def configure_forget(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    describe(
        parser,
        "Let a node's record go: its identity, claims, drain, cordon and history. What is lost\n"
        "is said first; on a terminal the id has to be typed. An agent that still runs there\n"
        "is sent away and comes back only as a newcomer.",
        example="gpu-agent registry forget node-7 --yes",
        exits={
            ExitCode.OK: "forgotten",
            ExitCode.FAILED: "the id was not typed; nothing happened",
            ExitCode.CONFIGURATION: "wrong arguments, or no terminal to ask at and no --yes",
        },
    )
    add_node_id(parser)
    parser.add_argument("--yes", action="store_true", help="do not ask")
    add_request_options(parser, json_is="nothing, as DELETE /v1/nodes/ID answers nothing")


def run_forget(arguments: argparse.Namespace) -> int:
    """Say what is lost, ask, and do it."""
    node = Node(Api.of(arguments), arguments.node_id)
    lost = "\n".join(_losses(node.get(shape=NODE_DETAIL)))
    if not arguments.yes:
        _confirm(arguments.node_id, lost)
    node.delete()
    if not arguments.json:
        print(f"{arguments.node_id} is forgotten." + (f"\n{lost}" if arguments.yes else ""))
    return ExitCode.OK


def _confirm(node_id: str, lost: str) -> None:
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        raise Failure(
            f"there is no terminal to ask at. {lost}\nAdd --yes to forget {node_id} all the same.",
            code=ExitCode.CONFIGURATION,
        )
    print(f"{lost}\nType the id to forget it: ", end="", file=sys.stderr, flush=True)
    if sys.stdin.readline().strip() != node_id:
        raise Failure(f"that is not {node_id}: nothing was forgotten")


def _losses(node: Mapping[str, Any]) -> Iterator[str]:
    connected = ", connected" if node["connected"] else ""
    yield f"{node['node_id']} is {node['status']}{connected} ({printable(node['reason'])}). With it go:"
    yield "  its identity: an agent that still runs there needs a join token, and comes as a newcomer"
    claims = node.get("claimed_jobs") or ()
    if claims:
        yield f"  its claims, reported lost: {', '.join(map(printable, claims))}"
    if node["in_flight_jobs"] > len(claims):
        yield f"  what is known of its {node['in_flight_jobs']} jobs in flight, which may run on unseen"
    if node.get("drain"):
        yield "  its drain: should it come back, it takes jobs"
    if node.get("cordoned") is not None:
        yield f"  its cordon ({printable(node['cordoned'])}): should it come back, it takes jobs"
    yield f"  its history: {len(node['events'])} events"


COMMANDS: Commands = {
    "nodes": (configure_nodes, run_nodes),
    "node": (configure_node, run_node),
    "why": (configure_why, run_why),
    "drain": (configure_drain, run_drain),
    "resume": (configure_resume, run_resume),
    "cordon": (configure_cordon, run_cordon),
    "uncordon": (configure_uncordon, run_uncordon),
    "refresh": (configure_refresh, run_refresh),
    "reregister": (configure_reregister, run_reregister),
    "forget": (configure_forget, run_forget),
}
