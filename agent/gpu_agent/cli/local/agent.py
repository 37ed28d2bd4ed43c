"""Asking the agent that runs on this machine: its options, its answers' shapes, and failures as exit codes.

It asks over the local socket, and nobody else: a registry that is away changes nothing here.
"""

import argparse
from pathlib import Path
from typing import Any

from gpu_agent.cli.answers import ListOf, Shape, lacking
from gpu_agent.cli.outcome import ExitCode, Failure
from gpu_agent.local.conversation import PATIENCE_SECONDS, ask
from gpu_agent.local.faults import LocalError, RefusedError

ORDER_PATIENCE_SECONDS = 35.0
"""For what the agent does before it answers; its own patience with that is a little shorter."""

STATUS: Shape = {
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
JOBS: Shape = {
    "in_flight": ListOf({"job_id": str, "uid": int, "since": float | int, "pid": int | None, "held_by": str})
}


def add_local(parser: argparse.ArgumentParser, *, json_is: str) -> None:
    """Add `--json`, whose output is `json_is`, and what says where the agent listens."""
    parser.add_argument("--json", action="store_true", help=f"print {json_is}")
    add_socket(parser)


def add_socket(parser: argparse.ArgumentParser) -> None:
    """Add what says where the agent listens."""
    parser.add_argument(
        "--socket",
        metavar="FILE",
        type=Path,
        help="where the agent listens (default: $GPU_AGENT_SOCKET, else where an agent of this machine does)",
    )


def asked(
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
        raise failure(error) from None
    lacks = lacking(answer, shape)
    if lacks is not None:
        raise Failure(
            f"the agent's answer has no {lacks} as this command knows it: it is of another version; "
            "restart it after an upgrade, or read what it says with --json"
        )
    return answer


def failure(error: LocalError) -> Failure:
    """How a command ends that gets no answer, or a no."""
    refused = isinstance(error, RefusedError) and not error.not_now
    return Failure(str(error), code=ExitCode.REFUSED if refused else ExitCode.UNREACHABLE)
