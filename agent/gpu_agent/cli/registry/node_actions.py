"""`registry node drain|resume|cordon|uncordon`: for one node, or for all nodes with a label."""

from functools import partial

import click

from gpu_agent.cli.client.http import Api, reason_option, request_options, without_none
from gpu_agent.cli.command import Arguments, ExitCode, Failure, label_pair, positive_number
from gpu_agent.cli.declaration import Commands, Declaration, argument, option
from gpu_agent.cli.output.streams import print_stderr
from gpu_agent.cli.output.units import parse_duration

_MANY = "several nodes at once"
_SOME_FAILED = "with --label: a node refused, or you did not type yes"
_MANY_JSON = "with --label one on a line for each node"


def declare_drain() -> Declaration:
    """Declare what it takes, and its help."""
    return Declaration(
        about="Drain a node: it gets no new jobs, finishes those in flight, then goes offline. After the "
        "deadline it goes offline whatever runs. The drain outlives restarts of both sides; `registry node "
        "resume` ends it.\n\n"
        "With --label all nodes that have the label are drained, and listed first: nothing happens until "
        "you type yes, or without a terminal until you add --yes. With --at-once N no more than N of them "
        "drain at the same time; the next one begins when one is offline.",
        example="gpu-agent registry node drain node-7 --deadline 10m --reason 'new fans' --wait",
        exits={
            ExitCode.OK: "the drain has begun; with --wait or --at-once: every node is offline",
            ExitCode.FAILED: "a node was resumed meanwhile or refused, or you did not type yes",
            ExitCode.INTERRUPTED: "interrupted while it waited; the drains that have begun go on",
        },
        params=[
            *_selection(),
            option(
                "--at-once",
                type=positive_number,
                metavar="N",
                help="at most so many drain at the same time; waits until all are offline",
                subject=_MANY,
            ),
            option(
                "--deadline",
                type=parse_duration,
                metavar="TIME",
                help="how long jobs may take, such as 10m (default: the registry's)",
            ),
            reason_option(),
            option("--wait", help="show the jobs in flight, and end when it is offline", flag=True),
            *request_options(
                json_is="the node, as POST /v1/nodes/ID/drain answers it; with --wait when it is over; "
                f"{_MANY_JSON}"
            ),
        ],
    )


def run_drain(arguments: Arguments) -> int:
    """Request the drain, wait for its end if requested, and print each node's status."""
    from gpu_agent.cli.registry.node_drain import drain_in_turn, wait_until_offline
    from gpu_agent.cli.registry.node_targets import (
        act_on_each,
        action_of,
        label_words,
        node_named,
        nodes_with_labels,
        print_status,
    )

    api = Api.of(arguments)
    act = action_of("drain", without_none(deadline_seconds=arguments.deadline, reason=arguments.reason))
    show = partial(print_status, as_json=arguments.json)
    if arguments.label:
        nodes = nodes_with_labels(api, arguments, "drain")
        if not (arguments.wait or arguments.at_once):
            return act_on_each(nodes, act, show, done="drained")
        at_once = arguments.at_once or len(nodes)
        ends_all = f"`gpu-agent registry node resume {label_words(arguments.label)}` would end them"
        return drain_in_turn(nodes, act, show, at_once=at_once, ends_all=ends_all, quiet=arguments.json)
    if arguments.at_once is not None:
        raise Failure(
            "--at-once says how many of several nodes drain at the same time: name them with --label",
            code=ExitCode.CONFIGURATION,
        )
    node = node_named(api, arguments, "drain")
    now = act(node)
    if arguments.wait:
        try:
            now = wait_until_offline(node, now, quiet=arguments.json)
        except KeyboardInterrupt:
            resume = f"`gpu-agent registry node resume {node.node_id}`"
            print_stderr(f"the drain of {node.node_id} goes on; {resume} would end it")
            return ExitCode.INTERRUPTED
    show(now, many=False)
    return ExitCode.OK


