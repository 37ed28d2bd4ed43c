"""`gpu-agent registry cordon-gpu` and `uncordon-gpu`: actions on one GPU of a node."""

import argparse

from gpu_agent.cli.client.answers import Answer
from gpu_agent.cli.client.http import Api, add_request_options, quote_id, without_none
from gpu_agent.cli.client.resources import Node
from gpu_agent.cli.command import Commands, ExitCode, describe
from gpu_agent.cli.output.text import print_json, printable
from gpu_agent.wire.api import NodeDetail

_A_UUID = "GPU-5f2a8c1e-7d40-4b63-9a15-0c2e6f8b1d37"


def configure_cordon_gpu(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    describe(
        parser,
        "Cordon one GPU of a node: no new claim gets it. A claim that holds it goes on; the\n"
        "cordon outlives restarts of both sides, until `registry uncordon-gpu`.",
        example=f"gpu-agent registry cordon-gpu n7 {_A_UUID}",
        exits={ExitCode.OK: "no new claim gets the GPU"},
    )
    _add_gpu(parser)
    parser.add_argument("--reason", metavar="TEXT", help="why, for people who look at the node")
    add_request_options(parser, json_is="the node, as POST /v1/nodes/ID/gpus/UUID/cordon answers it")


def run_cordon_gpu(arguments: argparse.Namespace) -> int:
    """Request it and print."""
    answer = _act_on_gpu(arguments, "cordon", without_none(reason=arguments.reason))
    if arguments.json:
        print_json(answer.document)
    else:
        holder = next((one.claimed_by for one in answer.model.gpus if one.uuid == arguments.uuid), None)
        busy = f"; job {printable(holder)} has it now, and goes on" if holder else ""
        print(f"{printable(arguments.uuid)} gets no new claim until `registry uncordon-gpu`{busy}")
    return ExitCode.OK


def configure_uncordon_gpu(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    describe(
        parser,
        "Uncordon one GPU of a node: claims may have it again.",
        example=f"gpu-agent registry uncordon-gpu n7 {_A_UUID}",
        exits={ExitCode.OK: "the GPU is uncordoned"},
    )
    _add_gpu(parser)
    add_request_options(parser, json_is="the node, as POST /v1/nodes/ID/gpus/UUID/uncordon answers it")


def run_uncordon_gpu(arguments: argparse.Namespace) -> int:
    """Request it and print."""
    answer = _act_on_gpu(arguments, "uncordon", {})
    if arguments.json:
        print_json(answer.document)
    else:
        print(f"claims may have {printable(arguments.uuid)} of {answer.model.node_id} again")
    return ExitCode.OK


def _act_on_gpu(arguments: argparse.Namespace, action: str, request: dict[str, object]) -> Answer[NodeDetail]:
    node = Node(Api.of(arguments), arguments.node_id)
    return node.act(f"gpus/{quote_id(arguments.uuid)}/{action}", NodeDetail, request)


def _add_gpu(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("node_id", metavar="ID", help="the node, as `registry nodes` shows it")
    parser.add_argument("uuid", metavar="UUID", help="the GPU's UUID, as `registry node` shows it")


COMMANDS: Commands = {
    "cordon-gpu": (configure_cordon_gpu, run_cordon_gpu),
    "uncordon-gpu": (configure_uncordon_gpu, run_uncordon_gpu),
}
