"""What may be typed after `gpu-agent`, word by word, out of the commands' own parsers.

Shells complete by it. It says what each option takes as far as its parser does. It knows no shell.
"""

import argparse
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum

from gpu_agent.cli.grammar import Command, Group, parser_of

_OF_METAVARS = {"FILE": "file", "DIR": "folder"}


class Takes(StrEnum):
    """What stands behind an option, or in an argument's place."""

    NOTHING = "nothing"
    CHOICE = "choice"
    FILE = "file"
    FOLDER = "folder"
    VALUE = "value"
    """Something that nobody can guess."""


@dataclass(frozen=True, slots=True)
class Offer:
    """An option or an argument."""

    names: tuple[str, ...]
    """Of an option; an argument has none."""
    takes: Takes
    choices: tuple[str, ...]
    help: str


@dataclass(frozen=True, slots=True)
class Place:
    """What may follow a command, or the words that lead to one."""

    words: tuple[str, ...]
    commands: Mapping[str, str]
    """The words that lead on, each with a line about it."""
    options: tuple[Offer, ...]
    arguments: tuple[Offer, ...]

    @property
    def typed(self) -> str:
        """The words as they are typed."""
        return " ".join(self.words)


def places(group: Group, words: tuple[str, ...] = ("gpu-agent",)) -> Iterator[Place]:
    """Yield every place, those that lead on before those that they lead to."""
    help_ = Offer(("-h", "--help"), Takes.NOTHING, (), "show this help message and exit")
    version = Offer(("--version",), Takes.NOTHING, (), "show the version and exit")
    options = (help_, version) if words == ("gpu-agent",) else (help_,)
    summaries = {name: one.summary for name, one in group.commands.items()}
    yield Place(words, summaries, options, ())
    for name, one in group.commands.items():
        if isinstance(one, Group):
            yield from places(one, (*words, name))
        else:
            yield _of_command(one, (*words, name))


def _of_command(command: Command, words: tuple[str, ...]) -> Place:
    configure, _ = command.load()
    actions = parser_of(configure, words)._actions  # noqa: SLF001 - argparse lists its options nowhere else
    offers = [_offer(action) for action in actions]
    options = tuple(offer for offer in offers if offer.names)
    return Place(words, {}, options, tuple(offer for offer in offers if not offer.names))


def _offer(action: argparse.Action) -> Offer:
    choices = tuple(map(str, action.choices or ()))
    if action.nargs == 0:
        takes = Takes.NOTHING
    elif choices:
        takes = Takes.CHOICE
    else:
        takes = Takes(_OF_METAVARS.get(str(action.metavar), Takes.VALUE))
    return Offer(tuple(action.option_strings), takes, choices, action.help or "")
