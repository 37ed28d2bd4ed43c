"""`gpu-agent registry token` and `registry node readmit`: create, list, revoke and rotate tokens.

A new token goes to stdout alone and everything about it to stderr, so that `> file` and `$(…)` hold the
token and nothing else. It is shown once.
"""

import contextlib
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path

import click

from gpu_agent.cli.client.answers import Answer
from gpu_agent.cli.client.http import Api, request_options
from gpu_agent.cli.client.resources import Node, revoke_token
from gpu_agent.cli.command import Arguments, ExitCode, Failure, label_pair, positive_number
from gpu_agent.cli.declaration import Commands, Declaration, argument, option
from gpu_agent.cli.output.table import Column, Row, Table, render_table
from gpu_agent.cli.output.text import (
    Line,
    Piece,
    line,
    print_json,
    print_lines,
    printable,
    terminal_columns,
)
from gpu_agent.cli.output.units import duration_in_words, parse_duration
from gpu_agent.wire.api import NewToken, NodeDetail, TokenList, TokenView

ROLES = ("read", "operate", "admin")
NEVER = "never"
_ANY = "any"
_JOIN_OPTIONS = ("uses", "label", "note", "node")
_TOKEN_COLUMNS = (
    Column(head="ID"),
    Column(head="KIND"),
    Column(head="STATE"),
    Column(head="USED", right=True),
    Column(head="AGE", right=True, priority=1),
    Column(head="ENDS IN", right=True),
    Column(head="FOR", wraps=True),
)
_LIVE = "live"
_NONE = "No token was ever created here."
_NONE_LIVE = "No token is valid here; --all shows those that have ended."


def declare_token_create() -> Declaration:
    """Declare what it takes, and its help."""
    return Declaration(
        about="Create a join token, with which new nodes register; or with --operator one for a person\n"
        "or a program that uses this API. Only the token goes to stdout, so that `> FILE`\n"
        "works; what it is for goes to stderr. It is shown this once.",
        example="gpu-agent registry token create --uses 8 --label zone=a --out join.token",
        exits={
            ExitCode.OK: "created",
            ExitCode.CONFIGURATION: "wrong arguments, or the file cannot be written; no token was created",
        },
        params=[
            option(
                "--ttl",
                type=parse_ttl,
                metavar="TIME",
                help="how long it may be used, such as 24h; or never (default 24h; with --operator never)",
            ),
            option(
                "--uses",
                type=parse_uses,
                metavar="N",
                help=f"how many nodes may join with it, or {_ANY} (default 1)",
                subject="a join token",
            ),
            option(
                "--label",
                type=label_pair,
                metavar="K=V",
                help="a label of every node that joins with it, whatever the node declares (repeatable)",
                repeatable=True,
                subject="a join token",
            ),
            option(
                "--node",
                metavar="ID",
                help="the only node that may join with it; with --uses any for one that stores no token of "
                "its own",
                subject="a join token",
            ),
            option(
                "--note", metavar="TEXT", help="what it is for, as the list shows it", subject="a join token"
            ),
            option(
                "--operator",
                choices=ROLES,
                metavar="ROLE",
                help="read, operate (act on nodes and jobs) or admin (all)",
                subject="an operator token",
            ),
            option("--name", metavar="WHO", help="its owner", subject="an operator token"),
            *out_options(),
            *request_options(
                json_is="what POST /v1/tokens answers, the token in it; with --out its file instead"
            ),
        ],
    )


def run_token_create(arguments: Arguments) -> int:
    """Create the token and print it."""
    body = _operator_request(arguments) if arguments.operator else _join_request(arguments)
    api = Api.of(arguments)
    about = _about_operator if arguments.operator else _about_join
    print_new_token(
        arguments, lambda: api.post("/v1/tokens", body, NewToken), lambda token: about(arguments, token)
    )
    return ExitCode.OK


def _join_request(arguments: Arguments) -> dict[str, object]:
    if arguments.name is not None:
        raise Failure(
            "--name is for --operator ROLE; use --note for a join token", code=ExitCode.CONFIGURATION
        )
    body: dict[str, object] = {"kind": "join", **ttl_field(arguments.ttl)}
    if arguments.uses is not None:
        body["uses"] = None if arguments.uses == _ANY else arguments.uses
    if arguments.label:
        body["labels"] = dict(arguments.label)
    if arguments.note is not None:
        body["note"] = arguments.note
    if arguments.node is not None:
        body["node_id"] = arguments.node
    return body


