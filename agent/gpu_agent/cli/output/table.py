"""Tables that fit the terminal: columns give way by priority, cells wrap, nothing is cut off.

The only renderer of tables: a library such as rich wraps or cuts every column alike, and drops none.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import zip_longest

from gpu_agent.cli.output.text import BLANK, Line, Piece, line, line_width, wrap

_GAP = Piece("  ")
_INDENT = Piece("    ")
_ROOM_FOR_NOTES = 30
"""With less room than this behind the rows, notes go beneath."""
_NARROWEST = 8
_ENDLESS = 1_000_000
Fact = tuple[str, Line]
"""A name and its value in words."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """A column: its head, and how it gives way where there is no room."""

    head: str
    right: bool = False
    priority: int = 0
    """Columns with a priority are dropped where there is no room, the lowest first; 0 always stays."""
    wraps: bool = False
    """Whether its cells may be wrapped once every column with a priority is dropped."""


@dataclass(frozen=True, slots=True)
class Row:
    """A row: a cell for each column, and a note."""

    cells: Sequence[Line]
    note: Line = BLANK


@dataclass(frozen=True, slots=True)
class Table:
    """A table; `note` is the head of the notes where they form a column."""

    columns: Sequence[Column]
    rows: Sequence[Row]
    note: str = ""
    """Without any head there is no line of heads."""


@dataclass(frozen=True, slots=True)
class _Layout:
    shown: tuple[int, ...]
    widths: tuple[int, ...]
    narrowed: tuple[int | None, ...]
    """The width to which a column's cells are wrapped; None where all fit."""
    columns: int
    behind: int
    """Room for notes behind the rows; 0: they go beneath."""


def render_table(table: Table, columns: int | None = None) -> list[Line]:
    """Lay a table out for a terminal of so many columns, None for no terminal. Without rows: no lines."""
    layout = _layout(table, _ENDLESS if columns is None else columns)
    head = Row([(Piece(column.head, "bold"),) for column in table.columns], (Piece(table.note, "bold"),))
    headed = layout.behind and any(row.note for row in table.rows)
    lines: list[Line] = []
    if table.rows and any(column.head for column in table.columns):
        lines += _render_row(table, head if headed else Row(head.cells), layout)
    for row in table.rows:
        lines += _render_row(table, row, layout)
    return lines


def render_facts(facts: Iterable[Fact], columns: int | None) -> list[Line]:
    """Lay out facts as names with their values."""
    rows = [Row((line(Piece(name, "dim")), words)) for name, words in facts]
    return render_table(Table((Column(head=""), Column(head="", wraps=True)), rows), columns)


def _layout(table: Table, columns: int) -> _Layout:
    full = [
        max([len(column.head), *[line_width(row.cells[index]) for row in table.rows]])
        for index, column in enumerate(table.columns)
    ]
    shown = list(range(len(full)))
    droppable = sorted(
        (index for index in shown if table.columns[index].priority),
        key=lambda index: table.columns[index].priority,
    )
    while droppable and _table_width([full[index] for index in shown]) > columns:
        shown.remove(droppable.pop(0))
    widths = [full[index] for index in shown]
    while _table_width(widths) > columns:
        wrapping = [
            index for index, at in enumerate(shown) if table.columns[at].wraps and widths[index] > _NARROWEST
        ]
        if not wrapping:
            break
        widths[max(wrapping, key=widths.__getitem__)] -= 1
    narrowed = [None if width == full[at] else width for at, width in zip(shown, widths, strict=True)]
    widths = [
        width if narrow is None else _wrapped_width(table, at, narrow)
        for at, width, narrow in zip(shown, widths, narrowed, strict=True)
    ]
    behind = columns - _table_width(widths) - len(_GAP.text)
    notes = behind if behind >= _ROOM_FOR_NOTES else 0
    return _Layout(tuple(shown), tuple(widths), tuple(narrowed), columns, notes)


def _wrapped_width(table: Table, index: int, columns: int) -> int:
    """How wide a column is whose cells are wrapped to so many columns: often narrower."""
    parts = (part for row in table.rows for part in wrap(row.cells[index], columns))
    return max(len(table.columns[index].head), *map(line_width, parts))


def _table_width(widths: Sequence[int]) -> int:
    return sum(widths) + len(_GAP.text) * (len(widths) - 1)


def _render_row(table: Table, row: Row, layout: _Layout) -> Iterator[Line]:
    cells = [
        wrap(row.cells[index], columns) for index, columns in zip(layout.shown, layout.narrowed, strict=True)
    ]
    notes = wrap(row.note, layout.behind) if row.note and layout.behind else []
    rights = [table.columns[index].right for index in layout.shown]
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
    """Drop blanks at the end, so that they are not copied."""
    while pieces and not pieces[-1].text.strip():
        pieces.pop()
    return tuple([piece for piece in pieces if piece.text])
