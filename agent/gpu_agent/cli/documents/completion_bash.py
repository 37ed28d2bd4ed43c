"""The completion of `gpu-agent` for bash. It needs nothing but bash itself, and starts no program."""

from collections.abc import Iterable, Iterator

from gpu_agent.cli.documents.completion_words import Offer, Place, Takes

_HEAD = r"""# bash completion for gpu-agent
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
_TAIL = r"""    esac
    if [[ $files ]]; then
        compopt -o filenames 2>/dev/null
        mapfile -t COMPREPLY < <(compgen "-$files" -- "$cur")
    else
        mapfile -t COMPREPLY < <(compgen -W "$words" -- "$cur")
    fi
}
complete -F _gpu_agent gpu-agent
"""
_FILES = {Takes.FILE: "f", Takes.FOLDER: "d"}


def script(places: Iterable[Place]) -> str:
    """Write the script."""
    known = list(places)
    return "".join([_HEAD, *_ways(known), *_values(known), *_followers(known), _TAIL])


def _ways(places: Iterable[Place]) -> Iterator[str]:
    led = [f'"{place.typed}"' for place in places if len(place.words) > 1]
    yield f"            {' | '.join(led)})\n"
    yield '                at+=" ${COMP_WORDS[i]}" ;;\n        esac\n    done\n'


def _values(places: Iterable[Place]) -> Iterator[str]:
    """What stands behind an option that takes something."""
    yield '    case "$at $prev" in\n'
    for place in places:
        for offer in place.options:
            if offer.takes is not Takes.NOTHING:
                names = " | ".join(f'"{place.typed} {name}"' for name in offer.names)
                yield f"        {names})\n            {_offered(offer)} ;;\n"
    yield "        *)\n"


def _followers(places: Iterable[Place]) -> Iterator[str]:
    """What stands behind a command: its options where a dash is typed, else what it takes."""
    yield '            case "$at" in\n'
    for place in places:
        options = " ".join(name for offer in place.options for name in offer.names)
        yield f'                "{place.typed}")\n'
        yield f'                    words="{options}"\n'
        yield f"                    [[ $cur == -* ]] || {_arguments(place)} ;;\n"
    yield "            esac ;;\n"


def _arguments(place: Place) -> str:
    if place.commands:
        return f'words="{" ".join(place.commands)}"'
    return next((_offered(one) for one in place.arguments if one.takes is not Takes.VALUE), "words=")


def _offered(offer: Offer) -> str:
    if offer.takes in _FILES:
        return f"files={_FILES[offer.takes]}"
    return f'words="{" ".join(offer.choices)}"'