def declare_resume() -> Declaration:
    """Declare what it takes, and its help."""
    return Declaration(
        about="End a node's drain. It registers again and becomes ready as a new node does; if its agent "
        "is not "
        "connected, as soon as it is. With --label the drains of all nodes that have the label.",
        example="gpu-agent registry node resume node-7",
        exits={ExitCode.OK: "the drain is ended", ExitCode.FAILED: _SOME_FAILED},
        params=[
            *_selection(),
            reason_option(),
            *request_options(json_is=f"the node, as POST /v1/nodes/ID/resume answers it; {_MANY_JSON}"),
        ],
    )


def run_resume(arguments: Arguments) -> int:
    """Request it and print each node's status."""
    from gpu_agent.cli.registry.node_targets import act, status_words

    body = without_none(reason=arguments.reason)
    return act(arguments, "resume", done="resumed", body=body, words=status_words)


def declare_cordon() -> Declaration:
    """Declare what it takes, and its help."""
    return Declaration(
        about="Cordon a node: it gets no new jobs. Its status and the jobs that it has stay as they are. "
        "With "
        "--gpu only that GPU of it: no new claim gets it, and a claim that holds it goes on. With --label "
        "all nodes that have the label. The cordon outlives restarts of both sides, until `registry node "
        "uncordon`.",
        example="gpu-agent registry node cordon node-7 --reason 'odd noise, watch it'",
        exits={ExitCode.OK: "no new jobs come", ExitCode.FAILED: _SOME_FAILED},
        params=[
            *_selection(),
            *_gpu(),
            reason_option(),
            *request_options(
                json_is="the node, as POST /v1/nodes/ID/cordon, or with --gpu POST "
                "/v1/nodes/ID/gpus/UUID/cordon, "
                f"answers it; {_MANY_JSON}"
            ),
        ],
    )


def run_cordon(arguments: Arguments) -> int:
    """Request it and print."""
    from gpu_agent.cli.registry.node_targets import act, gpu_cordoned, node_cordoned

    body = without_none(reason=arguments.reason)
    return act(arguments, "cordon", done="cordoned", body=body, words=node_cordoned, gpu_words=gpu_cordoned)


def declare_uncordon() -> Declaration:
    """Declare what it takes, and its help."""
    return Declaration(
        about="Uncordon a node: it gets new jobs whenever it is ready. With --gpu only that GPU of it: "
        "claims may "
        "have it again. With --label all nodes that have the label.",
        example="gpu-agent registry node uncordon node-7",
        exits={ExitCode.OK: "it is uncordoned", ExitCode.FAILED: _SOME_FAILED},
        params=[
            *_selection(),
            *_gpu(),
            reason_option(),
            *request_options(
                json_is="the node, as POST /v1/nodes/ID/uncordon, or with --gpu POST "
                f"/v1/nodes/ID/gpus/UUID/uncordon, answers it; {_MANY_JSON}"
            ),
        ],
    )


def run_uncordon(arguments: Arguments) -> int:
    """Request it and print."""
    from gpu_agent.cli.registry.node_targets import act, gpu_uncordoned, node_uncordoned

    body, words = without_none(reason=arguments.reason), node_uncordoned
    return act(arguments, "uncordon", done="uncordoned", body=body, words=words, gpu_words=gpu_uncordoned)


def _selection() -> list[click.Parameter]:
    """Return the node's id, and what selects several nodes."""
    return [
        argument("node_id", metavar="ID", help="the node, as `registry node list` shows it", optional=True),
        option(
            "--label",
            type=label_pair,
            metavar="K=V",
            help="all nodes with this label; the same one again: another value that will do (repeatable)",
            repeatable=True,
            subject=_MANY,
        ),
        option(
            "--yes",
            help="do not ask whether the nodes that are listed are meant",
            flag=True,
            subject=_MANY,
        ),
    ]


def _gpu() -> list[click.Parameter]:
    return [
        option(
            "--gpu",
            metavar="GPU",
            help="only this GPU of the node: its number, its UUID or how that begins, such as GPU-5f2a8c1e",
        )
    ]


COMMANDS: Commands = {
    "drain": (declare_drain, run_drain),
    "resume": (declare_resume, run_resume),
    "cordon": (declare_cordon, run_cordon),
    "uncordon": (declare_uncordon, run_uncordon),
}
