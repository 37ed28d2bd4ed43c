"""All commands as Markdown, from their own help: `make reference` writes docs/reference/cli.md.

What a person wrote there above the mark stays. It says nothing that `--help` does not.
"""

import argparse
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from gpu_agent.cli.command import (
    AGENT_MEANINGS,
    MEANINGS,
    REGISTRY_MEANINGS,
    Command,
    ExitCode,
    Group,
    Parser,
    parser_of,
)
from gpu_agent.cli.main import ROOT
from tools.page_links import linked

MARK = "<!-- From here on: `make reference` writes what the commands say of themselves. -->\n"
EVERYWHERE = (
    "--help",
    "--server",
    "--token-file",
    "--insecure-plaintext",
    "--tls-ca-file",
    "--tls-cert-file",
    "--tls-key-file",
)
"""Options of every command that asks a registry, explained once, above the mark."""
_EXPLAINED = {*EVERYWHERE, "--socket"}
_LEFT_OUT = {"thresholds": "and one option for each threshold, as `docs/reference/statuses.md` lists them"}
_USUAL = frozenset({MEANINGS[ExitCode.CONFIGURATION], *REGISTRY_MEANINGS.values(), *AGENT_MEANINGS.values()})


def commands(group: Group = ROOT, path: tuple[str, ...] = ("gpu-agent",)) -> Iterator[tuple[str, Parser]]:
    """Yield every command's subject and parser, in the order of the help."""
    for subject, entries in group.subjects.items():
        for name, entry in entries.items():
            if isinstance(entry, Group):
                yield from commands(entry, (*path, name))
            else:
                yield _heading(group, path, subject), _parser(entry, (*path, name))


def reference() -> str:
    """Write all commands, by subject."""
    parts, under = [], ""
    for subject, parser in commands():
        if subject != under:
            parts.append(f"## {subject}")
            under = subject
        parts += _command(parser)
    return linked("\n\n".join(parts) + "\n")


def written(document: str) -> str:
    """A document with the reference behind its mark."""
    return document.partition(MARK)[0] + MARK + "\n" + reference()


def _parser(command: Command, path: Sequence[str]) -> Parser:
    configure, _ = command.load()[path[-1]]
    return parser_of(configure, path)


def _heading(group: Group, path: Sequence[str], subject: str) -> str:
    if group is ROOT:
        return subject[0].upper() + subject[1:]
    return f"`{' '.join(path)}`: {subject}"


def _command(parser: Parser) -> Iterator[str]:
    example, exits = taught(parser)
    arguments = [action for action in parser._actions if not action.option_strings]  # noqa: SLF001 - argparse lists its arguments nowhere else
    words = " ".join([parser.prog, *(shown(action) for action in arguments)])
    yield f"### `{words}`"
    yield parser.description or ""
    rows = list(_rows(parser))
    if rows:
        yield "\n".join(["| argument | meaning |", "|---|---|", *rows])
    yield f"```sh\n{example}\n```"
    special = ", ".join(f"`{code}` ({meaning})" for code, meaning in exits if meaning not in _USUAL)
    yield f"Ends with {special}; else as always."


def _rows(parser: Parser) -> Iterator[str]:
    for group in parser._action_groups:  # noqa: SLF001 - as above
        if group.title in _LEFT_OUT:
            yield f"| … | {_LEFT_OUT[group.title]} |"
            continue
        for action in group._group_actions:  # noqa: SLF001 - as above
            if not _EXPLAINED & set(action.option_strings):
                yield f"| `{shown(action)}` | {_cell(action.help or '')} |"


def shown(action: argparse.Action) -> str:
    """An argument as it is written: its option, and what stands behind it."""
    if action.nargs == 0:
        return action.option_strings[-1]
    choices = "{" + ",".join(map(str, action.choices or ())) + "}"
    value = str(action.metavar or (choices if action.choices else action.dest.upper()))
    words = f"{action.option_strings[-1]} {value}" if action.option_strings else value
    return f"[{words}]" if action.nargs == "?" else words


def taught(parser: Parser) -> tuple[str, list[tuple[str, str]]]:
    """The example and the exit codes of a command's help."""
    example, _, codes = (parser.epilog or "").partition("\n\nexit codes:\n")
    exits = [line.strip().split("  ", 1) for line in codes.splitlines()]
    return example.removeprefix("example:\n").strip(), [(code, meaning) for code, meaning in exits]


def _cell(words: str) -> str:
    return words.replace("|", "\\|")


def main(arguments: Iterable[str]) -> int:
    """Write the reference into the documents that are named."""
    for name in arguments:
        path = Path(name)
        path.write_text(written(path.read_text(encoding="utf-8")), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
