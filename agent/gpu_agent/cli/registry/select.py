"""`gpu-agent registry select`: which node a job would get now."""

import argparse

from gpu_agent.cli.answers import SELECTION
from gpu_agent.cli.asking.api import Api
from gpu_agent.cli.options import add_asking, print_json
from gpu_agent.cli.outcome import ExitCode
from gpu_agent.cli.registry.job_options import add_demands, demands_of
from gpu_agent.cli.registry.placing import place_in_words, placed
from gpu_agent.cli.teaching import teach


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    teach(
        parser,
        "Say which node a job would get now, and which of its GPUs, without reserving them:\n"
        "a dry run of `claim`.",
        example="gpu-agent registry select --model my/model --min-gpu-memory-mb 16000",
        exits={ExitCode.OK: "there is a node", ExitCode.NOBODY: "no node can take the job now"},
    )
    add_demands(parser)
    add_asking(parser, json_is="what POST /v1/dispatch/select answers, a refusal for want of a node too")


def main(arguments: argparse.Namespace) -> int:
    """Ask and print."""
    job = demands_of(arguments)
    place = placed(Api.of(arguments), "/v1/dispatch/select", job, arguments=arguments, shape=SELECTION)
    if place is None:
        return ExitCode.NOBODY
    if arguments.json:
        print_json(place)
    else:
        print(place_in_words(place))
    return ExitCode.OK
