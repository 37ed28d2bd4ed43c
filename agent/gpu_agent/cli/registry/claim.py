"""`gpu-agent registry claim`: reserve a place for a job."""

import argparse

from gpu_agent.cli.answers import CLAIM
from gpu_agent.cli.asking.api import Api
from gpu_agent.cli.options import add_asking, print_json
from gpu_agent.cli.outcome import ExitCode
from gpu_agent.cli.printable import printable
from gpu_agent.cli.registry.job_options import add_demands, demands_of
from gpu_agent.cli.registry.placing import held_in_words, place_in_words, placed
from gpu_agent.cli.teaching import teach


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    teach(
        parser,
        "Reserve a place for a job on the best node that can take it now. The same job again\n"
        "gets the same place. Renew the claim while the job runs, release it when it ends.",
        example="gpu-agent registry claim job-1 --model my/model --gpus 2",
        exits={ExitCode.OK: "the place is reserved", ExitCode.NOBODY: "no node can take the job now"},
    )
    parser.add_argument("job_id", metavar="JOB", help="the job's id, which whoever runs it chooses")
    add_demands(parser)
    add_asking(parser, json_is="what POST /v1/claims answers, a refusal for want of a node too")


def main(arguments: argparse.Namespace) -> int:
    """Ask and print."""
    job = {"job_id": arguments.job_id, **demands_of(arguments)}
    place = placed(Api.of(arguments), "/v1/claims", job, arguments=arguments, shape=CLAIM)
    if place is None:
        return ExitCode.NOBODY
    if arguments.json:
        print_json(place)
    else:
        print(f"{printable(arguments.job_id)} has a place on {place_in_words(place)}, {held_in_words(place)}")
    return ExitCode.OK
