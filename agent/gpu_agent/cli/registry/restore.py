"""`gpu-agent registry restore`: put a backup in the place of a registry's database, while it is stopped."""

import argparse
from dataclasses import asdict
from pathlib import Path

from gpu_agent.cli.options import print_json
from gpu_agent.cli.outcome import ExitCode, Failure
from gpu_agent.cli.registry.backup import told
from gpu_agent.cli.teaching import teach
from gpu_agent.runtime.layers import SettingsError
from gpu_agent.server.restoring import AlreadyThereError, Restored, restore
from gpu_agent.server.settings import load
from gpu_agent.store.base import StoreError

_SETTINGS = ("store", "state_dir")


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    teach(
        parser,
        "Put a backup where the registry of this machine looks for its database. The registry\n"
        "must be stopped. The backup is checked first; a database that is there already is\n"
        "kept beside it under another name.\n\n"
        "What happened after the backup is not known any more: nodes come back by themselves,\n"
        "with the drains and cordons of then, but those that were given another token since;\n"
        "a token that was revoked since opens again. docs/durability.md says what to do.",
        example="gpu-agent registry restore registry-2026-11-24.db --force",
        exits={
            ExitCode.OK: "put in place; start the registry",
            ExitCode.FAILED: "the backup cannot be used, or the registry runs; nothing was changed",
            ExitCode.CONFIGURATION: "wrong arguments, or a database is there and no --force",
        },
        asks=False,
    )
    parser.add_argument("file", metavar="FILE", type=Path, help="what `registry backup` has written")
    parser.add_argument(
        "--force", action="store_true", help="put it in the place of a database that is there already"
    )
    parser.add_argument(
        "--json",
        action="store_true",
        help="print the database's name, how many things it holds, what it replaced",
    )
    where = parser.add_argument_group("where the registry looks, as `registry serve` is told")
    where.add_argument("--store", metavar="STORE", help="sqlite (default), or sqlite:///PATH")
    where.add_argument(
        "--state-dir", metavar="DIR", help="where registry.db lies (default: the platform's place)"
    )
    where.add_argument(
        "--config", metavar="FILE", type=Path, help="read this file instead of the one in /etc"
    )


def main(arguments: argparse.Namespace) -> int:
    """Check it and put it in place."""
    flags = {name: getattr(arguments, name) for name in _SETTINGS}
    try:
        settings = load(flags, config=arguments.config)
    except SettingsError as error:
        raise Failure(str(error), code=ExitCode.CONFIGURATION) from None
    try:
        done = restore(arguments.file, settings.store, settings.state_folder, replace=arguments.force)
    except AlreadyThereError as error:
        raise Failure(
            f"{error}: add --force to put the backup there; what lies there now is kept beside it",
            code=ExitCode.CONFIGURATION,
        ) from None
    except StoreError as error:
        raise Failure(str(error)) from None
    if arguments.json:
        before = None if done.before is None else str(done.before)
        print_json({"file": str(done.path), **asdict(done.holds), "replaced": before})
    else:
        print("\n".join(_said(done)))
    return ExitCode.OK


def _said(done: Restored) -> list[str]:
    kept = [] if done.before is None else [f"What was there is kept as {done.before}."]
    return [
        f"{done.path}: {told(done.holds)}",
        *kept,
        "Start the registry; nodes come back by themselves, but those that were given another token since.",
        "A token that has ended since the backup opens again: look through `gpu-agent registry token list`.",
    ]
