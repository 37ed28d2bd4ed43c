"""`registry explain job|node|exclusions`: why a job gets no node, and why a node gets no jobs."""

import time

from gpu_agent.cli.client.http import Api, request_options
from gpu_agent.cli.command import Arguments, ExitCode
from gpu_agent.cli.declaration import Commands, Declaration, argument, option
from gpu_agent.cli.output.text import BLANK, line, print_json, print_lines, terminal_columns, wrap
from gpu_agent.cli.registry.job_options import job_options, job_request

MOST_NODES = 20
"""So many eligible nodes are printed, and so many excluded ones: a fleet may have thousands of each."""


def declare_job() -> Declaration:
    """Declare what it takes, and its help."""
    return Declaration(
        about="Describe a job; every node answers whether it could take it now, and if not, which demand "
        "fails first, what the job needs and what the node has. The best nodes come first, then those that "
        "lack least. Reserves nothing.",
        example="gpu-agent registry explain job --model my/model --gpus 2 --label zone=a",
        instead="describe the job with --gpus and the other options; `gpu-agent registry queue` shows why a "
        "waiting job waits",
        exits={
            ExitCode.OK: "explained, whatever the answer; with --pick: there is a node",
            ExitCode.NO_NODE: "with --pick: no node can take the job now",
        },
        params=[
            option(
                "--pick",
                help="print only the node that the job would get now, and which of its GPUs: a dry run of "
                "`claim "
                "create`",
                flag=True,
            ),
            option(
                "--all",
                help=f"every node, and not only the first {MOST_NODES} eligible and excluded ones",
                flag=True,
            ),
            *job_options(),
            *request_options(
                json_is="what POST /v1/dispatch/explain answers; with --pick what POST /v1/dispatch/select "
                "does, a "
                "refusal for want of a node too"
            ),
        ],
    )


def run_job(arguments: Arguments) -> int:
    """Request it and print the nodes with their reasons, or the one node."""
    if arguments.pick:
        return _run_pick(arguments)
    from gpu_agent.cli.output.exclusions import counts_in_words, eligibility_table, nodes_left_out
    from gpu_agent.cli.output.nodes import NO_NODES
    from gpu_agent.wire.api import ExplanationView

    most = None if arguments.all or arguments.json else MOST_NODES
    path = "/v1/dispatch/explain" if most is None else f"/v1/dispatch/explain?limit={most}"
    answer = Api.of(arguments).post(path, job_request(arguments), ExplanationView)
    nodes = answer.model
    if arguments.json:
        print_json(answer.document)
    elif nodes.eligible or nodes.excluded:
        print_lines(eligibility_table(nodes, terminal_columns(), most=most))
        if left := nodes_left_out(nodes, most):
            print_lines(wrap(line(f"{left}: --all shows them"), terminal_columns()))
        needed = f" of {nodes.nodes_needed} that the job needs" if nodes.nodes_needed > 1 else ""
        excluded = counts_in_words(nodes.counts) or "none"
        summary = line(f"{len(nodes.eligible)} eligible{needed}; excluded: {excluded}")
        columns = terminal_columns()
        print_lines([*([] if columns is None else [BLANK]), *wrap(summary, columns)])
    else:
        print(NO_NODES)
    return ExitCode.OK


def _run_pick(arguments: Arguments) -> int:
    from gpu_agent.cli.registry.claims import request_slot, slot_in_words
    from gpu_agent.wire.api import Selection

    slot = request_slot(
        Api.of(arguments),
        "/v1/dispatch/select",
        job_request(arguments),
        model=Selection,
        as_json=arguments.json,
    )
    if slot is None:
        return ExitCode.NO_NODE
    if arguments.json:
        print_json(slot.document)
    else:
        print(slot_in_words(slot.model))
    return ExitCode.OK


def declare_node() -> Declaration:
    """Declare what it takes, and its help."""
    return Declaration(
        about="Say which jobs a node would be refused now, and why: first what may pass, with what would "
        "clear it, then what the node is, beyond which no job ever fits. With --model also the state of "
        "that model there.",
        example="gpu-agent registry explain node node-7 --model my/model",
        exits={ExitCode.OK: "explained, whatever the reasons"},
        params=[
            argument("node_id", metavar="ID", help="the node, as `registry node list` shows it"),
            option("--model", metavar="M", help="also the state of this model there"),
            *request_options(json_is="what GET /v1/nodes/ID/explain answers"),
        ],
    )


def run_node(arguments: Arguments) -> int:
    """Read the explanation and print it."""
    from gpu_agent.cli.client.resources import Node
    from gpu_agent.cli.output.exclusions import explanation_page
    from gpu_agent.wire.api import NodeExplanation

    query = () if arguments.model is None else (("model", arguments.model),)
    answer = Node(Api.of(arguments), arguments.node_id).get("/explain", NodeExplanation, query=query)
    if arguments.json:
        print_json(answer.document)
    else:
        print_lines(explanation_page(answer.model, terminal_columns()))
    return ExitCode.OK


def declare_exclusions() -> Declaration:
    """Declare what it takes, and its help."""
    return Declaration(
        about="Count what jobs failed on in the last hour, by the minute: how many found no node, and how "
        "many times each reason excluded a node, with one of the nodes as an example.",
        example="gpu-agent registry explain exclusions",
        exits={ExitCode.OK: "counted, even if no job failed"},
        params=[*request_options(json_is="what GET /v1/exclusions answers")],
    )


def run_exclusions(arguments: Arguments) -> int:
    """Read the counts and print them."""
    from gpu_agent.cli.output.exclusions import exclusions_table
    from gpu_agent.wire.api import ExclusionsList

    answer = Api.of(arguments).get("/v1/exclusions", ExclusionsList)
    if arguments.json:
        print_json(answer.document)
        return ExitCode.OK
    lines = exclusions_table(answer.model, terminal_columns(), now=time.time())
    if lines:
        print_lines(lines)
    else:
        print("Every job of the last hour found a node, or there was none.")
    return ExitCode.OK


COMMANDS: Commands = {
    "job": (declare_job, run_job),
    "node": (declare_node, run_node),
    "exclusions": (declare_exclusions, run_exclusions),
}
