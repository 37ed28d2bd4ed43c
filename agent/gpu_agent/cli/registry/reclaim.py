"""`gpu-agent registry reclaim`: give a node that lost its state its id back."""

import argparse

from gpu_agent.cli.answers import NEW_TOKEN
from gpu_agent.cli.asking.api import Api
from gpu_agent.cli.options import add_asking, add_node_id
from gpu_agent.cli.outcome import ExitCode
from gpu_agent.cli.registry.new_token import add_out, asked_ttl, first_contact, tell, ttl, until
from gpu_agent.cli.registry.node_action import Node
from gpu_agent.cli.teaching import teach


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    teach(
        parser,
        "Make a token by which one machine gets a node's id back, once: for a node that lost\n"
        "its state directory, or moved to another machine. Its drain, cordon and labels stay.\n"
        "Only the token goes to stdout, so that `> FILE` works.",
        example="gpu-agent registry reclaim node-7 --out join.token",
        exits={
            ExitCode.OK: "made",
            ExitCode.CONFIGURATION: "wrong arguments, or the file cannot be written; no token was made",
        },
    )
    add_node_id(parser)
    parser.add_argument(
        "--ttl", type=ttl, metavar="TIME", help="how long it may be used, such as 24h; or never (default 24h)"
    )
    add_out(parser)
    add_asking(
        parser, json_is="what POST /v1/nodes/ID/reclaim answers, the token in it; with --out its file instead"
    )


def main(arguments: argparse.Namespace) -> int:
    """Make it and say it."""
    node = Node(Api.of(arguments), arguments.node_id)
    tell(
        arguments,
        lambda: node.post("reclaim", asked_ttl(arguments.ttl), shape=NEW_TOKEN),
        lambda made: (
            f"Token {made['token_id']} gives {arguments.node_id} its id back, once, {until(made)}.\n"
            f"{first_contact(arguments.out)}"
        ),
    )
    return ExitCode.OK