def _operator_request(arguments: Arguments) -> dict[str, object]:
    wrong = [f"--{name}" for name in _JOIN_OPTIONS if getattr(arguments, name) not in (None, [])]
    if wrong:
        raise Failure(
            f"{', '.join(wrong)}: only for join tokens, not with --operator", code=ExitCode.CONFIGURATION
        )
    body: dict[str, object] = {"kind": "operator", "role": arguments.operator, **ttl_field(arguments.ttl)}
    if arguments.name is not None:
        body["name"] = arguments.name
    return body


def _about_join(arguments: Arguments, token: NewToken) -> str:
    uses = 1 if arguments.uses is None else arguments.uses
    nodes = "any number of nodes" if uses == _ANY else "1 node" if uses == 1 else f"{uses} nodes"
    if arguments.node is not None:
        times = "any number of times" if uses == _ANY else "once" if uses == 1 else f"{uses} times"
        nodes = printable(f"node {arguments.node}, {times},")
    labels = ", ".join(f"{key}={value}" for key, value in arguments.label or ())
    granted = printable(f", each with the label {labels}") if labels else ""
    return (
        f"Join token {token.token_id}: {nodes} may join with it {lifetime_in_words(token)}{granted}.\n"
        f"{first_contact(arguments.out)}"
    )


def _about_operator(arguments: Arguments, token: NewToken) -> str:
    owner = printable(f" of {arguments.name}") if arguments.name else ""
    return (
        f"Operator token {token.token_id}{owner}, role {arguments.operator}, {lifetime_in_words(token)}.\n"
        f"Use it with --token-file {arguments.out or 'FILE'}, or in the variable GPU_REGISTRY_TOKEN."
    )


def parse_uses(text: str) -> int | str:
    """Read how many nodes may join by a token; raises `ValueError` with what is wrong."""
    return _ANY if text == _ANY else positive_number(text)


def declare_readmit() -> Declaration:
    """Declare what it takes, and its help."""
    return Declaration(
        about="Create a token with which one machine gets a node's id back, once: for a node that lost\n"
        "its state directory, or moved to another machine. Its drain, cordon and labels stay.\n"
        "Only the token goes to stdout, so that `> FILE` works.",
        example="gpu-agent registry node readmit node-7 --out join.token",
        exits={
            ExitCode.OK: "created",
            ExitCode.CONFIGURATION: "wrong arguments, or the file cannot be written; no token was created",
        },
        params=[
            argument("node_id", metavar="ID", help="the node, as `registry node list` shows it"),
            option(
                "--ttl",
                type=parse_ttl,
                metavar="TIME",
                help="how long it may be used, such as 24h; or never (default 24h)",
            ),
            *out_options(),
            *request_options(
                json_is="what POST /v1/nodes/ID/reclaim answers, the token in it; with --out its file instead"
            ),
        ],
    )


def run_readmit(arguments: Arguments) -> int:
    """Create the token and print it."""
    node = Node(Api.of(arguments), arguments.node_id)
    print_new_token(
        arguments,
        lambda: node.act("reclaim", NewToken, ttl_field(arguments.ttl)),
        lambda token: (
            f"Token {token.token_id} gives {arguments.node_id} its id back, once, "
            f"{lifetime_in_words(token)}.\n{first_contact(arguments.out)}"
        ),
    )
    return ExitCode.OK


def out_options() -> list[click.Parameter]:
    """Return `--out FILE` and `--force`."""
    return [
        option(
            "--out",
            metavar="FILE",
            type=Path,
            help="write the token to this file (mode 0600) rather than to stdout",
        ),
        option("--force", help="replace that file if it is there", flag=True),
    ]


def parse_ttl(text: str) -> float | str:
    """Read how long a token may be used; raises `ValueError` with what is wrong."""
    if text == NEVER:
        return NEVER
    try:
        return parse_duration(text)
    except ValueError as error:
        raise ValueError(f"{error}, or {NEVER}") from None


