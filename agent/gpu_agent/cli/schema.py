"""`gpu-agent schema`: the JSON Schemas of messages and of what commands print with `--json`."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from gpu_agent.cli.agent.check import check_schema
from gpu_agent.cli.agent.doctor import doctor_schema
from gpu_agent.cli.command import Arguments, ExitCode, Failure
from gpu_agent.cli.declaration import Commands, Declaration, argument, option
from gpu_agent.wire import schema as messages
from gpu_agent.wire.control import status_schema
from gpu_agent.wire.explain_document import explain_schema
from gpu_agent.wire.notification import notification_schema
from gpu_agent.wire.probe_document import probe_schema

_DOCUMENTS = {
    "probe": probe_schema,
    "doctor": doctor_schema,
    "check": check_schema,
    "status": status_schema,
    "explain": explain_schema,
    "notification": notification_schema,
}
NAMES: tuple[str, ...] = (*messages.NAMES, *_DOCUMENTS)
"""What a schema exists for: the protocol's messages, what commands print with `--json`, and alarms."""


def declare() -> Declaration:
    """Declare what it takes, and its help."""
    return Declaration(
        about="Print the JSON Schema (draft 2020-12) of one message, of all that one side may send, or of "
        "what "
        "`probe`, `doctor`, `check`, `status` or `explain` prints with `--json`; `notification` is what a "
        "receiver of alarms gets. "
        "Without a name: one object with every schema by name.",
        example="gpu-agent schema node_register",
        exits={ExitCode.OK: "printed or written", ExitCode.FAILED: "the folder cannot be written"},
        asks=False,
        params=[
            argument(
                "name", choices=NAMES, metavar="NAME", help=f"one of: {', '.join(NAMES)}", optional=True
            ),
            option(
                "--write",
                metavar="DIR",
                type=Path,
                help="write each schema to DIR/<name>.json; DIR is made if need be",
            ),
        ],
    )


def main(arguments: Arguments) -> int:
    """Print or write."""
    if arguments.write is not None:
        _write(arguments.write, NAMES if arguments.name is None else (arguments.name,))
    elif arguments.name is not None:
        print(_text(schema_of(arguments.name)), end="")
    else:
        print(_text({name: schema_of(name) for name in NAMES}), end="")
    return ExitCode.OK


def schema_of(name: str) -> dict[str, Any]:
    """Return the JSON Schema of one of `NAMES`."""
    return _DOCUMENTS[name]() if name in _DOCUMENTS else messages.schema_of(name)


def _write(folder: Path, names: Iterable[str]) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name in names:
            (folder / f"{name}.json").write_text(_text(schema_of(name)), encoding="utf-8")
    except OSError as error:
        place = error.filename or folder
        raise Failure(
            f"{place} cannot be written ({error.strerror}); name another folder: --write DIR"
        ) from None


def _text(document: object) -> str:
    return json.dumps(document, indent=2) + "\n"


COMMANDS: Commands = {
    "schema": (declare, main),
}
