"""What could not be searched for models, told in the log once for each place and reason.

A place whose disk answers again is told of too.

It refuses to fill the log: of many new places it tells of a few, and how many there are besides.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path

from gpu_agent.probe.models.catalogue import SILENT
from gpu_agent.runtime.logs import EventLog

MOST_TOLD = 10
"""New places that one look may add to the log."""

_LOG = EventLog("node.unsearched")


class Unsearched:
    """Remembers what was told, for as long as it is so."""

    def __init__(self) -> None:
        self._told: Mapping[str, str] = {}

    def note(self, problems: Mapping[str, str], places: Iterable[Path]) -> None:
        """Tell of what is new; a place that was mended and breaks again is new again.

        `places` are those that are looked into: of a disk that is no longer among them nothing is known.
        """
        looked_into = set(map(str, places))
        new = [(place, why) for place, why in problems.items() if self._told.get(place) != why]
        silent = [place for place, why in self._told.items() if why == SILENT and place in looked_into]
        back = [place for place in silent if problems.get(place) != SILENT]
        self._told = dict(problems)
        for place in back[:MOST_TOLD]:
            _LOG.info("models_disk_answered", place=place, others=max(0, len(back) - MOST_TOLD))
        for place, why in new[:MOST_TOLD]:
            _LOG.warning("models_unsearched", place=place, problem=why, others=max(0, len(new) - MOST_TOLD))
