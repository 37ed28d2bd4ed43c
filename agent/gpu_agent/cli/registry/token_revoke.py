"""`gpu-agent registry token revoke`: end a token now."""

import argparse

from gpu_agent.cli.answers import TOKENS
from gpu_agent.cli.asking.api import Api, Refused, quoted
from gpu_agent.cli.asking.paging import listed
from gpu_agent.cli.options import add_asking
from gpu_agent.cli.outcome import ExitCode, Failure
from gpu_agent.cli.printable import printable
from gpu_agent.cli.registry.near import did_you_mean
from gpu_agent.cli.teaching import teach

_UNKNOWN = "UNKNOWN_TOKEN"


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    teach(
        parser,
        "End a join or operator token now. Nodes that joined by it stay: they have tokens of\n"
        "their own, which `registry token rotate` and `registry forget` end.",
        example="gpu-agent registry token revoke 3f9a01bc",
        exits={ExitCode.OK: "it opens nothing any more"},
    )
    parser.add_argument("token_id", metavar="TOKEN_ID", help="the token, as `registry token list` shows it")
    add_asking(parser, json_is="nothing, as DELETE /v1/tokens/TOKEN_ID answers nothing")


def main(arguments: argparse.Namespace) -> int:
    """Ask and say so."""
    api = Api.of(arguments)
    try:
        api.delete(f"/v1/tokens/{quoted(arguments.token_id)}")
    except Refused as refused:
        if refused.problem.code != _UNKNOWN:
            raise
        known = listed(api, "/v1/tokens", TOKENS, key="tokens")["tokens"]
        hint = did_you_mean(arguments.token_id, (str(token["token_id"]) for token in known))
        raise Failure(f"{refused}{hint}", code=ExitCode.REFUSED) from None
    if not arguments.json:
        print(f"token {printable(arguments.token_id)} opens nothing any more")
    return ExitCode.OK
