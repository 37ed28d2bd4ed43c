"""Actions on a node: the wait for a drain's end, and what is lost with a record."""

import time
from collections.abc import Iterator

from gpu_agent.cli.client.answers import Answer
from gpu_agent.cli.client.resources import Node
from gpu_agent.cli.command import ExitCode, Failure
from gpu_agent.cli.output.streams import StatusLine
from gpu_agent.cli.output.text import print_json, printable
from gpu_agent.cli.output.units import duration_in_words
from gpu_agent.wire.api import NodeDetail
from gpu_agent.wire.codes import NodeStatus

POLL_SECONDS = 1.0
"""How often `--wait` reads the node: the time that is left counts down by the second."""


def wait_until_offline(node: Node, now: Answer[NodeDetail], *, quiet: bool = False) -> Answer[NodeDetail]:
    """Read the node until it is offline; raises `Failure` when it is resumed or removed.

    A registry that is away for a while ends no waiting: the drain outlives its restart.
    """
    with StatusLine(quiet=quiet) as shown:
        while now.model.status != "offline":
            if now.model.status != NodeStatus.DRAINING and now.model.drain is None:
                raise Failure(f"the drain of {node.node_id} was ended: it is {now.model.status}")
            counted, named = _jobs_in_flight(now.model)
            shown.show(counted, left=_time_left(now.model), more=named)
            time.sleep(POLL_SECONDS)
            now = _read_again(node, shown) or now
    return now


def print_status(node: Answer[NodeDetail], *, as_json: bool) -> int:
    """Print how a node stands after an action; returns the exit code."""
    if as_json:
        print_json(node.document)
    else:
        print(f"{node.model.node_id} is {node.model.status}: {printable(node.model.reason)}")
    return ExitCode.OK


def losses_in_words(node: NodeDetail) -> Iterator[str]:
    """Say what goes with a node's record."""
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


def _read_again(node: Node, shown: StatusLine) -> Answer[NodeDetail] | None:
    try:
        return node.detail()
    except Failure as failure:
        if failure.code is not ExitCode.UNREACHABLE:
            raise
        shown.show("the registry does not answer; waiting for it")
        return None


def _jobs_in_flight(node: NodeDetail) -> tuple[str, str]:
    """Say how many jobs there are, and which."""
    jobs = sorted({*node.claimed_jobs, *(node.running_jobs or ())})
    count = max(len(jobs), node.in_flight_jobs)
    named = f": {', '.join(map(printable, jobs))}" if jobs else ""
    return f"{node.node_id} is {node.status}, {count} {'job' if count == 1 else 'jobs'} in flight", named


def _time_left(node: NodeDetail) -> str:
    return "" if node.drain is None else f", {duration_in_words(node.drain.deadline - time.time())} left"
