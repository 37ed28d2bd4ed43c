"""`gpu-agent job`: jobs in flight on this machine, announced to its agent."""

import argparse
import os
import time
from collections.abc import Iterable

from gpu_agent.cli.child import run_child
from gpu_agent.cli.client.local import add_agent_options, add_socket_option, agent_failure, request_agent
from gpu_agent.cli.command import Commands, ExitCode, Failure, describe, positive_number
from gpu_agent.cli.output.streams import print_stderr
from gpu_agent.cli.output.text import print_json, print_lines, printable, terminal_columns
from gpu_agent.local.connection import LocalError
from gpu_agent.local.jobs import job

NO_JOBS = "No job is in flight."


def configure_job_run(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    describe(
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
    add_socket_option(parser)
    parser.add_argument(
        "--required", action="store_true", help="do not run the command where no agent answers"
    )
    parser.add_argument("job_id", metavar="ID", help="the job, as its scheduler calls it")
    parser.add_argument(
        "command", metavar="COMMAND", nargs=argparse.REMAINDER, help="what to run, behind `--`"
    )


def run_job_run(arguments: argparse.Namespace) -> int:
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
                print_stderr(
                    f"no agent answers: {printable(arguments.job_id)} runs all the same, and is announced as "
                    "soon as one does; `gpu-agent job list` says whether one answers"
                )
            return run_child(command)
    except LocalError as error:
        raise agent_failure(error) from None


def configure_job_start(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    describe(
        parser,
        "Announce a job on this machine, so that the registry counts it and a drain waits for it. The job is "
        "bound to a process: when that ends, or with `job finish`, the job is no longer in flight. Announced "
        "again, it is bound to the process that is named then. A restart of the agent loses it; `job run` "
        "announces it again, and works in other containers too.",
        example="gpu-agent job start job-7 --pid 4711",
        exits={ExitCode.REFUSED: "no such process is seen, or it or the job is another user's"},
    )
    parser.add_argument("job_id", metavar="ID", help="the job, as its scheduler calls it")
    parser.add_argument(
        "--pid",
        type=positive_number,
        metavar="PID",
        help="the process whose end ends the job (default: the one that started this command, such as a "
        "script)",
    )
    add_agent_options(parser, json_is="what the agent answers: the jobs in flight")


def run_job_start(arguments: argparse.Namespace) -> int:
    """Announce it and print."""
    from gpu_agent.wire.control import JobsDocument

    pid = os.getppid() if arguments.pid is None else arguments.pid
    answer = request_agent(
        arguments, "job_start", JobsDocument, job_id=arguments.job_id, pid=pid, own_pid=os.getpid()
    )
    if arguments.json:
        print_json(answer.document)
    else:
        print(f"{printable(arguments.job_id)} is in flight; it ends with process {pid}, or by `job finish`.")
    return ExitCode.OK


def configure_job_finish(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    describe(
        parser,
        "Say that a job on this machine is done. Only the user who announced it, root and the agent's own "
        "user may. It ends no process.",
        example="gpu-agent job finish job-7",
        exits={ExitCode.REFUSED: "no such job is in flight, or it is another user's"},
    )
    parser.add_argument("job_id", metavar="ID", help="the job, as `job list` shows it")
    add_agent_options(parser, json_is="what the agent answers: the jobs that are left")


def run_job_finish(arguments: argparse.Namespace) -> int:
    """Finish it and print how many are left."""
    from gpu_agent.wire.control import JobsDocument

    answer = request_agent(arguments, "job_finish", JobsDocument, job_id=arguments.job_id)
    if arguments.json:
        print_json(answer.document)
    else:
        print(f"{printable(arguments.job_id)} is done; {job_count(answer.model.in_flight)}.")
    return ExitCode.OK


def configure_job_list(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    describe(
        parser,
        "List the jobs that programs on this machine announced and that are in flight: since when, each "
        "one's user, and what ends it unless it is finished before.",
        example="gpu-agent job list",
        exits={ExitCode.OK: "listed, even if there is none"},
    )
    add_agent_options(parser, json_is="what the agent answers to job_list (docs/reference/local.md)")


def run_job_list(arguments: argparse.Namespace) -> int:
    """Read the list and print it."""
    from gpu_agent.cli.agent.status_page import job_table
    from gpu_agent.wire.control import JobsDocument

    answer = request_agent(arguments, "job_list", JobsDocument)
    if arguments.json:
        print_json(answer.document)
    elif answer.model.in_flight:
        print_lines(job_table(answer.model.in_flight, terminal_columns(), now=time.time()))
    else:
        print(NO_JOBS)
    return ExitCode.OK


def job_count(jobs: Iterable[object]) -> str:
    """Say how many there are."""
    count = sum(1 for _ in jobs)
    return "1 job is in flight" if count == 1 else f"{count or 'no'} jobs are in flight"


COMMANDS: Commands = {
    "run": (configure_job_run, run_job_run),
    "start": (configure_job_start, run_job_start),
    "finish": (configure_job_finish, run_job_finish),
    "list": (configure_job_list, run_job_list),
}
