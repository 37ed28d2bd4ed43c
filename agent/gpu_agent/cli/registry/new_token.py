"""What is said of a token that was just made: itself on stdout, alone, and all about it on stderr.

So `> file` and `$(…)` hold the token and nothing else. It is told to nobody a second time.
"""

import argparse
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import Any

from gpu_agent.cli.durations import in_words, seconds
from gpu_agent.cli.options import print_json
from gpu_agent.cli.outcome import ExitCode, Failure
from gpu_agent.cli.registry.secret_file import secret_file

Made = Mapping[str, Any]
NEVER = "never"


def add_out(parser: argparse.ArgumentParser) -> None:
    """Add `--out FILE` and `--force`."""
    parser.add_argument(
        "--out",
        metavar="FILE",
        type=Path,
        help="write the token to this file (mode 0600) rather than to stdout",
    )
    parser.add_argument("--force", action="store_true", help="replace that file if it is there")


def ttl(text: str) -> float | str:
    """Read how long a token may be used; an argparse type."""
    return NEVER if text == NEVER else seconds(text)


def asked_ttl(given: float | str | None) -> dict[str, float | None]:
    """What the API is asked for; what was not given is left to it."""
    if given is None:
        return {}
    return {"ttl_seconds": None if isinstance(given, str) else given}


def tell(arguments: argparse.Namespace, make: Callable[[], Made], about: Callable[[Made], str]) -> None:
    """Make a token, then say it where it was asked for, and what it is for on stderr."""
    with ExitStack() as undo:
        write = None if arguments.out is None else undo.enter_context(_file(arguments))
        made = make()
        if write is not None:
            write(made["token"])
        if arguments.json:
            print_json(made if write is None else {**made, "token": None, "file": str(arguments.out)})
            return
        if write is None:
            print(made["token"], flush=True)
        where = f"It stands in {arguments.out}, " if write else "It is shown "
        once = "readable by you alone." if write else "this once: the registry keeps only its digest."
        print(f"{about(made)}\n{where}{once} To end it: {_ending(made)}", file=sys.stderr)


def first_contact(file: Path | None) -> str:
    """Where a join token goes: by hand the agent is told its file, the service has one place."""
    return (
        f"On the GPU machine: gpu-agent run --registry URL --join-token-file {file or 'FILE'}\n"
        "A service reads it from /etc/gpu-agent/join-token (mode 0600) when it starts."
    )


def _file(arguments: argparse.Namespace) -> AbstractContextManager[Callable[[str], None]]:
    """Open the file of `--out`. One that is there may hold the only copy of a token that is in use."""
    path: Path = arguments.out
    if path.is_file() and not arguments.force:
        raise Failure(
            f"{path} is there already: name another file, or add --force to replace it",
            code=ExitCode.CONFIGURATION,
        )
    return secret_file(path)


def until(made: Made) -> str:
    """How long a token may be used."""
    end = made.get("expires_at")
    if end is None:
        return "until it is revoked"
    return f"for {in_words(end - time.time() + 1)}"


def _ending(made: Made) -> str:
    return f"gpu-agent registry token revoke {made['token_id']}"
