"""A drain that this machine's owner asked for, in words, and the waiting for its end.

It follows the agent alone: a registry that is away ends no waiting, the drain's deadline does.
"""

import time
from collections.abc import Callable, Mapping
from typing import Any

from gpu_agent.cli.durations import in_words
from gpu_agent.cli.outcome import Failure
from gpu_agent.cli.printable import printable
from gpu_agent.cli.status_line import StatusLine

LOOK_SECONDS = 1.0
"""How often the agent is asked: what is left counts down by the second."""
Answer = Mapping[str, Any]


def until_drained(look: Callable[[], dict[str, Any]], now: dict[str, Any], *, quiet: bool) -> dict[str, Any]:
    """Look until the machine is drained; raises `Failure` when its drain is lifted, and as `look` does."""
    with StatusLine(quiet=quiet) as shown:
        while not (now["drain"] or {}).get("over"):
            if now["drain"] is None:
                raise Failure(
                    "the drain was lifted meanwhile; `gpu-agent status` says how the machine stands"
                )
            shown.say(f"{who(now)} drains, {_jobs(now)}", left=_left(now), more=_away(now))
            time.sleep(LOOK_SECONDS)
            now = look()
    return now


def drain_in_words(now: Answer) -> str:
    """Say how it stands with the drain."""
    drain = now["drain"]
    if drain is None:
        return f"{who(now)} is not drained"
    reason = printable(drain["reason"])
    if drain["over"]:
        return f"{who(now)} is drained: {reason}; `gpu-agent resume` takes it back"
    return f"{who(now)} drains: {reason}; {_jobs(now)}{_latest(now)}{_away(now)}"


def who(now: Answer) -> str:
    """Name the node, which may have no id yet."""
    return printable(now["node_id"] or "This machine")


def _jobs(now: Answer) -> str:
    count = len(now["jobs"]["in_flight"])
    if not now["jobs"]["announced"]:
        return "no job is announced"
    return f"{count} {'job' if count == 1 else 'jobs'} in flight"


def _latest(now: Answer) -> str:
    seconds = now["drain"]["deadline_in_seconds"]
    return "" if seconds is None else f"; over in {in_words(seconds)} at the latest"


def _left(now: Answer) -> str:
    seconds = now["drain"]["deadline_in_seconds"]
    return "" if seconds is None else f", {in_words(seconds)} left"


def _away(now: Answer) -> str:
    return "" if now["connected"] else "; the registry is not connected, and hears of it when it is"
