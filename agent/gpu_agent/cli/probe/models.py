"""Models as a table for a person, by kind: what cannot serve first, then the ready ones.

On a terminal a kind shows so many ready ones and counts the rest; a pipe gets every one.
"""

from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby

from gpu_agent.cli.lines import BLANK, Line, Piece, line, wrapped
from gpu_agent.cli.sheet import Column, Row, Sheet, laid_out
from gpu_agent.wire.inventory import Model, ModelStatus

SHOWN_READY = 12
"""Of each kind, on a terminal."""
STATUS_STYLES = {
    ModelStatus.READY: "green",
    ModelStatus.DOWNLOADING: "cyan",
    ModelStatus.NOT_INSTALLED: "yellow",
    ModelStatus.ERROR: "red",
}
_COLUMNS = (
    Column(head="KIND"),
    Column(head="MODEL", folds=True),
    Column(head="VERSION", folds=True, worth=3),
    Column(head="SIZE", right=True, worth=2),
    Column(head="SOURCE", worth=1),
    Column(head="STATE"),
)
_UNITS = ("B", "kB", "MB", "GB", "TB")
_STEP = 1000


def model_lines(models: Sequence[Model], columns: int | None) -> list[Line]:
    """Draw them for a terminal of so many columns; None: for no terminal."""
    if not models:
        none = line(Piece("No models: none found in the caches, none declared", "dim"))
        return [none] if columns is None else wrapped(none, columns)
    rows: list[Row] = []
    left_out: list[str] = []
    for kind, listed in groupby(sorted(models, key=_order), key=lambda model: model.kind):
        shown, more = _shown(tuple(listed), columns)
        rows += [_row(model) for model in shown]
        left_out += [f"{more} {kind}"] if more else []
    lines = laid_out(Sheet(_COLUMNS, rows, note="WHY"), columns)
    if left_out and columns is not None:
        words = Piece(f"and ready besides: {', '.join(left_out)}; --json lists them all", "dim")
        lines += wrapped(line(words), columns)
    return lines


def size(count: int) -> str:
    """A size in bytes, in the unit of which there is one at the least."""
    value = float(count)
    for unit in _UNITS[:-1]:
        if value < _STEP:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= _STEP
    return f"{value:.1f} {_UNITS[-1]}"


def can_serve(model: Model) -> bool:
    """Whether jobs may ask for it."""
    return model.enabled and model.status is ModelStatus.READY


def broken(models: Iterable[Model]) -> int:
    """Count those that jobs could ask for, were they whole; what still loads or is off is not broken."""
    return sum(1 for model in models if model.enabled and model.status is ModelStatus.ERROR)


def _order(model: Model) -> tuple[str, bool, str, str]:
    return model.kind, can_serve(model), model.model_id, model.version


def _shown(models: tuple[Model, ...], columns: int | None) -> tuple[Iterable[Model], int]:
    ready = sum(map(can_serve, models))
    more = max(0, ready - SHOWN_READY)
    return (models, 0) if columns is None or more <= 1 else (models[: len(models) - more], more)


def _row(model: Model) -> Row:
    bytes_known = "" if model.size_bytes is None else size(model.size_bytes)
    return Row(
        (
            line(model.kind),
            line(model.model_id, *_languages(model)),
            line(model.version),
            line(bytes_known),
            line(Piece(model.source or "", "dim")),
            _state(model),
        ),
        line(Piece(model.detail, "yellow")) if model.detail else BLANK,
    )


def _languages(model: Model) -> Iterator[Piece]:
    pair = [language for language in (model.src_lang, model.tgt_lang) if language]
    if pair:
        yield Piece(f" ({' to '.join(pair)})", "dim")


def _state(model: Model) -> Line:
    off = "" if model.enabled else Piece(" disabled", "yellow")
    return line(Piece(model.status.value, STATUS_STYLES[model.status]), off)
