"""A drawing of boxes and arrows in text, as a picture: docs/assets/*.txt become *.svg beside them.

    python -m tools.diagram                 what `make pictures` does first

The text is the source, and readable by itself. Corners `┌ ┐ └ ┘` make a box, whose first line may begin with
its title; `─ │` are lines, `├ ┤ ┬ ┴` where one leaves a box, `┼` where one crosses a side, `▶ ◀ ▼ ▲` arrows.
"""

import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from html import escape
from pathlib import Path

FOLDER = Path(__file__).parent.parent / "docs" / "assets"
_WIDTH, _HEIGHT = 8.4, 19.0
"""Of a character, in pixels; the text has 14 of them in height."""
_ALONG, _DOWN = "─├┤┼▶◀", "│┬┴▲▼"
_STYLE = """
  text { font: 14px ui-monospace, "DejaVu Sans Mono", Menlo, Consolas, monospace; fill: #24292f }
  .title { fill: #00796b; font-weight: bold }
  .room { fill: #f3f7f7; stroke: #9fb7b4 }
  .box { fill: #ffffff; stroke: #00796b; stroke-width: 1.5 }
  .line { stroke: #46505a; stroke-width: 1.5; fill: none }
  .behind { fill: #fff }
  .head { fill: #46505a }
"""


@dataclass(frozen=True, slots=True)
class Box:
    """A box, by the places of its first and last characters."""

    top: int
    left: int
    bottom: int
    right: int

    def holds(self, other: "Box") -> bool:
        """Whether another box lies in it."""
        return self.top < other.top and self.left < other.left and other.right < self.right


def picture(drawing: str) -> str:
    """Draw it."""
    rows = drawing.rstrip("\n").split("\n")
    columns = max(map(len, rows))
    grid = [row.ljust(columns) for row in rows]
    boxes = list(_boxes(grid))
    width, height = columns * _WIDTH, len(grid) * _HEIGHT
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {height:g}" width="{width:g}">',
        f"<style>{_STYLE}</style>",
        f'<rect width="{width:g}" height="{height:g}" fill="#ffffff"/>',
        *(_rectangle(box, boxes) for box in boxes),
        *_lines(grid, boxes),
        *_texts(grid, boxes),
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


def _boxes(grid: list[str]) -> Iterator[Box]:
    for top, row in enumerate(grid):
        for left, mark in enumerate(row):
            if mark == "┌":
                bottom = next(below for below in range(top + 1, len(grid)) if grid[below][left] == "└")
                yield Box(top, left, bottom, row.index("┐", left))


def _rectangle(box: Box, boxes: list[Box]) -> str:
    kind = "room" if any(box.holds(other) for other in boxes) else "box"
    x, y = _middle(box.top, box.left)
    width, height = (box.right - box.left) * _WIDTH, (box.bottom - box.top) * _HEIGHT
    return f'<rect class="{kind}" x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="6"/>'


def _lines(grid: list[str], boxes: list[Box]) -> Iterator[str]:
    edges = {
        (row, column)
        for box in boxes
        for row in (box.top, box.bottom)
        for column in range(box.left, box.right + 1)
    }
    sides = {
        (row, column)
        for box in boxes
        for column in (box.left, box.right)
        for row in range(box.top, box.bottom + 1)
    }
    along = [[(row, column) for column in range(len(grid[0]))] for row in range(len(grid))]
    down = [[(row, column) for row in range(len(grid))] for column in range(len(grid[0]))]
    for cells in along:
        yield from _runs(grid, [cell for cell in cells if cell not in edges], _ALONG)
    for cells in down:
        yield from _runs(
            grid, [cell for cell in cells if grid[cell[0]][cell[1]] != "│" or cell not in sides], _DOWN
        )


def _runs(grid: list[str], cells: list[tuple[int, int]], marks: str) -> Iterator[str]:
    """Draw each unbroken run of these marks, with its heads."""
    run: list[tuple[int, int]] = []
    for cell in [*cells, (-9, -9)]:
        near = bool(run) and abs(cell[0] - run[-1][0]) + abs(cell[1] - run[-1][1]) == 1
        is_mark = cell[0] >= 0 and grid[cell[0]][cell[1]] in marks
        if run and not (near and is_mark):
            if len(run) > 1:
                yield from _line(grid, run)
            run = []
        if is_mark:
            run.append(cell)


def _line(grid: list[str], run: list[tuple[int, int]]) -> Iterator[str]:
    points = [_middle(*run[0]), _middle(*run[-1])]
    for end, (row, column) in enumerate((run[0], run[-1])):
        step = {"▶": (0, 1), "◀": (0, -1), "▼": (1, 0), "▲": (-1, 0)}.get(grid[row][column])
        if step is None:
            continue
        tip = _middle(row + step[0], column + step[1])
        across, along = step[0] * 5, step[1] * 5
        back = (tip[0] - step[1] * 9, tip[1] - step[0] * 9)
        corners = (tip, (back[0] - across, back[1] - along), (back[0] + across, back[1] + along))
        yield f'<polygon class="head" points="{" ".join(f"{x:g},{y:g}" for x, y in corners)}"/>'
        points[end] = back
    (x1, y1), (x2, y2) = points
    yield f'<line class="line" x1="{x1:g}" y1="{y1:g}" x2="{x2:g}" y2="{y2:g}"/>'


def _texts(grid: list[str], boxes: list[Box]) -> Iterator[str]:
    drawn = set("┌┐└┘") | set(_ALONG) | set(_DOWN)
    for row, line in enumerate(grid):
        bare = "".join(" " if mark in drawn else mark for mark in line)
        for words in re.finditer(r"\S+(?: \S+)*", bare):
            is_title = any(box.top == row and box.left < words.start() < box.right for box in boxes)
            yield from _text(words[0], row, words.start(), is_title=is_title)


def _text(words: str, row: int, column: int, *, is_title: bool) -> Iterator[str]:
    x, width, baseline = column * _WIDTH, len(words) * _WIDTH, (row + 0.72) * _HEIGHT
    if is_title:  # the side of the box passes behind it
        yield f'<rect class="behind" x="{x - 4:g}" y="{row * _HEIGHT:g}" width="{width + 8:g}" height="19"/>'
    kind = ' class="title"' if is_title else ""
    yield (
        f'<text{kind} x="{x:g}" y="{baseline:g}" textLength="{width:g}" lengthAdjust="spacingAndGlyphs">'
        f"{escape(words)}</text>"
    )


def _middle(row: int, column: int) -> tuple[float, float]:
    return (column + 0.5) * _WIDTH, (row + 0.5) * _HEIGHT


def main() -> int:
    """Draw all of them."""
    for source in sorted(FOLDER.glob("*.txt")):
        source.with_suffix(".svg").write_text(picture(source.read_text(encoding="utf-8")), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