def ttl_field(given: float | str | None) -> dict[str, float | None]:
    """Return the request's field; without the option the registry's default holds."""
    if given is None:
        return {}
    return {"ttl_seconds": None if isinstance(given, str) else given}


def print_new_token(
    arguments: Arguments,
    create: Callable[[], Answer[NewToken]],
    about: Callable[[NewToken], str],
) -> None:
    """Create a token, print it to stdout or `--out`, and what it is for to stderr."""
    with ExitStack() as undo:
        write = None if arguments.out is None else undo.enter_context(_open_out_file(arguments))
        answer = create()
        token = answer.model
        if write is not None:
            write(token.token)
        if arguments.json:
            hidden = {} if write is None else {"token": None, "file": str(arguments.out)}
            print_json({**answer.document, **hidden})
            return
        if write is None:
            print(token.token, flush=True)
        where = f"It is in {arguments.out}, " if write else "It is shown "
        once = "readable by you alone." if write else "this once: the registry stores only its digest."
        end = f"To end it: gpu-agent registry token revoke {token.token_id}"
        print(f"{about(token)}\n{where}{once} {end}", file=sys.stderr)


def first_contact(file: Path | None) -> str:
    """Say where a join token goes: an agent started by hand gets its file, the service has one place."""
    return (
        f"On the GPU machine: gpu-agent run --registry URL --join-token-file {file or 'FILE'}\n"
        "For a service: put it into /etc/gpu-agent/join-token (mode 0600), then run "
        "`systemctl restart gpu-agent`."
    )


def lifetime_in_words(token: NewToken) -> str:
    """Say how long a token may be used."""
    if token.expires_at is None:
        return "until it is revoked"
    return f"for {duration_in_words(token.expires_at - time.time() + 1)}"


def _open_out_file(arguments: Arguments) -> AbstractContextManager[Callable[[str], None]]:
    """Open the file of `--out`. An existing one may hold the only copy of a token that is in use."""
    path: Path = arguments.out
    if path.is_file() and not arguments.force:
        raise Failure(
            f"{path} is there already: name another file, or add --force to replace it",
            code=ExitCode.CONFIGURATION,
        )
    return secret_file(path)


@contextmanager
def secret_file(path: Path) -> Iterator[Callable[[str], None]]:
    """Yield what writes the secret, mode 0600 from the first moment; raises `Failure` where it cannot.

    The file is opened before the secret exists, so that none is created that cannot be written.
    """
    if path.is_dir():
        raise Failure(
            f"{path} is a directory: name a file in it with --out FILE", code=ExitCode.CONFIGURATION
        )
    try:
        descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name[:100]}.")
    except OSError as error:
        raise _unwritable(path, error) from None
    with os.fdopen(descriptor, "w", encoding="ascii") as file:

        def write(secret: str) -> None:
            try:
                file.write(f"{secret}\n")
                file.flush()
                os.fsync(descriptor)
                Path(name).replace(path)
            except OSError as error:
                raise _unwritable(path, error) from None

        try:
            yield write
        finally:
            with contextlib.suppress(FileNotFoundError):  # it has become the file
                Path(name).unlink()


def _unwritable(path: Path, error: OSError) -> Failure:
    return Failure(
        f"{path} cannot be written ({error.strerror or error}): name another place with --out FILE",
        code=ExitCode.CONFIGURATION,
    )


def declare_token_list() -> Declaration:
    """Declare what it takes, and its help."""
    return Declaration(
        about="List join and operator tokens, the oldest first: what each is for, how often it was\n"
        "used and when it ends. Never a secret. Nodes' own tokens are not among them.",
        example="gpu-agent registry token list --all",
        exits={ExitCode.OK: "listed, even if there is none"},
        params=[
            option("--all", help="those that have ended too", flag=True),
            *request_options(json_is="what GET /v1/tokens answers, always all of them"),
        ],
    )


