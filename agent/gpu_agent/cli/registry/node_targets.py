"""The nodes that an action of `registry node` is for: one by its id, or all with a label.

Nodes that a label selects are listed before anything happens to them. One node's refusal does not keep the
command from the others.
"""

import json
import shlex
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial

from gpu_agent.cli.client.answers import Answer, Document
from gpu_agent.cli.client.http import Api, quote_id
from gpu_agent.cli.client.resources import Node
from gpu_agent.cli.command import Arguments, ExitCode, Failure
from gpu_agent.cli.output.streams import print_stderr
from gpu_agent.cli.output.text import print_json, printable
from gpu_agent.wire.api import NodeDetail, NodeList, NodeSummary

Act = Callable[[Node], Answer[NodeDetail]]
_YES = "yes"
_SHORTEST_UUID = len("GPU-5f2a")


def act(
    arguments: Arguments,
    action: str,
    *,
    done: str,
    body: Mapping[str, object],
    words: Callable[[NodeDetail], str],
    gpu_words: Callable[[str, NodeDetail], str] | None = None,
) -> int:
    """Act on one node, on one GPU of it, or on all nodes with the labels; say so in these words."""
    api, gpu = Api.of(arguments), getattr(arguments, "gpu", None)

    def show(answer: Answer[NodeDetail], *, many: bool = True) -> None:
        if arguments.json:
            _print_document(answer.document, many=many)
        else:
            print(words(answer.model))

    if not arguments.label:
        node = node_named(api, arguments, action)
        if gpu is not None and gpu_words is not None:
            uuid = gpu_uuid(node.detail().model, gpu)
            action, words = f"gpus/{quote_id(uuid)}/{action}", partial(gpu_words, uuid)
        show(action_of(action, body)(node), many=False)
        return ExitCode.OK
    if gpu is not None:
        raise Failure(
            "--gpu names a GPU of one node: name that node, not --label", code=ExitCode.CONFIGURATION
        )
    return act_on_each(nodes_with_labels(api, arguments, action), action_of(action, body), show, done=done)


def action_of(action: str, body: Mapping[str, object]) -> Act:
    """Return what requests an action on a node."""
    return lambda node: node.act(action, NodeDetail, body)


def node_named(api: Api, arguments: Arguments, action: str) -> Node:
    """Return the node whose id is given; raises `Failure` where none is."""
    if arguments.node_id is None:
        path = f"gpu-agent registry node {action}"
        raise Failure(
            f"say which node to {action}: its ID, or all with --label K=V\nSee `{path} --help`.",
            code=ExitCode.CONFIGURATION,
        )
    return Node(api, arguments.node_id)


def gpu_uuid(node: NodeDetail, named: str) -> str:
    """Return the UUID of a GPU that is named by its number, its UUID or how that begins; raises `Failure`."""
    from gpu_agent.cli.output.nodes import gpu_numbers

    numbers = gpu_numbers(node.gpus)
    found = [uuid for uuid, number in numbers.items() if named in (number, uuid)]
    found = found or [uuid for uuid in numbers if len(named) >= _SHORTEST_UUID and uuid.startswith(named)]
    if len(found) > 1:
        raise Failure(
            f"{printable(named)} may be {' or '.join(map(printable, found))}: write more of it",
            code=ExitCode.CONFIGURATION,
        )
    return found[0] if found else named  # the registry refuses it, and says what to do


def nodes_with_labels(api: Api, arguments: Arguments, action: str) -> list[Node]:
    """List the nodes with the labels, ask whether they are meant, and return them; raises `Failure`."""
    if arguments.node_id is not None:
        raise Failure(
            f"name {printable(arguments.node_id)}, or nodes by --label, not both", code=ExitCode.CONFIGURATION
        )
    query = [("label", f"{key}={value}") for key, value in arguments.label]
    found = api.get_pages("/v1/nodes", NodeList, members="nodes", query=query).model.nodes
    if not found:
        raise Failure(
            f"no node has {label_words(arguments.label)}: `gpu-agent registry node list --json` shows labels"
        )
    if not arguments.yes:
        _confirm(f"{action} {'1 node' if len(found) == 1 else f'{len(found)} nodes'}", found)
    return [Node(api, node.node_id) for node in found]


def label_words(labels: Sequence[tuple[str, str]]) -> str:
    """Write labels as the options that name them."""
    return printable(shlex.join(word for key, value in labels for word in ("--label", f"{key}={value}")))


