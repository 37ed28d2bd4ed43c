"""`gpu-agent registry backup`: write all that a registry keeps to a file here, while it runs."""

import argparse
import os
import tempfile
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

from gpu_agent.cli.asking.api import Api
from gpu_agent.cli.options import add_asking, print_json
from gpu_agent.cli.outcome import ExitCode, Failure
from gpu_agent.cli.teaching import teach
from gpu_agent.store.base import StoreError
from gpu_agent.store.sqlite_restore import Contents, contents

_MEDIA_TYPE = "application/vnd.sqlite3"


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    teach(
        parser,
        "Write all that the registry keeps at this moment to a file on this machine: nodes,\n"
        "drains, claims, tokens (as digests, never their secrets) and events. It goes on\n"
        "working meanwhile. The file is checked before it counts, and for you alone.",
        example="gpu-agent registry backup registry-backup.db",
        exits={
            ExitCode.OK: "written, and checked",
            ExitCode.CONFIGURATION: "wrong arguments, or the file cannot be written",
        },
    )
    parser.add_argument("file", metavar="FILE", type=Path, help="where the backup goes")
    parser.add_argument("--force", action="store_true", help="replace the file if it is there")
    add_asking(parser, json_is="the file's name and how many things it holds")


def main(arguments: argparse.Namespace) -> int:
    """Fetch it, check it, and only then give it its name."""
    target: Path = arguments.file
    if target.exists() and not arguments.force:
        raise Failure(
            f"{target} is there already: name another file, or add --force to replace it",
            code=ExitCode.CONFIGURATION,
        )
    api = Api.of(arguments)
    try:
        descriptor, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name[:100]}.")
    except OSError as error:
        raise _unwritable(target, error) from None
    part = Path(name)
    try:
        _fetch(api, descriptor, target)
        holds = _checked(part, target)
        part.replace(target)
    finally:
        with suppress(FileNotFoundError):  # it has become the file
            part.unlink()
    if arguments.json:
        print_json({"file": str(target), **asdict(holds)})
    else:
        print(f"{target}: {told(holds)}")
    return ExitCode.OK


def told(holds: Contents) -> str:
    """Say what a database holds."""
    counted = (
        (holds.nodes, "node"),
        (holds.claims, "claim"),
        (holds.tokens, "token"),
        (holds.events, "event"),
    )
    return ", ".join(f"{count} {thing}{'' if count == 1 else 's'}" for count, thing in counted)


def _fetch(api: Api, descriptor: int, target: Path) -> None:
    with os.fdopen(descriptor, "wb") as file, api.download("/v1/backup", _MEDIA_TYPE) as pieces:
        for piece in pieces:
            try:
                file.write(piece)
            except OSError as error:
                raise _unwritable(target, error) from None
        file.flush()
        os.fsync(descriptor)


def _checked(part: Path, target: Path) -> Contents:
    try:
        return contents(part)
    except StoreError as error:
        raise Failure(f"what came is no whole backup, and {target} was not written: {error}") from None


def _unwritable(target: Path, error: OSError) -> Failure:
    return Failure(
        f"{target} cannot be written ({error.strerror or error}): name another place",
        code=ExitCode.CONFIGURATION,
    )
