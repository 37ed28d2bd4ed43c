"""The scripts by which bash, zsh and fish complete the words after `gpu-agent`.

They are made from the commands' own parsers, and start no program.
"""

import argparse
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum

from gpu_agent.cli.command import Command, Group, parser_of

_OF_METAVARS = {"FILE": "file", "DIR": "folder"}


class Takes(StrEnum):
    """What stands behind an option, or in an argument's place."""

    NOTHING = "nothing"
    CHOICE = "choice"
    FILE = "file"
    FOLDER = "folder"
    VALUE = "value"
    """A value that cannot be completed."""


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
            yield _command_place(one, (*words, name))


def _command_place(command: Command, words: tuple[str, ...]) -> Place:
    configure, _ = command.load()[words[-1]]
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


_BASH_HEAD = r"""# bash completion for gpu-agent
_gpu_agent() {
    local cur=${COMP_WORDS[COMP_CWORD]} prev=${COMP_WORDS[COMP_CWORD-1]} at=gpu-agent words= files= i
    if [[ $cur == "=" ]]; then
        cur=
    elif [[ $prev == "=" ]]; then
        prev=${COMP_WORDS[COMP_CWORD-2]}
    fi
    COMPREPLY=()
    for ((i = 1; i < COMP_CWORD; i++)); do
        case "$at ${COMP_WORDS[i]}" in
"""
_BASH_TAIL = r"""    esac
    if [[ $files ]]; then
        compopt -o filenames 2>/dev/null
        mapfile -t COMPREPLY < <(compgen "-$files" -- "$cur")
    else
        mapfile -t COMPREPLY < <(compgen -W "$words" -- "$cur")
    fi
}
complete -F _gpu_agent gpu-agent
"""
_BASH_FILES = {Takes.FILE: "f", Takes.FOLDER: "d"}


def bash_script(places: Iterable[Place]) -> str:
    """Write the script."""
    known = list(places)
    return "".join(
        [_BASH_HEAD, *_bash_paths(known), *_bash_values(known), *_bash_followers(known), _BASH_TAIL]
    )


def _bash_paths(places: Iterable[Place]) -> Iterator[str]:
    led = [f'"{place.typed}"' for place in places if len(place.words) > 1]
    yield f"            {' | '.join(led)})\n"
    yield '                at+=" ${COMP_WORDS[i]}" ;;\n        esac\n    done\n'


def _bash_values(places: Iterable[Place]) -> Iterator[str]:
    """What stands behind an option that takes something."""
    yield '    case "$at $prev" in\n'
    for place in places:
        for offer in place.options:
            if offer.takes is not Takes.NOTHING:
                names = " | ".join(f'"{place.typed} {name}"' for name in offer.names)
                yield f"        {names})\n            {_bash_offer(offer)} ;;\n"
    yield "        *)\n"


def _bash_followers(places: Iterable[Place]) -> Iterator[str]:
    """What stands behind a command: its options where a dash is typed, else what it takes."""
    yield '            case "$at" in\n'
    for place in places:
        options = " ".join(name for offer in place.options for name in offer.names)
        yield f'                "{place.typed}")\n'
        yield f'                    words="{options}"\n'
        yield f"                    [[ $cur == -* ]] || {_bash_arguments(place)} ;;\n"
    yield "            esac ;;\n"


def _bash_arguments(place: Place) -> str:
    if place.commands:
        return f'words="{" ".join(place.commands)}"'
    return next((_bash_offer(one) for one in place.arguments if one.takes is not Takes.VALUE), "words=")


def _bash_offer(offer: Offer) -> str:
    if offer.takes in _BASH_FILES:
        return f"files={_BASH_FILES[offer.takes]}"
    return f'words="{" ".join(offer.choices)}"'


_ZSH_HEAD = r"""#compdef gpu-agent
_gpu_agent() {
    local at=gpu-agent i=2
    local -a commands
    while (( i < CURRENT )); do
        case "$at ${words[i]}" in
"""
_ZSH_TAIL = r"""    esac
}
if [[ ${funcstack[1]-} == _gpu-agent ]]; then
    _gpu_agent "$@"
else
    compdef _gpu_agent gpu-agent
fi
"""
_ZSH_ACTIONS = {Takes.FILE: "_files", Takes.FOLDER: "_files -/", Takes.VALUE: " "}


