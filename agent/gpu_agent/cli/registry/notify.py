"""`gpu-agent registry notify list` and `notify test`: the receivers of alarms, and a message to try them."""

import time

from gpu_agent.cli.client.answers import Answer
from gpu_agent.cli.client.http import Api, Refused, quote_id, request_options
from gpu_agent.cli.client.resources import did_you_mean
from gpu_agent.cli.command import Arguments, ExitCode, Failure
from gpu_agent.cli.declaration import Commands, Declaration, argument
from gpu_agent.cli.output.table import Column, Row, Table, render_table
from gpu_agent.cli.output.text import Line, Piece, line, print_json, print_lines, terminal_columns
from gpu_agent.cli.output.units import clock, duration_in_words
from gpu_agent.wire.notification import ReceiverList, ReceiverTest, ReceiverView

_COLUMNS = (
    Column(head="RECEIVER"),
    Column(head="FORMAT"),
    Column(head="STATE"),
    Column(head="WAITING", right=True),
    Column(head="LAG", right=True),
    Column(head="DELIVERED", right=True),
    Column(head="NEXT", right=True),
)
_NONE = (
    "No receiver of alarms: add a table [[notify]] to the registry's settings, and reload it "
    "(see *Alarms* in the documentation)."
)


def declare_list() -> Declaration:
    """Declare what it takes, and its help."""
    return Declaration(
        about="List the receivers of alarms: how many events wait for each, for how long, when it took "
        "its last message, when the next attempt is, and why the last one failed.",
        example="gpu-agent registry notify list",
        exits={ExitCode.OK: "listed, even if there is none"},
        params=[*request_options(json_is="what GET /v1/receivers answers")],
    )


def run_list(arguments: Arguments) -> int:
    """Read them and print."""
    answer = _receivers(Api.of(arguments))
    receivers = answer.model.receivers
    if arguments.json:
        print_json(answer.document)
    elif not receivers:
        print(_NONE)
    else:
        rows = [_row(one, time.time()) for one in receivers]
        print_lines(render_table(Table(_COLUMNS, rows), terminal_columns()))
        print_lines(_problem(one.name, one.problem) for one in receivers if one.problem is not None)
    return ExitCode.OK


def declare_test() -> Declaration:
    """Declare what it takes, and its help."""
    return Declaration(
        about="Have the registry that runs send a test message to one receiver of alarms, or to each, "
        "and print what became of it. Quiet hours do not count. A receiver that takes it gets at once what "
        "has failed before.",
        example="gpu-agent registry notify test ops",
        exits={ExitCode.OK: "every receiver took it", ExitCode.FAILED: "one did not, or there is none"},
        params=[
            argument("name", metavar="NAME", help="this receiver; else all", optional=True),
            *request_options(json_is="what POST /v1/receivers/NAME/test answers, a line for each"),
        ],
    )


def run_test(arguments: Arguments) -> int:
    """Send the messages one after another, and print each outcome."""
    api = Api.of(arguments)
    names = [arguments.name]
    if arguments.name is None:
        names = [one.name for one in _receivers(api).model.receivers]
    if not names:
        raise Failure(_NONE)
    code = ExitCode.OK
    for name in names:
        answer = _test(api, name)
        outcome = answer.model
        if arguments.json:
            print_json(answer.document)
        elif outcome.problem is None:
            print_lines([line(name, f": took the message, in {outcome.seconds:.1f} s")])
        else:
            print_lines([_problem(name, outcome.problem)])
        code = code if outcome.delivered else ExitCode.FAILED
    return code


def _receivers(api: Api) -> Answer[ReceiverList]:
    return api.get("/v1/receivers", ReceiverList)


def _test(api: Api, name: str) -> Answer[ReceiverTest]:
    try:
        return api.post(f"/v1/receivers/{quote_id(name)}/test", {}, ReceiverTest)
    except Refused as refused:
        if refused.problem_code != "UNKNOWN_RECEIVER":
            raise
        near = did_you_mean(name, (one.name for one in _receivers(api).model.receivers))
        raise Failure(
            f"no receiver of alarms is called {name!r}: see `gpu-agent registry notify list`{near}",
            code=ExitCode.REFUSED,
        ) from None


def _problem(name: str, problem: str) -> Line:
    return line(Piece(f"{name}: {problem}", "red"))


def _row(one: ReceiverView, now: float) -> Row:
    lag = "-" if one.lag_seconds is None else duration_in_words(one.lag_seconds)
    delivered = "not since the start" if one.delivered_at is None else clock(one.delivered_at, now)
    following = "-" if one.next_attempt_seconds is None else duration_in_words(one.next_attempt_seconds)
    state = Piece(one.state, "red" if one.problem is not None else "")
    cells = (one.name, one.format, state, str(one.waiting), lag, delivered, following)
    return Row(tuple(line(cell) for cell in cells))


COMMANDS: Commands = {
    "list": (declare_list, run_list),
    "test": (declare_test, run_test),
}
