"""`gpu-agent job list`: which jobs are in flight on this machine."""

import argparse
import time

from gpu_agent.cli.local.agent import JOBS, add_local, asked
from gpu_agent.cli.local.job_sheet import NO_JOBS, job_lines
from gpu_agent.cli.options import print_json
from gpu_agent.cli.outcome import ExitCode
from gpu_agent.cli.teaching import teach
from gpu_agent.cli.terminal import columns, show


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    teach(
        parser,
        "List the jobs that programs on this machine announced and that are in flight: since when, whose "
        "each is, and what ends it if nobody finishes it.",
        example="gpu-agent job list",
        exits={ExitCode.OK: "listed, even if there is none"},
    )
    add_local(parser, json_is="what the agent answers to job_list (docs/local.md)")


def main(arguments: argparse.Namespace) -> int:
    """Ask and print."""
    answer = asked(arguments, "job_list", shape=JOBS)
    if arguments.json:
        print_json(answer)
    elif answer["in_flight"]:
        show(job_lines(answer["in_flight"], columns(), now=time.time()))
    else:
        print(NO_JOBS)
    return ExitCode.OK