def zsh_script(places: Iterable[Place]) -> str:
    """Write the script."""
    known = list(places)
    return "".join([_ZSH_HEAD, *_zsh_paths(known), *_zsh_followers(known), _ZSH_TAIL])


def _zsh_paths(places: Iterable[Place]) -> Iterator[str]:
    led = "|".join(f'"{place.typed}"' for place in places if len(place.words) > 1)
    yield f"            ({led})\n"
    yield '                at+=" ${words[i]}"; (( i++ )) ;;\n            (*)\n                break ;;\n'
    yield "        esac\n    done\n"
    yield '    words=("$at" "${(@)words[i,-1]}")\n    (( CURRENT -= i - 2 ))\n    case "$at" in\n'


def _zsh_followers(places: Iterable[Place]) -> Iterator[str]:
    for place in places:
        yield f'        ("{place.typed}")\n'
        if place.commands:
            listed = " ".join(_zsh_quote(f"{name}:{about}") for name, about in place.commands.items())
            yield f"            commands=({listed})\n            _describe command commands\n"
        specs = [_zsh_quote(spec) for offer in place.options for spec in _zsh_option(offer)]
        specs += [_zsh_quote(f"*:{_zsh_argument(one)}") for one in place.arguments[:1]]
        yield f"            _arguments {' '.join(specs)} ;;\n"


def _zsh_option(offer: Offer) -> Iterator[str]:
    for name in offer.names:
        behind = "" if offer.takes is Takes.NOTHING else f":{_zsh_argument(offer)}"
        yield f"{name}[{_zsh_words(offer.help)}]{behind}"


def _zsh_argument(offer: Offer) -> str:
    action = f"({' '.join(offer.choices)})" if offer.takes is Takes.CHOICE else _ZSH_ACTIONS[offer.takes]
    return f"{offer.takes}:{action}"


def _zsh_words(help_: str) -> str:
    return re.sub(r"([\[\]:\\])", r"\\\1", help_)


def _zsh_quote(words: str) -> str:
    return "'" + words.replace("'", "'\\''") + "'"


_FISH_HEAD = """# fish completion for gpu-agent
function __gpu_agent_at
    set -l at gpu-agent
    set -l typed (commandline -opc)
    for word in $typed[2..-1]
        switch "$at $word"
"""
_FISH_AFTER_PATHS = """                set at "$at $word"
        end
    end
    test "$at" = "$argv[1]"
end
complete -c gpu-agent -f
"""


def fish_script(places: Iterable[Place]) -> str:
    """Write the script."""
    known = list(places)
    led = " ".join(_fish_quote(place.typed) for place in known if len(place.words) > 1)
    return "".join([_FISH_HEAD, f"            case {led}\n", _FISH_AFTER_PATHS, *_fish_followers(known)])


def _fish_followers(places: Iterable[Place]) -> Iterator[str]:
    for place in places:
        at = f"complete -c gpu-agent -n {_fish_quote(f'__gpu_agent_at {_fish_quote(place.typed)}')}"
        for name, about in place.commands.items():
            yield f"{at} -a {name} -d {_fish_quote(about)}\n"
        for offer in place.options:
            yield f"{at} {_fish_names(offer)}{_fish_taken(offer)} -d {_fish_quote(offer.help)}\n"
        for argument in place.arguments:
            if argument.takes in (Takes.FILE, Takes.FOLDER):
                yield f"{at} -F\n"
            elif argument.takes is Takes.CHOICE:
                yield f"{at} -a {_fish_quote(' '.join(argument.choices))}\n"


def _fish_names(offer: Offer) -> str:
    return " ".join(f"-l {name[2:]}" if name.startswith("--") else f"-s {name[1:]}" for name in offer.names)


def _fish_taken(offer: Offer) -> str:
    match offer.takes:
        case Takes.NOTHING:
            return ""
        case Takes.CHOICE:
            return f" -x -a {_fish_quote(' '.join(offer.choices))}"
        case Takes.FILE | Takes.FOLDER:
            return " -r -F"
        case Takes.VALUE:
            return " -x"


def _fish_quote(words: str) -> str:
    return "'" + words.replace("\\", "\\\\").replace("'", "\\'") + "'"


SCRIPTS = {"bash": bash_script, "zsh": zsh_script, "fish": fish_script}


def script_for(shell: str, root: Group) -> str:
    """Write the script for bash, zsh or fish."""
    return SCRIPTS[shell](places(root))
