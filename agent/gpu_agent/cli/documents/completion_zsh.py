"""The completion of `gpu-agent` for zsh: a file `_gpu-agent` in its search path, or sourced.

Who sources it has called `compinit` before. It starts no program.
"""

import re
from collections.abc import Iterable, Iterator

from gpu_agent.cli.documents.completion_words import Offer, Place, Takes

_HEAD = r"""#compdef gpu-agent
_gpu_agent() {
    local at=gpu-agent i=2
    local -a commands
    while (( i < CURRENT )); do
        case "$at ${words[i]}" in
"""
_TAIL = r"""    esac
}
if [[ ${funcstack[1]-} == _gpu-agent ]]; then
    _gpu_agent "$@"
else
    compdef _gpu_agent gpu-agent
fi
"""
_ACTIONS = {Takes.FILE: "_files", Takes.FOLDER: "_files -/", Takes.VALUE: " "}


def script(places: Iterable[Place]) -> str:
    """Write the script."""
    known = list(places)
    return "".join([_HEAD, *_ways(known), *_followers(known), _TAIL])


def _ways(places: Iterable[Place]) -> Iterator[str]:
    led = "|".join(f'"{place.typed}"' for place in places if len(place.words) > 1)
    yield f"            ({led})\n"
    yield '                at+=" ${words[i]}"; (( i++ )) ;;\n            (*)\n                break ;;\n'
    yield "        esac\n    done\n"
    yield '    words=("$at" "${(@)words[i,-1]}")\n    (( CURRENT -= i - 2 ))\n    case "$at" in\n'


def _followers(places: Iterable[Place]) -> Iterator[str]:
    for place in places:
        yield f'        ("{place.typed}")\n'
        if place.commands:
            listed = " ".join(_quoted(f"{name}:{about}") for name, about in place.commands.items())
            yield f"            commands=({listed})\n            _describe command commands\n"
        specs = [_quoted(spec) for offer in place.options for spec in _option(offer)]
        specs += [_quoted(f"*:{_argument(one)}") for one in place.arguments[:1]]
        yield f"            _arguments {' '.join(specs)} ;;\n"


def _option(offer: Offer) -> Iterator[str]:
    for name in offer.names:
        behind = "" if offer.takes is Takes.NOTHING else f":{_argument(offer)}"
        yield f"{name}[{_words(offer.help)}]{behind}"


def _argument(offer: Offer) -> str:
    action = f"({' '.join(offer.choices)})" if offer.takes is Takes.CHOICE else _ACTIONS[offer.takes]
    return f"{offer.takes}:{action}"


def _words(help_: str) -> str:
    return re.sub(r"([\[\]:\\])", r"\\\1", help_)


def _quoted(words: str) -> str:
    return "'" + words.replace("'", "'\\''") + "'"
