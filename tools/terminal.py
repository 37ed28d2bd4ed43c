"""A terminal of a given size: what a command shows on it, and that screen as a picture.

The command runs on a true pseudo-terminal, so that it lays out and colours its pages as for a person. What it
writes goes through an emulator; the screen's cells become text in an SVG, each run at its own place, so that
a picture looks alike with every font.
"""

import fcntl
import os
import pty
import re
import select
import struct
import subprocess
import termios
import time
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from itertools import groupby
from typing import NamedTuple

import pyte
from pyte.screens import Char

_WIDTH, _HEIGHT = 8.4, 18.0
"""Of a cell, in pixels."""
_MARGIN, _BAR = 14.0, 30.0
_FOREGROUND, _BACKGROUND = "#d6dde3", "#101820"
_COLOURS: Mapping[str, str] = {
    "black": "#5f6b76",
    "red": "#ff7b72",
    "green": "#56d364",
    "brown": "#e3b341",
    "blue": "#79c0ff",
    "magenta": "#d2a8ff",
    "cyan": "#56d4dd",
    "white": "#d6dde3",
    "brightblack": "#8b949e",
    "brightred": "#ffa198",
    "brightgreen": "#7ee787",
    "brightbrown": "#f2cc60",
    "brightblue": "#a5d6ff",
    "brightmagenta": "#e2c5ff",
    "brightcyan": "#b3f0ff",
    "brightwhite": "#ffffff",
}
_STYLE = (
    "text { font: 14px ui-monospace, 'DejaVu Sans Mono', Menlo, Consolas, monospace; "
    f"fill: {_FOREGROUND} }} .b {{ font-weight: bold }}"
)
_DIM, _GREY = b"\x1b[2m", b"\x1b[90m"
"""The emulator knows no dim letters."""
_END_SECONDS = 20.0
_ENDLESS_LINES = 500
"""Of a terminal that a person scrolls back."""


class Size(NamedTuple):
    """Of a terminal, in cells."""

    columns: int
    lines: int


def shown(
    command: Sequence[str], size: Size, *, env: Mapping[str, str], typed: str, seconds: float = 0.0
) -> pyte.Screen:
    """Run a command on a terminal; returns the screen under the line that a person typed.

    One that runs until Ctrl-C ends after `seconds`; what another one writes stays, however long it is.
    """
    parent, child = pty.openpty()
    fcntl.ioctl(child, termios.TIOCSWINSZ, struct.pack("HHHH", size.lines, size.columns, 0, 0))
    variables = {**env, "TERM": "xterm-256color", "COLORTERM": ""}
    program = subprocess.Popen(
        command, stdin=child, stdout=child, stderr=child, env=variables, start_new_session=True
    )
    os.close(child)
    written = b"".join(_written(parent, program, seconds))
    program.wait(_END_SECONDS)
    os.close(parent)
    screen = pyte.Screen(size.columns, size.lines if seconds else _ENDLESS_LINES)
    if not seconds:
        pyte.Stream(screen).feed(f"\x1b[32m$\x1b[0m {typed}\r\n")
    pyte.ByteStream(screen).feed(written.replace(_DIM, _GREY))
    return screen


def _written(terminal: int, program: "subprocess.Popen[bytes]", seconds: float) -> Iterator[bytes]:
    until = time.monotonic() + (seconds or _END_SECONDS)
    while time.monotonic() < until:
        if select.select([terminal], [], [], 0.1)[0]:
            try:
                yield os.read(terminal, 65536)
            except OSError:  # Linux: the other end is closed
                return
        elif program.poll() is not None:
            return
    program.terminate()


def used_lines(screen: pyte.Screen) -> int:
    """How many lines of a screen hold anything, from its first to its last."""
    return max(number for number, line in enumerate(screen.display, 1) if line.strip())


def drawing(screen: pyte.Screen, title: str, *, lines: int | None = None) -> str:
    """Draw a screen, or its first lines, in a window with a title."""
    lines = lines or screen.lines
    width = screen.columns * _WIDTH + 2 * _MARGIN
    height = lines * _HEIGHT + _MARGIN + _BAR
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {height:g}" width="{width:g}">',
        f"<title>{escape(title)}</title>",
        f"<style>{_STYLE}</style>",
        f'<rect width="{width:g}" height="{height:g}" rx="8" fill="{_BACKGROUND}"/>',
        *(
            f'<circle cx="{18 + 20 * n}" cy="16" r="6" fill="{c}"/>'
            for n, c in enumerate(("#ff5f57", "#febc2e", "#28c840"))
        ),
        f'<text x="{width / 2:g}" y="21" text-anchor="middle" fill-opacity=".6">{escape(title)}</text>',
    ]
    for row in range(lines):
        parts += _row(screen, row)
    return "\n".join([*parts, "</svg>"]) + "\n"


def _row(screen: pyte.Screen, row: int) -> Iterator[str]:
    cells = [(column, screen.buffer[row][column]) for column in range(screen.columns)]
    for look, group in groupby(cells, key=lambda cell: _look(cell[1])):
        run = list(group)
        colour, ground, bold = look
        column, words = run[0][0], "".join(cell.data for _, cell in run)
        x, y, width = _MARGIN + column * _WIDTH, _BAR + row * _HEIGHT, len(run) * _WIDTH
        if ground != _BACKGROUND:
            yield f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{_HEIGHT:g}" fill="{ground}"/>'
        kind = ' class="b"' if bold else ""
        for part in re.finditer(r"\S+(?: \S+)*", words):
            place = f'x="{x + part.start() * _WIDTH:g}" y="{y + 13:g}" textLength="{len(part[0]) * _WIDTH:g}"'
            look_of_it = f'lengthAdjust="spacingAndGlyphs"{kind}{_fill(colour)}'
            yield f"<text {place} {look_of_it}>{escape(part[0])}</text>"


def _look(cell: Char) -> tuple[str, str, bool]:
    colour, ground = _colour(cell.fg, _FOREGROUND), _colour(cell.bg, _BACKGROUND)
    return (ground, colour, cell.bold) if cell.reverse else (colour, ground, cell.bold)


def _colour(name: str, default: str) -> str:
    if name == "default":
        return default
    return _COLOURS.get(name, f"#{name}")


def _fill(colour: str) -> str:
    return "" if colour == _FOREGROUND else f' style="fill: {colour}"'
