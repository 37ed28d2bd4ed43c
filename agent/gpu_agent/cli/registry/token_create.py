"""`gpu-agent registry token create`: let nodes join, or an operator in."""

import argparse
from collections.abc import Mapping
from typing import Any

from gpu_agent.cli.answers import NEW_TOKEN
from gpu_agent.cli.argument_values import label
from gpu_agent.cli.asking.api import Api
from gpu_agent.cli.options import add_asking
from gpu_agent.cli.outcome import ExitCode, Failure
from gpu_agent.cli.printable import printable
from gpu_agent.cli.registry.new_token import add_out, asked_ttl, first_contact, tell, ttl, until
from gpu_agent.cli.teaching import teach

ROLES = ("read", "operate", "admin")
_ANY = "any"
_OF_JOINING = ("uses", "labels", "note", "node")


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    teach(
        parser,
        "Make a join token, by which new nodes register; or with --operator one for a person\n"
        "or a program that uses this API. Only the token goes to stdout, so that `> FILE`\n"
        "works; what it is for is said on stderr. It is shown this once.",
        example="gpu-agent registry token create --uses 8 --labels zone=a --out join.token",
        exits={
            ExitCode.OK: "made",
            ExitCode.CONFIGURATION: "wrong arguments, or the file cannot be written; no token was made",
        },
    )
    parser.add_argument(
        "--ttl",
        type=ttl,
        metavar="TIME",
        help="how long it may be used, such as 24h; or never (default 24h; with --operator never)",
    )
    joining = parser.add_argument_group("a join token")
    joining.add_argument(
        "--uses", type=_uses, metavar="N", help=f"how many nodes may join by it, or {_ANY} (default 1)"
    )
    joining.add_argument(
        "--labels",
        action="append",
        type=label,
        default=None,
        metavar="K=V",
        help="a label of every node that joins by it, whatever the node says (repeatable)",
    )
    joining.add_argument(
        "--node",
        metavar="ID",
        help="the only node that may join by it; with --uses any for one that keeps no token of its own",
    )
    joining.add_argument("--note", metavar="TEXT", help="what it is for, for whoever lists tokens")
    operator = parser.add_argument_group("an operator token")
    operator.add_argument(
        "--operator",
        choices=ROLES,
        metavar="ROLE",
        help="read, operate (act on nodes and jobs) or admin (all)",
    )
    operator.add_argument("--name", metavar="WHO", help="whose it is")
    add_out(parser)
    add_asking(parser, json_is="what POST /v1/tokens answers, the token in it; with --out its file instead")


def main(arguments: argparse.Namespace) -> int:
    """Make it and say it."""
    body = _operator(arguments) if arguments.operator else _join(arguments)
    api = Api.of(arguments)
    about = _about_operator if arguments.operator else _about_join
    tell(arguments, lambda: api.post("/v1/tokens", body, NEW_TOKEN), lambda made: about(arguments, made))
    return ExitCode.OK


def _join(arguments: argparse.Namespace) -> dict[str, object]:
    if arguments.name is not None:
        raise Failure(
            "--name is for --operator ROLE; use --note for a join token", code=ExitCode.CONFIGURATION
        )
    body: dict[str, object] = {"kind": "join", **asked_ttl(arguments.ttl)}
    if arguments.uses is not None:
        body["uses"] = None if arguments.uses == _ANY else arguments.uses
    if arguments.labels:
        body["labels"] = dict(arguments.labels)
    if arguments.note is not None:
        body["note"] = arguments.note
    if arguments.node is not None:
        body["node_id"] = arguments.node
    return body


def _operator(arguments: argparse.Namespace) -> dict[str, object]:
    wrong = [f"--{name}" for name in _OF_JOINING if getattr(arguments, name) is not None]
    if wrong:
        raise Failure(
            f"{', '.join(wrong)}: only for join tokens, not with --operator", code=ExitCode.CONFIGURATION
        )
    body: dict[str, object] = {"kind": "operator", "role": arguments.operator, **asked_ttl(arguments.ttl)}
    if arguments.name is not None:
        body["name"] = arguments.name
    return body


def _about_join(arguments: argparse.Namespace, made: Mapping[str, Any]) -> str:
    uses = 1 if arguments.uses is None else arguments.uses
    whom = "any number of nodes" if uses == _ANY else "1 node" if uses == 1 else f"{uses} nodes"
    if arguments.node is not None:
        times = "any number of times" if uses == _ANY else "once" if uses == 1 else f"{uses} times"
        whom = printable(f"node {arguments.node}, {times},")
    labels = ", ".join(f"{key}={value}" for key, value in arguments.labels or ())
    granted = printable(f", each with the label {labels}") if labels else ""
    return (
        f"Join token {made['token_id']}: {whom} may join by it {until(made)}{granted}.\n"
        f"{first_contact(arguments.out)}"
    )


def _about_operator(arguments: argparse.Namespace, made: Mapping[str, Any]) -> str:
    whose = printable(f" of {arguments.name}") if arguments.name else ""
    return (
        f"Operator token {made['token_id']}{whose}, role {arguments.operator}, {until(made)}.\n"
        f"Show it with --token-file {arguments.out or 'FILE'}, or in the variable GPU_REGISTRY_TOKEN."
    )


def _uses(text: str) -> int | str:
    if text == _ANY:
        return _ANY
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is not at least 1")
    return number


_uses.__name__ = "number of nodes"  # argparse names it so where the text is no number at all
