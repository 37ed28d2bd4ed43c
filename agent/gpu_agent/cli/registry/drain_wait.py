"""Waits until a drain has taken its node offline, and shows what it waits for.

A registry that is away for a while ends no waiting: the wish outlives its restart.
"""

import time
from collections.abc import Mapping
from typing import Any

from gpu_agent.cli.answers import NODE_DETAIL
from gpu_agent.cli.durations import in_words
from gpu_agent.cli.outcome import ExitCode, Failure
from gpu_agent.cli.printable import printable
from gpu_agent.cli.registry.node_action import Node
from gpu_agent.cli.status_line import StatusLine

LOOK_SECONDS = 1.0
"""How often the registry is asked: what is left counts down by the second, also while it is away."""


def until_offline(node: Node, now: Mapping[str, Any], *, quiet: bool = False) -> dict[str, Any]:
    """Look until the node is offline; raises `Failure` when its drain is lifted or it is forgotten."""
    with StatusLine(quiet=quiet) as line:
        while now["status"] != "offline":
            if now["status"] != "draining" and now.get("drain") is None:
                raise Failure(f"the drain of {node.node_id} was lifted: it is {now['status']}")
            counted, named = _in_flight(now)
            line.say(counted, left=_at_the_latest(now), more=named)
            time.sleep(LOOK_SECONDS)
            now = _looked(node, line) or now
    return dict(now)


def _looked(node: Node, line: StatusLine) -> dict[str, Any] | None:
    try:
        return node.get(shape=NODE_DETAIL)
    except Failure as failure:
        if failure.code is not ExitCode.UNREACHABLE:
            raise
        line.say("the registry does not answer; waiting for it")
        return None


def _in_flight(now: Mapping[str, Any]) -> tuple[str, str]:
    """How many jobs there are, and which."""
    jobs = sorted({*(now.get("claimed_jobs") or ()), *(now.get("running_jobs") or ())})
    count = max(len(jobs), int(now["in_flight_jobs"]))
    named = f": {', '.join(map(printable, jobs))}" if jobs else ""
    return f"{now['node_id']} is {now['status']}, {count} {'job' if count == 1 else 'jobs'} in flight", named


def _at_the_latest(now: Mapping[str, Any]) -> str:
    drain = now.get("drain")
    if not isinstance(drain, dict) or not isinstance(drain.get("deadline"), int | float):
        return ""
    return f", {in_words(drain['deadline'] - time.time())} left"
