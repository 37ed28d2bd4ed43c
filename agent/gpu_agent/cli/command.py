"""What a command is made of: its exit codes, its help, its parser, and the group that lists it.

Help says what a command does, shows an example that can be typed, and lists its exit codes.
"""

import argparse
import os
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from enum import IntEnum
from typing import NoReturn

from gpu_agent.records import dataclass


class ExitCode(IntEnum):
    """The exit codes of every command; `gpu-agent --help` lists them."""

    OK = 0
    FAILED = 1
    NO_GPU = 2
    DRIVER_BROKEN = 3
    CONFIGURATION = 4
    UNREACHABLE = 5
    REFUSED = 6
    NO_NODE = 7
    INTERRUPTED = 130


MEANINGS: dict[ExitCode, str] = {
    ExitCode.OK: "done; for `probe`: this machine could register",
    ExitCode.FAILED: "failed; the last line says why",
    ExitCode.NO_GPU: "no GPU or no driver on this machine",
    ExitCode.DRIVER_BROKEN: "the GPU driver is there but does not answer properly",
    ExitCode.CONFIGURATION: "wrong arguments or configuration",
    ExitCode.UNREACHABLE: "the registry, or the agent of this machine, could not be reached",
    ExitCode.REFUSED: "the registry, or the agent of this machine, refused the request",
    ExitCode.NO_NODE: "no node can take the job now",
    ExitCode.INTERRUPTED: "interrupted",
}


class Failure(Exception):  # noqa: N818 - an outcome for a person, not a fault of the program
    """A command could not do its work: a sentence with the next step, and the exit code."""

    def __init__(self, sentence: str, code: ExitCode = ExitCode.FAILED) -> None:
        super().__init__(sentence)
        self.code = code


_COLUMNS = 79
EXITS_OF_REQUESTS = (ExitCode.OK, ExitCode.CONFIGURATION, ExitCode.UNREACHABLE, ExitCode.REFUSED)
"""Of every command that makes a request to a registry or an agent."""
REGISTRY_MEANINGS: Mapping[ExitCode, str] = {
    ExitCode.UNREACHABLE: "the registry could not be reached",
    ExitCode.REFUSED: "the registry refused the request",
}
AGENT_MEANINGS: Mapping[ExitCode, str] = {
    ExitCode.UNREACHABLE: "no agent answers on this machine",
    ExitCode.REFUSED: "the agent refused the request",
}


def whole_number(text: str) -> int:
    """Read a whole number; an argparse type, as the next two."""
    return int(text)


def positive_number(text: str) -> int:
    """Read a whole number above zero."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is not at least 1")
    return number


whole_number.__name__ = positive_number.__name__ = "whole number"  # the word of argparse's error


def capability(text: str) -> str:
    """Read a compute capability such as `8.0`."""
    major, _, minor = text.partition(".")
    if not (major.isdecimal() and (minor.isdecimal() or text == major)):
        raise argparse.ArgumentTypeError(f"{text!r} is no compute capability: write it like 8.0")
    return text


def label_pair(text: str) -> tuple[str, str]:
    """Read `key=value`."""
    key, equals, value = text.partition("=")
    if not (key and equals):
        raise argparse.ArgumentTypeError(f"{text!r} is no label: write it like zone=a")
    return key, value


def describe(
    parser: argparse.ArgumentParser,
    description: str,
    *,
    example: str,
    exits: Mapping[ExitCode, str] | None = None,
    asks: bool = True,
) -> None:
    """Set a command's help; `exits`: exit codes of its own, `asks`: whether it makes requests."""
    special = exits or {}
    of_peer = REGISTRY_MEANINGS if parser.prog.startswith("gpu-agent registry ") else AGENT_MEANINGS
    meanings = {**MEANINGS, ExitCode.OK: "done", **of_peer, **special}
    usual = EXITS_OF_REQUESTS if asks else (ExitCode.OK, ExitCode.CONFIGURATION)
    codes = {code: meanings[code] for code in sorted({*usual, *special})}
    parser.description = fill_paragraphs(description)
    parser.epilog = "\n".join(["example:", f"  {example}", "", "exit codes:", *exit_code_lines(codes)])


def fill_paragraphs(words: str) -> str:
    """Fill paragraphs, which blank lines separate, to the width of an old terminal."""
    paragraphs = (textwrap.fill(part, _COLUMNS, break_on_hyphens=False) for part in words.split("\n\n"))
    return "\n\n".join(paragraphs)


def exit_code_lines(meanings: Mapping[ExitCode, str]) -> Iterator[str]:
    """Return a line for each exit code."""
    return (f"  {int(code):>3}  {meaning}" for code, meaning in meanings.items())


_STDOUT, _USUAL_COLUMNS = 1, 80

Configure = Callable[[argparse.ArgumentParser], None]
"""Add the command's arguments and its help."""
Run = Callable[[argparse.Namespace], int]
"""Do the work; return the exit code or raise `Failure`."""
Commands = Mapping[str, tuple[Configure, Run]]
"""The commands of one module by their last word, each with its two functions."""


@dataclass(frozen=True, slots=True)
class Command:
    """A command: what loads its module's commands, and one line about it."""

    load: Callable[[], Commands]
    summary: str


@dataclass(frozen=True, slots=True)
class Group:
    """Commands under one word, by subject."""

    summary: str
    description: str
    what: str
    """What the next word is called: a command, an action, …"""
    subjects: Mapping[str, Mapping[str, "Command | Group"]]

    @property
    def commands(self) -> dict[str, "Command | Group"]:
        """Return all commands of the group, in the order of its subjects."""
        return {name: one for subject in self.subjects.values() for name, one in subject.items()}


class Parser(argparse.ArgumentParser):
    """argparse, with our exit code for wrong arguments, and no abbreviated options.

    `--join-token X` must not pass for `--join-token-file X`: other users could read the token.
    """

    def error(self, message: str) -> NoReturn:
        """Raise `Failure` with the fault and the next step."""
        raise Failure(f"{message}\nSee `{self.prog} --help`.", ExitCode.CONFIGURATION)


class Formatter(argparse.RawDescriptionHelpFormatter):
    """Finds the terminal's width without what argparse loads for that; breaks no path or command."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, width=_columns() - 2)

    def _split_lines(self, text: str, width: int) -> list[str]:
        return textwrap.wrap(" ".join(text.split()), width, break_on_hyphens=False)


def parser_of(configure: Configure, path: Sequence[str]) -> Parser:
    """Return the parser of one command, as its module configures it."""
    parser = Parser(prog=" ".join(path), formatter_class=Formatter, allow_abbrev=False)
    configure(parser)
    return parser


def _columns() -> int:
    given = os.environ.get("COLUMNS", "")
    if given.isdecimal() and int(given) > 0:
        return int(given)
    try:
        return os.get_terminal_size(_STDOUT).columns or _USUAL_COLUMNS
    except (OSError, ValueError):
        return _USUAL_COLUMNS
