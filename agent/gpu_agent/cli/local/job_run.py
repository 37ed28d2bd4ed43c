"""`gpu-agent job run`: run a command as a job in flight on this machine.

The job is announced for as long as the command runs, again after each restart of the agent, and ends
with it. It stands beside the command: signals are handed on, and it ends as the command ends.
"""

import argparse
import os
import subprocess
from collections.abc import Sequence

from gpu_agent.cli.local.agent import add_socket, failure
from gpu_agent.cli.local.handing_on import HandingOn
from gpu_agent.cli.outcome import ExitCode, Failure
from gpu_agent.cli.printable import printable
from gpu_agent.cli.streams import complain
from gpu_agent.cli.teaching import teach
from gpu_agent.local.announcing import job
from gpu_agent.local.faults import LocalError
from gpu_agent.runtime.callers import callers_environment

NOT_FOUND, NOT_RUN, BY_SIGNAL = 127, 126, 128
"""How those end who run others' commands: none of that name, one that cannot be run, ended by a signal."""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    teach(
        parser,
        "Run a command as a job in flight on this machine, so that the registry counts it and a drain waits "
        "for it. Where no agent answers the command runs all the same, and is announced as soon as one "
        "does. The options stand before ID.\n\n"
        "It ends as the command ends: with its code, or 128 and the number of the signal that ended it; "
        "with 127 where there is no such command, and 126 where it cannot be run.",
        example="gpu-agent job run job-7 -- python train.py --epochs 3",
        exits={
            ExitCode.OK: "the command ended with 0",
            ExitCode.UNREACHABLE: "with --required: no agent answers, and the command was not run",
            ExitCode.REFUSED: "the agent does not take the job, and the command was not run",
        },
    )
    add_socket(parser)
    parser.add_argument(
        "--required", action="store_true", help="do not run the command where no agent answers"
    )
    parser.add_argument("job_id", metavar="ID", help="the job, as its scheduler calls it")
    parser.add_argument(
        "command", metavar="COMMAND", nargs=argparse.REMAINDER, help="what to run, behind `--`"
    )


def main(arguments: argparse.Namespace) -> int:
    """Announce the job, run the command, and end as it ends."""
    command = arguments.command[1:] if arguments.command[:1] == ["--"] else arguments.command
    if not command or command[0].startswith("-"):
        what = f"{command[0]} stands" if command else "no command stands"
        raise Failure(
            f"{what} behind the job's id: write ID -- COMMAND, with the options before ID",
            code=ExitCode.CONFIGURATION,
        )
    try:
        with job(arguments.job_id, path=arguments.socket, required=arguments.required) as announcement:
            if not announcement.announced:
                complain(
                    f"no agent answers: {printable(arguments.job_id)} runs all the same, and is announced as "
                    "soon as one does; `gpu-agent job list` says whether one answers"
                )
            return _run(command)
    except LocalError as error:
        raise failure(error) from None


def _run(command: Sequence[str]) -> int:
    with HandingOn() as handing:
        try:
            own = callers_environment(os.environ)
            running = subprocess.Popen(command, env=own)  # noqa: S603 - to run it is what was asked for
        except FileNotFoundError:
            complain(f"there is no command {printable(command[0])}; write its path, or mend PATH")
            return NOT_FOUND
        except (OSError, ValueError) as error:
            complain(f"{printable(command[0])} cannot be run: {getattr(error, 'strerror', None) or error}")
            return NOT_RUN
        handing.to(running)
        code = running.wait()
    return code if code >= 0 else BY_SIGNAL - code
