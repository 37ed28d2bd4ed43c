"""Tables that fit the terminal: columns give way by priority, cells wrap, nothing is cut off."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import zip_longest

from gpu_agent.cli.output.text import BLANK, Line, Piece, line_width, wrap

_GAP = Piece("  ")
_INDENT = Piece("    ")
_ROOM_FOR_NOTES = 30
"""Less room than this behind the rows is none: notes go beneath."""
_NARROWEST = 8
_ENDLESS = 1_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """A column: how it is headed, and how it gives way."""

    head: str
    right: bool = False
    worth: int = 0
    """Columns of a worth go when there is no room, the least worth first; those of 0 always stay."""
    folds: bool = False
    """Whether its cells may be wrapped when all that may go has gone."""


@dataclass(frozen=True, slots=True)
class Row:
    """A row: a cell for each column, and what else is to be said of it."""

    cells: Sequence[Line]
    note: Line = BLANK


@dataclass(frozen=True, slots=True)
class Table:
    """A table; `note` heads the notes where they stand in a column."""

    columns: Sequence[Column]
    rows: Sequence[Row]
    note: str = ""
    """Columns of which none has a head get no line of heads."""


@dataclass(frozen=True, slots=True)
class _Layout:
    kept: tuple[int, ...]
    widths: tuple[int, ...]
    columns: int
    behind: int
    """Room for notes behind the rows; 0: they go beneath."""


def render_table(sheet: Table, columns: int | None = None) -> list[Line]:
    """Lay a table out for a terminal of so many columns; None: for no terminal. No rows, no lines."""
    layout = _layout(sheet, _ENDLESS if columns is None else columns)
    head = Row([(Piece(column.head, "bold"),) for column in sheet.columns], (Piece(sheet.note, "bold"),))
    headed = layout.behind and any(row.note for row in sheet.rows)
    lines: list[Line] = []
    if sheet.rows and any(column.head for column in sheet.columns):
        lines += _render_row(sheet, head if headed else Row(head.cells), layout)
    for row in sheet.rows:
        lines += _render_row(sheet, row, layout)
    return lines


def _layout(sheet: Table, columns: int) -> _Layout:
    natural = [
        max([len(column.head), *(line_width(row.cells[place]) for row in sheet.rows)])
        for place, column in enumerate(sheet.columns)
    ]
    kept = list(range(len(natural)))
    going = sorted(
        (place for place in kept if sheet.columns[place].worth), key=lambda place: sheet.columns[place].worth
    )
    while going and _table_width([natural[place] for place in kept]) > columns:
        kept.remove(going.pop(0))
    widths = [natural[place] for place in kept]
    while _table_width(widths) > columns:
        folding = [
            place for place, at in enumerate(kept) if sheet.columns[at].folds and widths[place] > _NARROWEST
        ]
        if not folding:
            break
        widths[max(folding, key=widths.__getitem__)] -= 1
    behind = columns - _table_width(widths) - len(_GAP.text)
    return _Layout(tuple(kept), tuple(widths), columns, behind if behind >= _ROOM_FOR_NOTES else 0)


def _table_width(widths: Sequence[int]) -> int:
    return sum(widths) + len(_GAP.text) * (len(widths) - 1)


def _render_row(sheet: Table, row: Row, layout: _Layout) -> Iterator[Line]:
    cells = [
        wrap(row.cells[place], columns) for place, columns in zip(layout.kept, layout.widths, strict=True)
    ]
    notes = wrap(row.note, layout.behind) if layout.behind else []
    rights = [sheet.columns[place].right for place in layout.kept]
    for *parts, note in zip_longest(*cells, notes, fillvalue=BLANK):
        pieces: list[Piece] = []
        for part, columns, right in zip(parts, layout.widths, rights, strict=True):
            pieces += [*_pad(part, columns, right=right), _GAP]
        yield _trim([*pieces, *note])
    if row.note and not layout.behind:
        yield from ((_INDENT, *part) for part in wrap(row.note, layout.columns - len(_INDENT.text)))


def _pad(part: Line, columns: int, *, right: bool) -> Line:
    padding = Piece(" " * (columns - line_width(part)))
    return (padding, *part) if right else (*part, padding)


def _trim(pieces: list[Piece]) -> Line:
    """Without blanks at the end, which nobody wants to copy."""
    while pieces and not pieces[-1].text.strip():
        pieces.pop()
    return tuple(piece for piece in pieces if piece.text)
