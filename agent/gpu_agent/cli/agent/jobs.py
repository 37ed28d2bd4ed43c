"""`gpu-agent job`: jobs in flight on this machine, announced to its agent."""

import os
import time
from collections.abc import Iterable

from gpu_agent.cli.child import run_child
from gpu_agent.cli.client.local import agent_failure, agent_options, request_agent, socket_option
from gpu_agent.cli.command import Arguments, ExitCode, Failure, positive_number
from gpu_agent.cli.declaration import Commands, Declaration, argument, option
from gpu_agent.cli.output.streams import print_stderr
from gpu_agent.cli.output.text import print_json, print_lines, printable, terminal_columns
from gpu_agent.local.connection import LocalError
from gpu_agent.local.jobs import job

NO_JOBS = "No job is in flight."


def declare_job_run() -> Declaration:
    """Declare what it takes, and its help."""
    return Declaration(
        about="Run a command as a job in flight on this machine, so that the registry counts it and a "
        "drain waits "
        "for it. Where no agent answers the command runs all the same, and is announced as soon as one "
        "does. The options stand before ID.\n\n"
        "It ends as the command ends: with its code, or 128 and the number of the signal that ended it; "
        "with 127 where there is no such command, and 126 where it cannot be run.",
        example="gpu-agent job run job-7 -- python train.py --epochs 3",
        passes_on=True,
        exits={
            ExitCode.OK: "the command ended with 0",
            ExitCode.UNREACHABLE: "with --required: no agent answers, and the command was not run",
            ExitCode.REFUSED: "the agent does not take the job, and the command was not run",
        },
        params=[
            *socket_option(),
            option("--required", help="do not run the command where no agent answers", flag=True),
            argument("job_id", metavar="ID", help="the job, as its scheduler calls it"),
            argument(
                "command", metavar="COMMAND", help="what to run, behind `--`", several=True, optional=True
            ),
        ],
    )


def run_job_run(arguments: Arguments) -> int:
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


def declare_job_start() -> Declaration:
    """Declare what it takes, and its help."""
    return Declaration(
        about="Announce a job on this machine, so that the registry counts it and a drain waits for it. "
        "The job is "
        "bound to a process: when that ends, or with `job finish`, the job is no longer in flight. Announced "
        "again, it is bound to the process that is named then. A restart of the agent loses it; `job run` "
        "announces it again, and works in other containers too.",
        example="gpu-agent job start job-7 --pid 4711",
        exits={ExitCode.REFUSED: "no such process is seen, or it or the job is another user's"},
        params=[
            argument("job_id", metavar="ID", help="the job, as its scheduler calls it"),
            option(
                "--pid",
                type=positive_number,
                metavar="PID",
                help="the process whose end ends the job (default: the one that started this command, such "
                "as a "
                "script)",
            ),
            *agent_options(json_is="what the agent answers: the jobs in flight"),
        ],
    )


def run_job_start(arguments: Arguments) -> int:
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


def declare_job_finish() -> Declaration:
    """Declare what it takes, and its help."""
    return Declaration(
        about="Say that a job on this machine is done. Only the user who announced it, root and the "
        "agent's own "
        "user may. It ends no process.",
        example="gpu-agent job finish job-7",
        exits={ExitCode.REFUSED: "no such job is in flight, or it is another user's"},
        params=[
            argument("job_id", metavar="ID", help="the job, as `job list` shows it"),
            *agent_options(json_is="what the agent answers: the jobs that are left"),
        ],
    )


def run_job_finish(arguments: Arguments) -> int:
    """Finish it and print how many are left."""
    from gpu_agent.wire.control import JobsDocument

    answer = request_agent(arguments, "job_finish", JobsDocument, job_id=arguments.job_id)
    if arguments.json:
        print_json(answer.document)
    else:
        print(f"{printable(arguments.job_id)} is done; {job_count(answer.model.in_flight)}.")
    return ExitCode.OK


def declare_job_list() -> Declaration:
    """Declare what it takes, and its help."""
    return Declaration(
        about="List the jobs that programs on this machine announced and that are in flight: since when, "
        "each "
        "one's user, and what ends it unless it is finished before.",
        example="gpu-agent job list",
        exits={ExitCode.OK: "listed, even if there is none"},
        params=[
            *agent_options(
                json_is="what the agent answers to job_list (see *The local socket* in the documentation)"
            )
        ],
    )


def run_job_list(arguments: Arguments) -> int:
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
    "run": (declare_job_run, run_job_run),
    "start": (declare_job_start, run_job_start),
    "finish": (declare_job_finish, run_job_finish),
    "list": (declare_job_list, run_job_list),
}
