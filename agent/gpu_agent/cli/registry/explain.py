"""`gpu-agent registry explain`: for each node, why it could or could not take a job."""

import argparse

from gpu_agent.cli.answers import EXPLANATION
from gpu_agent.cli.asking.api import Api
from gpu_agent.cli.nodes.sheet import NO_NODES
from gpu_agent.cli.nodes.verdict_sheet import counted, verdict_lines
from gpu_agent.cli.options import add_asking, print_json
from gpu_agent.cli.outcome import ExitCode
from gpu_agent.cli.registry.job_options import add_demands, demands_of
from gpu_agent.cli.teaching import teach
from gpu_agent.cli.terminal import columns, show


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments: one for each demand that a job may state."""
    teach(
        parser,
        "Describe a job; every node answers whether it could take it now, and if not, which\n"
        "demand fails first, what the job needs and what the node has. Reserves nothing.",
        example="gpu-agent registry explain --model my/model --gpus 2 --label zone=a",
        exits={ExitCode.OK: "explained, whether or not a node is able"},
    )
    add_demands(parser)
    add_asking(parser, json_is="what POST /v1/dispatch/explain answers")


def main(arguments: argparse.Namespace) -> int:
    """Ask and print."""
    answer = Api.of(arguments).post("/v1/dispatch/explain", demands_of(arguments), EXPLANATION)
    if arguments.json:
        print_json(answer)
        return ExitCode.OK
    if not (answer["able"] or answer["excluded"]):
        print(NO_NODES)
        return ExitCode.OK
    show(verdict_lines(answer["able"], answer["excluded"], columns()))
    print(f"{len(answer['able'])} able; excluded: {counted(answer['counts']) or 'none'}")
    return ExitCode.OK
