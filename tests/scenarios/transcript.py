"""A transcript in the making: what was said and decided, as lines that a person can read.

Folds what would tire the reader: beats in a steady row, and what many nodes do in the same instant.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import groupby

MANY = 3
"""So many nodes doing the same at once are still told one by one."""

_COLUMN = 24


@dataclass(frozen=True, slots=True)
class Line:
    """One thing that happened. `who` holds `{}` where the node stands."""

    at: float
    who: str
    node: str
    text: str
    beat: bool = False
    """True for a beat, which may be folded with those that follow it."""


class Transcript:
    """Collects lines until they are read."""

    def __init__(self) -> None:
        self.recording = True
        self._lines: list[Line] = []

    def add(self, line: Line) -> None:
        """Write a line, unless nothing is to be recorded."""
        if self.recording:
            self._lines.append(line)

    def read(self) -> list[str]:
        """Take what was written since the last time, folded."""
        lines, self._lines = self._lines, []
        folded: list[Line] = []
        for beats, run in groupby(lines, key=lambda line: line.beat):
            told = list(run)
            folded += _beats_folded(told) if beats else told
        crowds = (
            one for _, instant in groupby(folded, key=lambda line: line.at) for one in _crowds_folded(instant)
        )
        return [_written(line) for line in crowds]


def _beats_folded(run: Iterable[Line]) -> list[Line]:
    """Fold the beats between two other lines: those in a row of one node that say the same become one."""
    rows: list[list[Line]] = []
    newest: dict[str, list[Line]] = {}
    for line in run:
        row = newest.get(line.node)
        if row is None or row[0].text != line.text:
            row = newest[line.node] = []
            rows.append(row)
        row.append(line)
    return [_row_folded(row) for row in rows]


def _row_folded(row: list[Line]) -> Line:
    if len(row) == 1:
        return row[0]
    again = f"beats × {len(row)}, the last at {row[-1].at:.2f} s"  # noqa: RUF001 - a times sign
    return replace(row[0], text=row[0].text.replace("beat", again, 1))


def _crowds_folded(instant: Iterable[Line]) -> Iterator[Line]:
    """Fold what more than a few nodes do in one instant, in the place of the first of them."""
    groups: dict[tuple[str, str], list[Line]] = {}
    for line in instant:
        groups.setdefault((line.who, line.text), []).append(line)
    for group in groups.values():
        names = sorted({line.node for line in group})
        if len(names) > MANY:
            yield replace(group[0], node=f"{len(names)} nodes", text=f"{group[0].text} [{' '.join(names)}]")
        else:
            yield from group


def _written(line: Line) -> str:
    return f"{line.at:9.2f} s  {line.who.format(line.node):<{_COLUMN}}  {line.text}"
