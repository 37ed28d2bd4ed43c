"""`gpu-agent registry token list`: which tokens open this registry, and which did."""

import argparse
import time
from collections.abc import Mapping
from typing import Any

from gpu_agent.cli.answers import TOKENS
from gpu_agent.cli.asking.api import Api
from gpu_agent.cli.asking.paging import listed
from gpu_agent.cli.durations import in_words
from gpu_agent.cli.lines import Line, Piece, line
from gpu_agent.cli.options import add_asking, print_json
from gpu_agent.cli.outcome import ExitCode
from gpu_agent.cli.sheet import Column, Row, Sheet, laid_out
from gpu_agent.cli.teaching import teach
from gpu_agent.cli.terminal import columns, show

_COLUMNS = (
    Column(head="ID"),
    Column(head="KIND"),
    Column(head="STATE"),
    Column(head="USED", right=True),
    Column(head="AGE", right=True, worth=1),
    Column(head="ENDS IN", right=True),
    Column(head="FOR", folds=True),
)
_LIVE = "live"
_NONE = "No token was ever made here."
_NONE_LIVE = "No token opens this registry; --all shows those that have ended."


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    teach(
        parser,
        "List join and operator tokens, the oldest first: whom each lets in, how often it was\n"
        "used and when it ends. Never a secret. Nodes' own tokens are not among them.",
        example="gpu-agent registry token list --all",
        exits={ExitCode.OK: "listed, even if there is none"},
    )
    parser.add_argument("--all", action="store_true", help="those that have ended too")
    add_asking(parser, json_is="what GET /v1/tokens answers, always all of them")


def main(arguments: argparse.Namespace) -> int:
    """Ask and print."""
    answer = listed(Api.of(arguments), "/v1/tokens", TOKENS, key="tokens")
    shown = [token for token in answer["tokens"] if arguments.all or token["state"] == _LIVE]
    if arguments.json:
        print_json(answer)
    elif shown:
        now = time.time()
        show(laid_out(Sheet(_COLUMNS, [_row(token, now) for token in shown]), columns()))
    else:
        print(_NONE_LIVE if answer["tokens"] else _NONE)
    return ExitCode.OK


def _row(token: Mapping[str, Any], now: float) -> Row:
    state = str(token["state"])
    live = state == _LIVE
    end = token.get("expires_at")
    left = "" if not live else "never" if end is None else in_words(end - now)
    return Row(
        (
            line(token["token_id"]),
            line("reclaim" if token.get("node_id") else token["kind"]),
            line(Piece(state.replace("_", " "), "green" if live else "dim")),
            line(_used(token)),
            line(in_words(now - token["created_at"])),
            line(left),
            _whom(token),
        )
    )


def _used(token: Mapping[str, Any]) -> str:
    if token["kind"] != "join":
        return ""
    return f"{token['spent']}/{'any' if token['uses'] is None else token['uses']}"


def _whom(token: Mapping[str, Any]) -> Line:
    """Whom or what it lets in."""
    role = f"role {token['role']}" if token.get("role") else ""
    labels = ", ".join(f"{key}={value}" for key, value in (token.get("labels") or {}).items())
    node = f"the id of {token['node_id']}" if token.get("node_id") else ""
    told = (role, token.get("name") or "", node, labels, token.get("note") or "")
    return line("; ".join(one for one in told if one))
