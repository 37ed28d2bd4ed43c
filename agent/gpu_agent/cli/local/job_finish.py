"""`gpu-agent job finish`: say that a job on this machine is done."""

import argparse

from gpu_agent.cli.local.agent import JOBS, add_local, asked
from gpu_agent.cli.local.job_sheet import counted
from gpu_agent.cli.options import print_json
from gpu_agent.cli.outcome import ExitCode
from gpu_agent.cli.printable import printable
from gpu_agent.cli.teaching import teach


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    teach(
        parser,
        "Say that a job on this machine is done. The job of another user is his to finish, root's and the "
        "agent's own user's. It ends no process.",
        example="gpu-agent job finish job-7",
        exits={ExitCode.REFUSED: "no such job is in flight, or it is another user's"},
    )
    parser.add_argument("job_id", metavar="ID", help="the job, as `job list` shows it")
    add_local(parser, json_is="what the agent answers: the jobs that are left")


def main(arguments: argparse.Namespace) -> int:
    """Ask and print."""
    answer = asked(arguments, "job_finish", shape=JOBS, job_id=arguments.job_id)
    if arguments.json:
        print_json(answer)
    else:
        print(f"{printable(arguments.job_id)} is done; {counted(answer['in_flight'])}.")
    return ExitCode.OK
