"""How a command of a scenario finds what it does: those who know directions teach them here."""

import re
from collections.abc import Callable, Iterable

from gpu_agent.registry.actions import Result
from tests.scenarios.theatre import Theatre
from tests.scenarios.transcript import Line
from tests.scenarios.wording import answered

Direction = Callable[[Theatre, dict[str, str]], None]
_DIRECTIONS: list[tuple[re.Pattern[str], Direction]] = []

NODE = r"(?P<name>[a-z]+\d*)"


class UnknownDirectionError(Exception):
    """A command that no direction matches: the scenario's fault."""


def direction(pattern: str) -> Callable[[Direction], Direction]:
    """Teach what is done about commands of this form."""

    def learn(do: Direction) -> Direction:
        _DIRECTIONS.append((re.compile(pattern), do))
        return do

    return learn


def perform(theatre: Theatre, command: str) -> None:
    for pattern, do in _DIRECTIONS:
        match = pattern.fullmatch(command)
        if match is not None:
            do(theatre, {name: value or "" for name, value in match.groupdict().items()})
            return
    raise UnknownDirectionError(
        f"{command!r} is no direction: tests/scenarios/script.py and token_directions.py have those that are"
    )


def tell_answer(theatre: Theatre, asker: str, result: Result) -> None:
    tell(theatre, asker, answered(result, theatre.now))


def tell(theatre: Theatre, asker: str, lines: Iterable[str]) -> None:
    for line in lines:
        theatre.transcript.add(Line(theatre.now, "registry → {}", asker, line))
