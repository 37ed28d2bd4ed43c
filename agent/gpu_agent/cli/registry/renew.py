"""`gpu-agent registry renew`: keep a job's place for one more TTL."""

import argparse

from gpu_agent.cli.answers import CLAIM
from gpu_agent.cli.asking.api import Api
from gpu_agent.cli.options import add_asking, print_json
from gpu_agent.cli.outcome import ExitCode
from gpu_agent.cli.printable import printable
from gpu_agent.cli.registry.claim_action import JobClaim
from gpu_agent.cli.registry.placing import held_in_words, place_in_words
from gpu_agent.cli.teaching import teach


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    teach(
        parser,
        "Keep a job's place for one more TTL (`registry thresholds` shows how long that is).",
        example="gpu-agent registry renew job-1",
        exits={ExitCode.OK: "renewed", ExitCode.REFUSED: "no such claim is held, or the registry refused"},
    )
    parser.add_argument("job_id", metavar="JOB", help="the job, as `registry claims` shows it")
    add_asking(parser, json_is="what POST /v1/claims/JOB/renew answers")


def main(arguments: argparse.Namespace) -> int:
    """Ask and print."""
    place = JobClaim(Api.of(arguments), arguments.job_id).renew(CLAIM)
    if arguments.json:
        print_json(place)
    else:
        job = printable(arguments.job_id)
        print(f"{job} keeps its place on {place_in_words(place)}, {held_in_words(place)}")
    return ExitCode.OK