def act_on_each(
    nodes: Sequence[Node],
    act: Act,
    show: Callable[[Answer[NodeDetail]], None],
    *,
    done: str,
) -> int:
    """Act on one node after the other; raises `Failure` at the end where a node refused."""
    refused: list[str] = []
    for count, node in enumerate(nodes):
        try:
            answer = act(node)
        except Failure as failure:
            if failure.code is not ExitCode.REFUSED:
                raise Failure(
                    f"{failure}\n{count} of {len(nodes)} nodes were {done} before", failure.code
                ) from None
            print_stderr(f"{node.node_id}: {failure}")
            refused.append(node.node_id)
        else:
            show(answer)
    raise_for(refused, len(nodes), done)
    return ExitCode.OK


def raise_for(failed: Sequence[str], count: int, done: str) -> None:
    """Raise `Failure` with the nodes that an action failed on, if there are any."""
    if failed:
        were = "was" if len(failed) == 1 else "were"
        raise Failure(f"{len(failed)} of {count} {were} not {done}: {', '.join(failed)}")


def print_status(node: Answer[NodeDetail], *, as_json: bool, many: bool = True) -> None:
    """Print a node's status after an action."""
    if as_json:
        _print_document(node.document, many=many)
    else:
        print(status_words(node.model))


def _print_document(document: Document, *, many: bool) -> None:
    if many:
        print(json.dumps(document), flush=True)
    else:
        print_json(document)


def status_words(node: NodeDetail) -> str:
    """Describe a node's status."""
    return f"{node.node_id} is {node.status}: {printable(node.reason)}"


def node_cordoned(node: NodeDetail) -> str:
    """Say what a cordon does to a node."""
    jobs = node.in_flight_jobs
    busy = f", and keeps its {jobs} {'job' if jobs == 1 else 'jobs'}" if jobs else ""
    return f"{node.node_id} gets no new jobs until `registry node uncordon`; it is {node.status}{busy}"


def node_uncordoned(node: NodeDetail) -> str:
    """Say when a node gets new jobs again."""
    ready = node.status == "ready" and node.connected
    when = "now" if ready else f"once it is ready and connected; it is {node.status}"
    return f"{node.node_id} may have new jobs {when}"


def gpu_cordoned(uuid: str, node: NodeDetail) -> str:
    """Say what a cordon does to a GPU of a node."""
    holder = next((one.claimed_by for one in node.gpus if one.uuid == uuid), None)
    busy = f"; job {printable(holder)} has it now, and goes on" if holder else ""
    return f"{printable(uuid)} gets no new claim until `registry node uncordon` with --gpu{busy}"


def gpu_uncordoned(uuid: str, node: NodeDetail) -> str:
    """Say that claims may have a GPU again."""
    return f"claims may have {printable(uuid)} of {node.node_id} again"


def losses_in_words(node: NodeDetail) -> Iterator[str]:
    """Describe what is removed with a node's record."""
    connected = ", connected" if node.connected else ""
    yield f"{node.node_id} is {node.status}{connected} ({printable(node.reason)}). With it go:"
    yield "  its identity: an agent that still runs there needs a join token, and comes back as a new node"
    claims = node.claimed_jobs
    if claims:
        yield f"  its claims, reported lost: {', '.join(map(printable, claims))}"
    if node.in_flight_jobs > len(claims):
        jobs = "job" if node.in_flight_jobs == 1 else f"{node.in_flight_jobs} jobs"
        yield f"  what is known of its {jobs} in flight, which may run on unseen"
    if node.drain is not None:
        yield "  its drain: should it come back, it takes jobs"
    if node.cordoned is not None:
        yield f"  its cordon ({printable(node.cordoned)}): should it come back, it takes jobs"
    yield f"  its history: {len(node.events)} {'event' if len(node.events) == 1 else 'events'}"


def _listed(nodes: Sequence[NodeSummary]) -> list[str]:
    """Write a line for each node: its id and host, its status, and its jobs."""
    widest = max(len(node.node_id) for node in nodes)
    return [
        printable(
            f"  {node.node_id:<{widest}}  {node.hostname or '-'}  {node.status}, "
            f"{node.in_flight_jobs} {'job' if node.in_flight_jobs == 1 else 'jobs'} in flight"
        )
        for node in nodes
    ]


def _confirm(what: str, nodes: Sequence[NodeSummary]) -> None:
    """Ask for a confirmation of these nodes; raises `Failure` without it."""
    listed = "\n".join(_listed(nodes))
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        raise Failure(
            f"this would {what}:\n{listed}\nNothing has happened. Add --yes to {what}.",
            code=ExitCode.CONFIGURATION,
        )
    print(f"{listed}\nType {_YES} to {what}: ", end="", file=sys.stderr, flush=True)
    if sys.stdin.readline().strip() != _YES:
        raise Failure("that is not yes: nothing has happened")
