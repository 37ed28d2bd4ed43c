"""`gpu-agent registry members`: the processes that are the registry, and which of them leads."""

import time

from gpu_agent.cli.client.http import Api, request_options
from gpu_agent.cli.command import Arguments, ExitCode
from gpu_agent.cli.declaration import Commands, Declaration
from gpu_agent.cli.output.table import Column, Row, Table, render_table
from gpu_agent.cli.output.text import line, print_json, print_lines, terminal_columns
from gpu_agent.cli.output.units import duration_in_words
from gpu_agent.wire.api import MemberList, MemberRole, MemberView

_COLUMNS = (
    Column(head="MEMBER"),
    Column(head="ROLE"),
    Column(head="FOR", right=True),
    Column(head="NODES", right=True),
    Column(head="LAG", right=True),
)

_NO_LEADER = "No instance leads as far as this one knows: what needs the leader is refused (see GET /readyz)."
_NO_LINK = (
    "This instance does not reach the leader, and knows no node connections but its own: see GET /readyz."
)


def declare_members() -> Declaration:
    """Declare what it takes, and its help."""
    return Declaration(
        about="Show the processes that are this registry: which one leads, for how long each does what\n"
        "it does, and how many node connections it holds.",
        example="gpu-agent registry members",
        exits={ExitCode.OK: "shown"},
        params=[*request_options(json_is="what GET /v1/members answers")],
    )


def run_members(arguments: Arguments) -> int:
    """Read them and print."""
    answer = Api.of(arguments).get("/v1/members", MemberList)
    if arguments.json:
        print_json(answer.document)
    else:
        rows = [_row(one) for one in answer.model.members]
        print_lines(render_table(Table(_COLUMNS, rows), terminal_columns()))
        if all(one.role != MemberRole.LEADER for one in answer.model.members):
            print(_NO_LEADER)
        elif any(one.nodes is None for one in answer.model.members):
            print(_NO_LINK)
    return ExitCode.OK


def _row(one: MemberView) -> Row:
    lag = "-" if one.lag_seconds is None else duration_in_words(one.lag_seconds)
    since = duration_in_words(max(0.0, time.time() - one.since))
    nodes = "-" if one.nodes is None else str(one.nodes)
    return Row((line(one.name), line(one.role), line(since), line(nodes), line(lag)))


COMMANDS: Commands = {
    "members": (declare_members, run_members),
}
