"""The completion of `gpu-agent` for fish: a file `gpu-agent.fish` in its search path, or sourced.

It starts no program.
"""

from collections.abc import Iterable, Iterator

from gpu_agent.cli.documents.completion_words import Offer, Place, Takes

_HEAD = """# fish completion for gpu-agent
function __gpu_agent_at
    set -l at gpu-agent
    set -l typed (commandline -opc)
    for word in $typed[2..-1]
        switch "$at $word"
"""
_AFTER_WAYS = """                set at "$at $word"
        end
    end
    test "$at" = "$argv[1]"
end
complete -c gpu-agent -f
"""


def script(places: Iterable[Place]) -> str:
    """Write the script."""
    known = list(places)
    led = " ".join(_quoted(place.typed) for place in known if len(place.words) > 1)
    return "".join([_HEAD, f"            case {led}\n", _AFTER_WAYS, *_followers(known)])


def _followers(places: Iterable[Place]) -> Iterator[str]:
    for place in places:
        at = f"complete -c gpu-agent -n {_quoted(f'__gpu_agent_at {_quoted(place.typed)}')}"
        for name, about in place.commands.items():
            yield f"{at} -a {name} -d {_quoted(about)}\n"
        for offer in place.options:
            yield f"{at} {_names(offer)}{_taken(offer)} -d {_quoted(offer.help)}\n"
        for argument in place.arguments:
            if argument.takes in (Takes.FILE, Takes.FOLDER):
                yield f"{at} -F\n"
            elif argument.takes is Takes.CHOICE:
                yield f"{at} -a {_quoted(' '.join(argument.choices))}\n"


def _names(offer: Offer) -> str:
    return " ".join(f"-l {name[2:]}" if name.startswith("--") else f"-s {name[1:]}" for name in offer.names)


def _taken(offer: Offer) -> str:
    match offer.takes:
        case Takes.NOTHING:
            return ""
        case Takes.CHOICE:
            return f" -x -a {_quoted(' '.join(offer.choices))}"
        case Takes.FILE | Takes.FOLDER:
            return " -r -F"
        case Takes.VALUE:
            return " -x"


def _quoted(words: str) -> str:
    return "'" + words.replace("\\", "\\\\").replace("'", "\\'") + "'"
