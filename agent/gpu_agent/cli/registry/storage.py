"""`gpu-agent registry backup` and `restore`: the registry's database as a file."""

import os
import tempfile
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

from gpu_agent.cli.client.http import Api, request_options
from gpu_agent.cli.command import Arguments, ExitCode, Failure
from gpu_agent.cli.declaration import Commands, Declaration, argument, option
from gpu_agent.cli.output.text import print_json
from gpu_agent.runtime.config.load import SettingsError
from gpu_agent.server.settings import load
from gpu_agent.server.storage import DatabaseExistsError, RestoreResult, restore
from gpu_agent.store.backup import Contents, inspect_backup
from gpu_agent.store.base import StoreError

_MEDIA_TYPE = "application/vnd.sqlite3"


def declare_backup() -> Declaration:
    """Declare what it takes, and its help."""
    return Declaration(
        about="Write all that the registry stores at this moment to a file on this machine: nodes,\n"
        "drains, claims, tokens (as digests, never their secrets) and events. It goes on\n"
        "working meanwhile. The file is checked before it counts, and for you alone.",
        example="gpu-agent registry backup registry-backup.db",
        exits={
            ExitCode.OK: "written, and checked",
            ExitCode.CONFIGURATION: "wrong arguments, or the file cannot be written",
        },
        params=[
            argument("file", metavar="FILE", type=Path, help="where the backup goes"),
            option("--force", help="replace the file if it is there", flag=True),
            *request_options(json_is="the file's name and how many things it holds"),
        ],
    )


def run_backup(arguments: Arguments) -> int:
    """Download it, check it, and only then rename it to the file."""
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
        _download(api, descriptor, target)
        holds = _check_backup(part, target)
        part.replace(target)
    finally:
        with suppress(FileNotFoundError):  # it was renamed to the file
            part.unlink()
    if arguments.json:
        print_json({"file": str(target), **asdict(holds)})
    else:
        print(f"{target}: {contents_in_words(holds)}")
    return ExitCode.OK


def contents_in_words(holds: Contents) -> str:
    """Say what a database contains."""
    counted = (
        (holds.nodes, "node"),
        (holds.claims, "claim"),
        (holds.tokens, "token"),
        (holds.events, "event"),
    )
    return ", ".join(f"{count} {thing}{'' if count == 1 else 's'}" for count, thing in counted)


def _download(api: Api, descriptor: int, target: Path) -> None:
    with os.fdopen(descriptor, "wb") as file, api.download("/v1/backup", _MEDIA_TYPE) as pieces:
        for piece in pieces:
            try:
                file.write(piece)
            except OSError as error:
                raise _unwritable(target, error) from None
        file.flush()
        os.fsync(descriptor)


def _check_backup(part: Path, target: Path) -> Contents:
    try:
        return inspect_backup(part)
    except StoreError as error:
        raise Failure(
            f"what was received is no complete backup, and {target} was not written: {error}"
        ) from None


def _unwritable(target: Path, error: OSError) -> Failure:
    return Failure(
        f"{target} cannot be written ({error.strerror or error}): name another place",
        code=ExitCode.CONFIGURATION,
    )


_SETTINGS = ("store", "state_dir")


def declare_restore() -> Declaration:
    """Declare what it takes, and its help."""
    return Declaration(
        about="Restore a backup as the database of this machine's registry. The registry\n"
        "must be stopped. The backup is checked first; a database that is there already is\n"
        "renamed and stays beside it, and what is in etcd is written to the state directory.\n\n"
        "What happened after the backup is lost: nodes come back by themselves,\n"
        "with the drains and cordons of then, but those that were given another token since;\n"
        "a token that was revoked since is valid again: see *Back up, restore, upgrade* in "
        "the documentation.",
        example="gpu-agent registry restore registry-2026-11-24.db --force",
        exits={
            ExitCode.OK: "restored; start the registry",
            ExitCode.FAILED: "the backup cannot be used, or the registry runs; nothing was changed",
            ExitCode.CONFIGURATION: "wrong arguments, or a database is there and no --force",
        },
        asks=False,
        params=[
            argument("file", metavar="FILE", type=Path, help="what `registry backup` has written"),
            option("--force", help="put it in the place of a database that is there already", flag=True),
            option(
                "--json",
                help="print the database's name, how many things it holds, what it replaced",
                flag=True,
            ),
            option(
                "--store",
                metavar="STORE",
                help="sqlite (default), sqlite:///PATH, or etcd://…",
                subject="where the database is, as for `registry serve`",
            ),
            option(
                "--state-dir",
                metavar="DIR",
                help="where registry.db lies (default: the platform's place)",
                subject="where the database is, as for `registry serve`",
            ),
            option(
                "--config",
                metavar="FILE",
                type=Path,
                help="read this file instead of the one in /etc",
                subject="where the database is, as for `registry serve`",
            ),
        ],
    )


def run_restore(arguments: Arguments) -> int:
    """Check it and restore it."""
    flags = {name: getattr(arguments, name) for name in _SETTINGS}
    try:
        settings = load(flags, config=arguments.config)
    except SettingsError as error:
        raise Failure(str(error), code=ExitCode.CONFIGURATION) from None
    try:
        done = restore(
            arguments.file,
            settings.store,
            settings.state_folder,
            replace=arguments.force,
            etcd=settings.etcd_security,
        )
    except DatabaseExistsError as error:
        raise Failure(
            f"{error}: add --force to put the backup there; what is there now is saved first",
            code=ExitCode.CONFIGURATION,
        ) from None
    except StoreError as error:
        raise Failure(str(error)) from None
    if arguments.json:
        before = None if done.before is None else str(done.before)
        print_json({"file": done.place, **asdict(done.holds), "replaced": before})
    else:
        print("\n".join(_restored_lines(done)))
    return ExitCode.OK


def _restored_lines(done: RestoreResult) -> list[str]:
    renamed = [] if done.before is None else [f"The former database is now {done.before}."]
    return [
        f"{done.place}: {contents_in_words(done.holds)}",
        *renamed,
        "Start the registry; nodes come back by themselves, but those that were given another token since.",
        "A token that was revoked since the backup is valid again: check `gpu-agent registry token list`.",
    ]


COMMANDS: Commands = {
    "backup": (declare_backup, run_backup),
    "restore": (declare_restore, run_restore),
}
