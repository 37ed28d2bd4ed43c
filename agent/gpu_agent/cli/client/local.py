"""The client of this machine's agent: its options, its answers, and its failures as exit codes.

It uses the local socket only: a registry that is away changes nothing here.
"""

import os
from pathlib import Path

import click

from gpu_agent.cli.client.answers import Answer, Model, parse_answer
from gpu_agent.cli.command import Arguments, ExitCode, Failure
from gpu_agent.cli.declaration import option
from gpu_agent.local.connection import PATIENCE_SECONDS, LocalError, NoAgentError, RefusedError, ask
from gpu_agent.local.socket_path import VARIABLE, service_socket

ACTION_PATIENCE_SECONDS = 35.0
"""For requests that the agent executes before it answers; its own deadline is a little shorter."""


def agent_options(*, json_is: str) -> list[click.Parameter]:
    """Return `--json`, whose output is `json_is`, and `--socket`."""
    return [option("--json", help=f"print {json_is}", flag=True), *socket_option()]


def socket_option() -> list[click.Parameter]:
    """Return the option that names the agent's socket."""
    return [
        option(
            "--socket",
            metavar="FILE",
            type=Path,
            help="where the agent listens (default: $GPU_AGENT_SOCKET, else where an agent of this machine "
            "does)",
        )
    ]


def request_agent(
    arguments: Arguments,
    what: str,
    model: type[Model],
    *,
    patience_seconds: float = PATIENCE_SECONDS,
    **fields: object,
) -> Answer[Model]:
    """Make one request; raises `Failure` without an answer, or where it is a refusal."""
    try:
        document = ask(what, path=arguments.socket, patience_seconds=patience_seconds, **fields)
    except LocalError as error:
        raise (_service_failure(error, arguments.socket) or agent_failure(error)) from None
    try:
        return parse_answer(document, model)
    except ValueError as error:
        raise Failure(
            f"this command cannot read the agent's answer ({error}): the agent has another version; "
            "restart it after an upgrade"
        ) from None


def _service_failure(error: LocalError, socket: Path | None) -> Failure | None:
    """Say how the agent's service ended, where no agent answers because of that; None otherwise."""
    if not isinstance(error, NoAgentError) or socket is not None or os.environ.get(VARIABLE):
        return None
    from gpu_agent.runtime.check_results import CheckStatus
    from gpu_agent.runtime.systemd.status import find_service, judge_service
    from gpu_agent.runtime.systemd.units import COMPONENTS

    standing = find_service(COMPONENTS["agent"])
    if standing is None or standing.origin is None or standing.runs:
        return None
    judged = judge_service(COMPONENTS["agent"], standing)
    if judged.verdict is CheckStatus.OK:
        return None
    end = "" if judged.detail.endswith(("?", ".", "!")) else "."
    return Failure(
        f"no agent answers at {service_socket()}: {judged.detail}{end} Next: {judged.fix}",
        code=ExitCode.UNREACHABLE,
    )


def agent_failure(error: LocalError) -> Failure:
    """Return the failure of a command that gets no answer, or a refusal."""
    refused = isinstance(error, RefusedError) and not error.not_now
    return Failure(str(error), code=ExitCode.REFUSED if refused else ExitCode.UNREACHABLE)
