"""The client of this machine's agent: its options, its answers, and its failures as exit codes.

It uses the local socket only: a registry that is away changes nothing here.
"""

import argparse
from pathlib import Path
from typing import Any

from gpu_agent.cli.client.http import ListOf, Shape, missing_part
from gpu_agent.cli.command import ExitCode, Failure
from gpu_agent.local.connection import PATIENCE_SECONDS, LocalError, RefusedError, ask

ORDER_PATIENCE_SECONDS = 35.0
"""For what the agent does before it answers; its own patience with that is a little shorter."""

STATUS_SHAPE: Shape = {
    "node_id": str | None,
    "connected": bool,
    "session": dict,
    "status": dict | None,
    "drain": dict | None,
    "accept_public_jobs": bool,
    "public_jobs": dict,
    "max_concurrent_jobs": int | None,
    "labels": dict,
    "jobs": dict,
    "machine": dict | None,
    "agent": dict,
}
JOBS_SHAPE: Shape = {
    "in_flight": ListOf({"job_id": str, "uid": int, "since": float | int, "pid": int | None, "held_by": str})
}


def add_agent_options(parser: argparse.ArgumentParser, *, json_is: str) -> None:
    """Add `--json`, whose output is `json_is`, and what says where the agent listens."""
    parser.add_argument("--json", action="store_true", help=f"print {json_is}")
    add_socket_option(parser)


def add_socket_option(parser: argparse.ArgumentParser) -> None:
    """Add what says where the agent listens."""
    parser.add_argument(
        "--socket",
        metavar="FILE",
        type=Path,
        help="where the agent listens (default: $GPU_AGENT_SOCKET, else where an agent of this machine does)",
    )


def request_agent(
    arguments: argparse.Namespace,
    what: str,
    *,
    shape: Shape,
    patience_seconds: float = PATIENCE_SECONDS,
    **fields: object,
) -> dict[str, Any]:
    """Ask one thing; raises `Failure` where no agent answers, it refuses, or its answer lacks something."""
    try:
        answer = ask(what, path=arguments.socket, patience_seconds=patience_seconds, **fields)
    except LocalError as error:
        raise agent_failure(error) from None
    lacks = missing_part(answer, shape)
    if lacks is not None:
        raise Failure(
            f"the agent's answer has no {lacks} as this command knows it: it is of another version; "
            "restart it after an upgrade, or read what it says with --json"
        )
    return answer


def agent_failure(error: LocalError) -> Failure:
    """How a command ends that gets no answer, or a no."""
    refused = isinstance(error, RefusedError) and not error.not_now
    return Failure(str(error), code=ExitCode.REFUSED if refused else ExitCode.UNREACHABLE)