def run_token_list(arguments: Arguments) -> int:
    """Read the list and print it."""
    answer = Api.of(arguments).get_pages("/v1/tokens", TokenList, members="tokens")
    shown = [token for token in answer.model.tokens if arguments.all or token.state == _LIVE]
    if arguments.json:
        print_json(answer.document)
    elif shown:
        now = time.time()
        table = Table(_TOKEN_COLUMNS, [_token_row(token, now) for token in shown])
        print_lines(render_table(table, terminal_columns()))
    else:
        print(_NONE_LIVE if answer.model.tokens else _NONE)
    return ExitCode.OK


def _token_row(token: TokenView, now: float) -> Row:
    live, end = token.state == _LIVE, token.expires_at
    left = "" if not live else "never" if end is None else duration_in_words(end - now)
    return Row(
        (
            line(token.token_id),
            line("readmit" if token.node_id else token.kind),
            line(Piece(token.state.replace("_", " "), "green" if live else "dim")),
            line(_uses_in_words(token)),
            line(duration_in_words(now - token.created_at)),
            line(left),
            _purpose(token),
        )
    )


def _uses_in_words(token: TokenView) -> str:
    if token.kind != "join":
        return ""
    return f"{token.spent}/{'any' if token.uses is None else token.uses}"


def _purpose(token: TokenView) -> Line:
    """Say what it is for."""
    role = f"role {token.role}" if token.role else ""
    labels = ", ".join(f"{key}={value}" for key, value in token.labels.items())
    node = f"the id of {token.node_id}" if token.node_id else ""
    browser = f"signed in with {token.parent}" if token.parent else ""
    return line("; ".join(one for one in (role, token.name, browser, node, labels, token.note) if one))


def declare_token_revoke() -> Declaration:
    """Declare what it takes, and its help."""
    return Declaration(
        about="Revoke a join or operator token now. Nodes that joined with it stay: they have tokens\n"
        "of their own, which `registry token rotate` and `registry node remove` revoke.",
        example="gpu-agent registry token revoke 3f9a01bc",
        exits={ExitCode.OK: "it is revoked"},
        params=[
            argument("token_id", metavar="TOKEN_ID", help="the token, as `registry token list` shows it"),
            *request_options(json_is="nothing, as DELETE /v1/tokens/TOKEN_ID answers nothing"),
        ],
    )


def run_token_revoke(arguments: Arguments) -> int:
    """Revoke it and print."""
    revoke_token(Api.of(arguments), arguments.token_id)
    if not arguments.json:
        print(f"token {printable(arguments.token_id)} is revoked")
    return ExitCode.OK


def declare_token_rotate() -> Declaration:
    """Declare what it takes, and its help."""
    return Declaration(
        about="Replace the token with which a node authenticates. The node receives the new one when it next "
        "registers, at once where it is connected; the old one ends when it next connects with the new "
        "one, and `registry node show` shows until then that the rotation is not done.",
        example="gpu-agent registry token rotate node-7",
        exits={ExitCode.OK: "the node gets another token"},
        params=[
            argument("node_id", metavar="ID", help="the node, as `registry node list` shows it"),
            option(
                "--revoke-now",
                help="revoke the old token now, as one that was stolen; then only `registry node readmit` "
                "helps",
                flag=True,
            ),
            *request_options(json_is="the node, as POST /v1/nodes/ID/rotate answers it"),
        ],
    )


def run_token_rotate(arguments: Arguments) -> int:
    """Request it and print what follows."""
    node = Node(Api.of(arguments), arguments.node_id)
    answer = node.act("rotate", NodeDetail, {"revoke_now": arguments.revoke_now})
    node_id = answer.model.node_id
    if arguments.json:
        print_json(answer.document)
    elif arguments.revoke_now:
        print(
            f"{node_id}'s token is revoked. Let the machine in again: "
            f"gpu-agent registry node readmit {node_id}"
        )
    else:
        when = "now" if answer.model.connected else "when it next registers"
        print(f"{node_id} gets another token {when}; the old one ends when it next connects with that")
    return ExitCode.OK


COMMANDS: Commands = {
    "create": (declare_token_create, run_token_create),
    "list": (declare_token_list, run_token_list),
    "revoke": (declare_token_revoke, run_token_revoke),
    "rotate": (declare_token_rotate, run_token_rotate),
    "readmit": (declare_readmit, run_readmit),
}
