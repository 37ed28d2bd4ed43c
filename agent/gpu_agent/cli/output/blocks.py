"""The parts of a page, and which of them give way on a terminal that is too low for all."""

from collections.abc import Callable, Iterable, Sequence

from gpu_agent.cli.output.text import BLANK, Line, Piece, join_blocks, line, wrap
from gpu_agent.records import dataclass


@dataclass(frozen=True, slots=True)
class Block:
    """A part of a page."""

    name: str
    lines: Sequence[Line]
    leaves: int = 0
    """Which parts are left out first, the lowest number before others; 0 always stays."""
    cut: Callable[[int], Sequence[Line]] | None = None
    """Draws the part with so many lines."""


def fit_page(blocks: Iterable[Block], lines: int) -> tuple[list[Line], list[str]]:
    """Draw what a terminal of so many lines has room for; returns the names of what is left out, too.

    The blank lines between parts go first, then parts, then what a part can do without.
    """
    shown = [block for block in blocks if block.lines]
    page = join_blocks(block.lines for block in shown)
    if len(page) <= lines:
        return page, []
    left_out: list[str] = []
    for block in sorted((one for one in shown if one.leaves), key=lambda one: one.leaves):
        if _height(shown) <= lines:
            break
        shown.remove(block)
        left_out.append(block.name)
    over = _height(shown) - lines
    parts = [
        block.cut(max(1, len(block.lines) - over)) if over > 0 and block.cut else block.lines
        for block in shown
    ]
    return [one for part in parts for one in part][:lines], left_out


def foot_lines(words: Line, left_out: Sequence[str], columns: int) -> list[Line]:
    """Draw what stands below a page that is redrawn."""
    more = f"; no room for {', '.join(left_out)}" if left_out else ""
    return [BLANK, *wrap(line(*words, Piece(f"{more}; Ctrl-C ends", "dim")), columns)]


def _height(blocks: Iterable[Block]) -> int:
    return sum(len(block.lines) for block in blocks)
