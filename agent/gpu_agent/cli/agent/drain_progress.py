"""A drain of this machine in words, and the wait for its end, by the agent's own report."""

import time
from collections.abc import Callable

from gpu_agent.cli.client.answers import Answer
from gpu_agent.cli.command import Failure
from gpu_agent.cli.output.streams import StatusLine
from gpu_agent.cli.output.text import printable
from gpu_agent.cli.output.units import duration_in_words
from gpu_agent.wire.control import DrainInfo, StatusDocument

POLL_SECONDS = 1.0
"""The interval at which `--wait` reads the status: the remaining time is shown in seconds."""


def wait_until_drained(
    read: Callable[[], Answer[StatusDocument]], now: Answer[StatusDocument], *, quiet: bool
) -> Answer[StatusDocument]:
    """Read until the machine is drained; raises `Failure` when it is resumed, and as `read` does."""
    with StatusLine(quiet=quiet) as shown:
        while (drain := now.model.drain) is None or not drain.over:
            if drain is None:
                raise Failure("the drain was ended meanwhile; `gpu-agent status` says how the machine stands")
            left = (
                ""
                if drain.deadline_in_seconds is None
                else f", {duration_in_words(drain.deadline_in_seconds)} left"
            )
            words = f"{node_name(now.model)} drains, {_jobs(now.model)}"
            shown.show(words, left=left, more=_connection(now.model))
            time.sleep(POLL_SECONDS)
            now = read()
    return now


def drain_in_words(now: StatusDocument) -> str:
    """Describe the progress of the drain."""
    drain = now.drain
    if drain is None:
        return f"{node_name(now)} is not drained"
    reason = printable(drain.reason)
    if drain.over:
        return f"{node_name(now)} is drained: {reason}; `gpu-agent resume` puts it back into service"
    return f"{node_name(now)} drains: {reason}; {_jobs(now)}{_latest(drain)}{_connection(now)}"


def node_name(now: StatusDocument) -> str:
    """Return the node's id, or words for a machine that has none yet."""
    return printable(now.node_id or "This machine")


def _jobs(now: StatusDocument) -> str:
    if not now.jobs.announced:
        return "no job is announced"
    count = len(now.jobs.in_flight)
    return f"{count} {'job' if count == 1 else 'jobs'} in flight"


def _latest(drain: DrainInfo) -> str:
    seconds = drain.deadline_in_seconds
    return "" if seconds is None else f"; over in {duration_in_words(seconds)} at the latest"


def _connection(now: StatusDocument) -> str:
    return "" if now.connected else "; the registry is not connected, and receives it when it is"
