"""Where a watched machine is shown: a terminal that is redrawn, a line for each change, or JSON lines.

A driver that does not answer is told of with the age of what is shown; it ends nothing.
"""

import json
import shutil
import time

from gpu_agent.cli.bars import letters
from gpu_agent.cli.durations import in_words
from gpu_agent.cli.lines import BLANK, Line, Piece, line, wrapped
from gpu_agent.cli.live import LiveLines
from gpu_agent.cli.nodes.event_words import clock
from gpu_agent.cli.probe.changes import changes
from gpu_agent.cli.probe.page import fitted_page, probe_page
from gpu_agent.cli.streams import reader_left
from gpu_agent.cli.terminal import columns, show
from gpu_agent.probe.snapshot import to_document
from gpu_agent.wire.inventory import Inventory, Outcome

LATE_SECONDS = 4.5
"""A reading of the GPUs older than this is late: they are read every two seconds."""


class LinesView:
    """First the page, then a line for each change."""

    def __init__(self) -> None:
        self._shown: Inventory | None = None
        self._late = False

    def take(self, inventory: Inventory, age_seconds: float | None) -> None:
        """Show what changed."""
        now = time.time()
        if self._shown is None:
            show(probe_page(inventory, columns(), letters(), now=now))
        else:
            self._tell(list(changes(self._shown, inventory)), now)
        self._shown = inventory
        self.tick(age_seconds)

    def tick(self, age_seconds: float | None) -> None:
        """Say once that the driver is late, and once that it answers again."""
        late = is_late(age_seconds)
        if late is not self._late:
            self._late, now = late, time.time()
            self._tell([_lateness(age_seconds, now) if late else line("the driver answers again")], now)

    def over(self) -> bool:
        """Whoever reads a pipe may leave."""
        return reader_left()

    def _tell(self, told: list[Line], now: float) -> None:
        show(line(Piece(f"{clock(now, now)}  ", "dim"), *one) for one in told)
        reader_left()  # flushes: what is watched is read at once


class JsonView:
    """The whole document on a line, for each reading."""

    def take(self, inventory: Inventory, age_seconds: float | None) -> None:
        """Print it with its time, and the age of what it holds of the GPUs."""
        age = None if age_seconds is None else round(age_seconds, 3)
        document = {**to_document(inventory), "at": round(time.time(), 3), "probe_age_seconds": age}
        print(json.dumps(document, separators=(",", ":")), flush=True)

    def tick(self, age_seconds: float | None) -> None:
        """Between readings there is nothing to say."""

    def over(self) -> bool:
        """Whoever reads a pipe may leave."""
        return reader_left()


class ScreenView:
    """The page on a whole terminal, redrawn in place."""

    def __init__(self, live: LiveLines) -> None:
        self._live = live
        self.shown: Inventory | None = None
        self._taken_at = 0.0
        self._broken_since: float | None = None

    def take(self, inventory: Inventory, age_seconds: float | None) -> None:
        """Draw it."""
        self.shown, self._taken_at = inventory, time.time()
        broken = inventory.gpu.outcome is Outcome.DRIVER_BROKEN
        self._broken_since = (self._broken_since or self._taken_at) if broken else None
        self.tick(age_seconds)

    def tick(self, age_seconds: float | None) -> None:
        """Draw the same again: ages grow, and the terminal may have another size."""
        now, size = time.time(), shutil.get_terminal_size()
        foot = [BLANK, *wrapped(self._foot(age_seconds, now), size.columns)]
        if self.shown is None:
            self._live.draw([line("looking at this machine …"), *foot])
            return
        page = fitted_page(self.shown, (size.columns, size.lines - len(foot)), letters(), now=now)
        self._live.draw([*page, *foot])

    def over(self) -> bool:
        """A terminal is left by Ctrl-C."""
        return False

    def _foot(self, age_seconds: float | None, now: float) -> Line:
        ends = Piece("; Ctrl-C ends", "dim")
        if is_late(age_seconds):
            return line(*_lateness(age_seconds, now), ends)
        if self._broken_since is not None:
            words = f"the driver does not work since {clock(self._broken_since, now)} or longer"
            return line(Piece(words, "bold red"), ends)
        return line(Piece(clock(self._taken_at or now, now), "dim"), ends)


def is_late(age_seconds: float | None) -> bool:
    """Whether the last good reading of the GPUs is older than it should be."""
    return age_seconds is not None and age_seconds > LATE_SECONDS


def _lateness(age_seconds: float | None, now: float) -> Line:
    age = age_seconds or 0.0
    words = (
        f"the driver has not answered for {in_words(age)}: the GPUs' figures are of {clock(now - age, now)}"
    )
    return line(Piece(words, "bold red"))
