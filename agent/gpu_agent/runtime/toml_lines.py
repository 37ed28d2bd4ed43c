"""Where the keys of a TOML text stand, by line: so that a fault can name the line that has it.

It reads what `tomllib` has taken before, and understands no values. A key that stands inside an inline
table is found where that table begins.
"""

import re
import tomllib
from collections.abc import Iterator, Mapping

Place = tuple[str | int, ...]
"""A key and those above it, from the top; a number is a place in an array."""

_WORD = r"""(?:[A-Za-z0-9_-]+|"[^"\n]*"|'[^'\n]*')"""
_DOTTED = rf"{_WORD}(?:[ \t]*\.[ \t]*{_WORD})*"
_TABLE = re.compile(rf"[ \t]*(?P<opened>\[\[?)[ \t]*(?P<name>{_DOTTED})[ \t]*\]")
_KEY = re.compile(rf"[ \t]*(?P<name>{_DOTTED})[ \t]*=")

_END = re.compile(r"""]|}|\"{3}|'{3}""")
"""What a line must have to end an array or a text of many lines: only such are worth reading all anew."""


def lines_of(text: str) -> Mapping[Place, int]:
    """Find every key's line, the first being 1; of a table, its heading's."""
    found: dict[Place, int] = {}
    counts: dict[Place, int] = {}
    table: Place = ()
    for number, line in _statements(text):
        heading = _TABLE.match(line)
        if heading is not None:
            table = _opened(heading, counts)
            found.setdefault(table, number)
            continue
        key = _KEY.match(line)
        if key is not None:
            found.setdefault((*table, *_steps(key["name"])), number)
    return found


def line_of(place: Place, lines: Mapping[Place, int]) -> int | None:
    """The line of a key, else of the nearest above it that stands somewhere."""
    return next((lines[place[:deep]] for deep in range(len(place), 0, -1) if place[:deep] in lines), None)


def _statements(text: str) -> Iterator[tuple[int, str]]:
    """Yield the lines that begin a statement: none that is inside an array or a text of many lines."""
    waiting: list[str] = []
    for number, line in enumerate(text.splitlines(), 1):
        if not waiting:
            yield number, line
        waiting.append(line)
        ends = len(waiting) == 1 or _END.search(line) is not None
        if ends and _whole("\n".join(waiting)):
            waiting.clear()


def _whole(part: str) -> bool:
    try:
        tomllib.loads(part)
    except tomllib.TOMLDecodeError:
        return False
    return True


def _opened(heading: re.Match[str], counts: dict[Place, int]) -> Place:
    """Name the table that a heading opens; each `[[…]]` opens another of its array."""
    place: Place = ()
    *above, last = _steps(heading["name"])
    for step in above:
        place = (*place, step)
        place = (*place, counts[place] - 1) if place in counts else place
    place = (*place, last)
    if heading["opened"] == "[[":
        counts[place] = counts.get(place, 0) + 1
    return (*place, counts[place] - 1) if place in counts else place


def _steps(dotted: str) -> list[str]:
    """Split a key at its dots, as TOML does."""
    here: object = tomllib.loads(f"{dotted} = 0")
    steps: list[str] = []
    while isinstance(here, dict):
        step, here = next(iter(here.items()))
        steps.append(step)
    return steps
