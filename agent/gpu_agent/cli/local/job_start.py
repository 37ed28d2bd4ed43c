"""`gpu-agent job start`: say that a job is in flight on this machine, for as long as a process lives."""

import argparse
import os

from gpu_agent.cli.argument_values import at_least_one
from gpu_agent.cli.local.agent import JOBS, add_local, asked
from gpu_agent.cli.options import print_json
from gpu_agent.cli.outcome import ExitCode
from gpu_agent.cli.printable import printable
from gpu_agent.cli.teaching import teach


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    teach(
        parser,
        "Say that a job is in flight on this machine, so that the registry counts it and a drain waits for "
        "it. It is held by a process: when that ends, or `job finish` says so, the job is no longer in "
        "flight. Announced again, it is held by the process that is named then. A restart of the agent "
        "forgets it; `job run` announces it again, and works in other containers too.",
        example="gpu-agent job start job-7 --pid 4711",
        exits={ExitCode.REFUSED: "no such process is seen, or it or the job is another user's"},
    )
    parser.add_argument("job_id", metavar="ID", help="the job, as its scheduler calls it")
    parser.add_argument(
        "--pid",
        type=at_least_one,
        metavar="PID",
        help="the process whose end ends the job (default: the one that started this command, such as the "
        "script that it stands in)",
    )
    add_local(parser, json_is="what the agent answers: the jobs in flight")


def main(arguments: argparse.Namespace) -> int:
    """Ask and print."""
    pid = os.getppid() if arguments.pid is None else arguments.pid
    answer = asked(arguments, "job_start", shape=JOBS, job_id=arguments.job_id, pid=pid, own_pid=os.getpid())
    if arguments.json:
        print_json(answer)
    else:
        print(f"{printable(arguments.job_id)} is in flight; it ends with process {pid}, or by `job finish`.")
    return ExitCode.OK
