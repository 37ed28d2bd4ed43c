"""`gpu-agent registry release`: give a job's place back."""

import argparse

from gpu_agent.cli.asking.api import Api
from gpu_agent.cli.options import add_asking
from gpu_agent.cli.outcome import ExitCode
from gpu_agent.cli.printable import printable
from gpu_agent.cli.registry.claim_action import JobClaim
from gpu_agent.cli.teaching import teach


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    teach(
        parser,
        "Give a job's place back, so that another job may have it. Ends no process.",
        example="gpu-agent registry release job-1",
        exits={ExitCode.OK: "released", ExitCode.REFUSED: "no such claim is held, or the registry refused"},
    )
    parser.add_argument("job_id", metavar="JOB", help="the job, as `registry claims` shows it")
    add_asking(parser, json_is="nothing, as DELETE /v1/claims/JOB answers nothing")


def main(arguments: argparse.Namespace) -> int:
    """Ask and say so."""
    JobClaim(Api.of(arguments), arguments.job_id).release()
    if not arguments.json:
        print(f"{printable(arguments.job_id)} has no place any more")
    return ExitCode.OK
