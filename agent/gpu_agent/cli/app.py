"""The `gpu-agent` command: finds the command's module, parses, and turns failures into exit codes.

Loads no command but the one that runs: `gpu-agent probe` must not pay for the others.
"""

import argparse
import difflib
import importlib
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NoReturn, Protocol, cast

from gpu_agent.cli.outcome import MEANINGS, ExitCode, Failure
from gpu_agent.cli.streams import complain
from gpu_agent.version import __version__


class CommandModule(Protocol):
    """What the module of a command offers."""

    def configure(self, parser: argparse.ArgumentParser) -> None:
        """Add the command's arguments, and a description that teaches."""

    def main(self, arguments: argparse.Namespace) -> int:
        """Do the work; return the exit code or raise `Failure`."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A command in the table: where it lives, and one line about it."""

    module: str
    summary: str


AGENT_COMMANDS: dict[str, Entry] = {
    "probe": Entry("probe", "show what this machine has and whether it could register"),
    "run": Entry("run", "run the agent: probe, register, beat"),
    "demo": Entry("demo", "a registry and three agents on this machine, until Ctrl-C"),
    "schema": Entry("schema", "print the JSON Schemas of the node protocol"),
}
REGISTRY_COMMANDS: dict[str, Entry] = {
    "serve": Entry("registry_serve", "run the registry"),
    "nodes": Entry("registry_nodes", "list all nodes with status and reason"),
    "node": Entry("registry_node", "show one node: checks, GPUs, models, history"),
    "drain": Entry("registry_drain", "let a node finish its jobs and take it offline"),
    "explain": Entry("registry_explain", "say for each node why it could or could not take a job"),
}


@dataclass(frozen=True, slots=True)
class Chosen:
    """The command that the words name, with its own parser."""

    command: CommandModule
    parser: argparse.ArgumentParser


class Parser(argparse.ArgumentParser):
    """argparse, with our exit code for wrong arguments."""

    def error(self, message: str) -> NoReturn:
        """End with the fault and the next step."""
        raise Failure(f"{message}\nSee `{self.prog} --help`.", ExitCode.CONFIGURATION)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; the only place where an unexpected exception ends."""
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        return _run(words)
    except Failure as failure:
        complain(str(failure))
        return failure.code
    except KeyboardInterrupt:
        return ExitCode.INTERRUPTED
    except Exception as fault:
        if os.environ.get("GPU_AGENT_DEBUG"):
            raise
        complain(
            f"unexpected fault: {type(fault).__name__}: {fault}\n"
            "This is a bug. Run again with GPU_AGENT_DEBUG=1 and report what it prints."
        )
        return ExitCode.FAILED


def _run(words: Sequence[str]) -> int:
    parser, chosen = _parser_for(words)
    arguments, unknown = parser.parse_known_args(words)
    if unknown:
        asked = chosen.parser if chosen else parser
        asked.error(f"unrecognized arguments: {' '.join(unknown)}{_nearest_option(asked, unknown)}")
    if chosen is None:
        parser.print_help()
        return ExitCode.OK
    return chosen.command.main(arguments)


def _parser_for(words: Sequence[str]) -> tuple[Parser, Chosen | None]:
    """Build the parser with the arguments of the one command that the words name."""
    parser = Parser(
        prog="gpu-agent",
        description="Says, now and truthfully, what each GPU machine has and whether it may take a job.",
        epilog=_epilog(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"gpu-agent {__version__}")
    first = _named(parser, words[:1], "command")
    groups = _group(
        parser, "COMMAND", named=first, commands={**AGENT_COMMANDS, "registry": Entry("", _REGISTRY_SUMMARY)}
    )
    chosen = _fill(groups, AGENT_COMMANDS, first)
    registry = groups.add_parser(
        "registry", help=_REGISTRY_SUMMARY, description="The registry: serve it, and ask it."
    )
    if first == "registry":
        second = _named(registry, words[1:2], "action")
        actions = _group(registry, "ACTION", named=second, commands=REGISTRY_COMMANDS)
        chosen = _fill(actions, REGISTRY_COMMANDS, second)
        if len(words) == 1:
            registry.error(f"say what the registry should do: {', '.join(REGISTRY_COMMANDS)}")
    return parser, chosen


_LIKE = 0.75
"""From this likeness on an option is taken for another, mistyped: all begin alike."""
_OWN_OPTIONS = ("-h", "--help", "--version")
_REGISTRY_SUMMARY = "serve a registry, and ask it about its nodes"
_Subparsers = argparse._SubParsersAction  # noqa: SLF001 - argparse gives its public return value no public name


def _named(parser: Parser, word: Sequence[str], what: str) -> str | None:
    """The name that stands where one must; an option of a command has its place behind it."""
    if not word or word[0] in _OWN_OPTIONS:
        return None
    if word[0].startswith("-"):
        hint = _nearest_option(parser, word) or f"; options stand behind the {what}: put {word[0]} there"
        parser.error(f"no {what} is named before {word[0]}{hint}")
    return word[0]


def _group(
    parser: argparse.ArgumentParser, metavar: str, *, named: str | None, commands: dict[str, Entry]
) -> "_Subparsers[Parser]":
    if named is not None and named not in commands:
        nearest = difflib.get_close_matches(named, commands, 1)
        hint = f"did you mean `{nearest[0]}`?" if nearest else f"there are: {', '.join(commands)}."
        parser.error(f"no command {named!r}: {hint}")
    return cast("_Subparsers[Parser]", parser.add_subparsers(title="commands", metavar=metavar))


def _fill(group: "_Subparsers[Parser]", commands: dict[str, Entry], named: str | None) -> Chosen | None:
    chosen: Chosen | None = None
    for name, entry in commands.items():
        parser = group.add_parser(
            name, help=entry.summary, formatter_class=argparse.RawDescriptionHelpFormatter
        )
        if name == named:
            module = importlib.import_module(f"gpu_agent.cli.{entry.module}")
            chosen = Chosen(cast("CommandModule", module), parser)
            chosen.command.configure(parser)
    return chosen


def _nearest_option(parser: argparse.ArgumentParser, unknown: Sequence[str]) -> str:
    """A hint at the option that was meant by the first unknown one that is like any."""
    known = [option for action in parser._actions for option in action.option_strings]  # noqa: SLF001 - argparse lists its options nowhere else
    for word in unknown:
        option = word.partition("=")[0]
        nearest = difflib.get_close_matches(option, known, 1, _LIKE) if option.startswith("--") else []
        if nearest:
            return f"; did you mean {nearest[0]}?"
    return ""


def _epilog() -> str:
    lines = [f"  {int(code):>3}  {meaning}" for code, meaning in MEANINGS.items()]
    return "exit codes:\n" + "\n".join(lines)
