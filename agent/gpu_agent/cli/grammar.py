"""What a command is: the functions that configure and run it, the group that it stands in, its parser.

A group lists its commands by subject, as a person looks for them. Loads no command.
"""

import argparse
import os
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NoReturn

from gpu_agent.cli.outcome import ExitCode, Failure

_STDOUT, _USUAL_COLUMNS = 1, 80

Configure = Callable[[argparse.ArgumentParser], None]
"""Add the command's arguments, and a description that teaches."""
Run = Callable[[argparse.Namespace], int]
"""Do the work; return the exit code or raise `Failure`."""


@dataclass(frozen=True, slots=True)
class Command:
    """A command: what loads it, and one line about it."""

    load: Callable[[], tuple[Configure, Run]]
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
        """All commands of the group, in the order of its subjects."""
        return {name: one for subject in self.subjects.values() for name, one in subject.items()}


class Parser(argparse.ArgumentParser):
    """argparse, with our exit code for wrong arguments, and no option by the half of its name.

    `--join-token X` must not pass for `--join-token-file X`: it would name a token where others read it.
    """

    def error(self, message: str) -> NoReturn:
        """End with the fault and the next step."""
        raise Failure(f"{message}\nSee `{self.prog} --help`.", ExitCode.CONFIGURATION)


class Formatter(argparse.RawDescriptionHelpFormatter):
    """Knows the terminal's width, for which argparse loads a great deal; breaks no path or command."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, width=_columns() - 2)

    def _split_lines(self, text: str, width: int) -> list[str]:
        return textwrap.wrap(" ".join(text.split()), width, break_on_hyphens=False)


def parser_of(configure: Configure, path: Sequence[str]) -> Parser:
    """The parser of one command, as its module configures it."""
    parser = Parser(prog=" ".join(path), formatter_class=Formatter, allow_abbrev=False)
    configure(parser)
    return parser


def _columns() -> int:
    told = os.environ.get("COLUMNS", "")
    if told.isdecimal() and int(told) > 0:
        return int(told)
    try:
        return os.get_terminal_size(_STDOUT).columns or _USUAL_COLUMNS
    except (OSError, ValueError):
        return _USUAL_COLUMNS
