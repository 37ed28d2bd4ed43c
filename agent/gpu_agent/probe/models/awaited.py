"""A source of models that is loaded once one of its places is there; two of one kind and place are equal.

Most machines have one kind of cache and not the others; a probe must not pay for those. It refuses
to say that a place is not there where it could not look.
"""

import importlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import cast

from gpu_agent.probe.models.source import Listing, ModelSource, Reading, Unit


class Awaited:
    """Stands for `kind(roots, cross_file_systems=…)` of a module beside this one."""

    def __init__(self, name: str, kind: str, roots: Sequence[Path], *, cross_file_systems: bool) -> None:
        """`name` is the source's own, `kind` its module and class: `module:Class`."""
        self.name = name
        self.places = tuple(roots)
        self._kind = kind
        self._cross_file_systems = cross_file_systems
        self._source: ModelSource | None = None

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Awaited) and self._same == other._same

    def __hash__(self) -> int:
        return hash(self._same)

    @property
    def _same(self) -> tuple[object, ...]:
        return self.name, self._kind, self.places, self._cross_file_systems

    def units(self) -> Listing:
        """List what there is to read: nothing, without loading anything, while no place is there."""
        if self._source is None and not any(map(_may_be_there, self.places)):
            return Listing()
        return self._loaded().units()

    def read(self, unit: Unit) -> Reading:
        """Read one unit."""
        return self._loaded().read(unit)

    def _loaded(self) -> ModelSource:
        if self._source is None:
            module, _, kind = self._kind.partition(":")
            make = getattr(importlib.import_module(f"gpu_agent.probe.models.{module}"), kind)
            made = make(self.places, cross_file_systems=self._cross_file_systems)
            self._source = cast("ModelSource", made)
        return self._source


def _may_be_there(place: Path) -> bool:
    try:
        os.lstat(place)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except (OSError, ValueError):
        return True
    return True
