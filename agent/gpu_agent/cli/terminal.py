"""Prints lines for people: styled on a terminal that wants colours, plain words everywhere else.

Only a terminal costs the loading of rich. `NO_COLOR` and `TERM=dumb` are rich's to honour.
"""

import os
import shutil
import sys
from collections.abc import Iterable

from gpu_agent.cli.lines import Line, plain


def columns() -> int | None:
    """How wide the terminal is that reads us; None where none does."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


def show(lines: Iterable[Line]) -> None:
    """Print lines as they are: whoever made them has laid them out."""
    if not (sys.stdout.isatty() or os.environ.get("FORCE_COLOR")):
        for one in lines:
            print(plain(one).rstrip())
        return
    from rich.console import Console
    from rich.text import Text

    terminal = Console(highlight=False)
    for one in lines:
        drawn = Text.assemble(*((piece.text, piece.style) for piece in one))
        terminal.print(drawn, soft_wrap=True)
