"""The contract between the catalogue and the places where models are kept.

A source lists its *units* (a repository of a hub cache, a folder), cheaply; the catalogue decides
which of them to read, when, and for how long. A reading remembers what it watched, so that an
unchanged unit costs a few `lstat` calls the next time.

No source raises: what cannot be read is a model in error, or a problem of its root.
"""

import os
import stat
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from gpu_agent.wire.inventory import Model

UNVERSIONED = "unversioned"
"""The version of a model whose files state none."""

Mark = tuple[int, int, int]
"""What tells whether a file or folder changed: inode, modification time (ns), size."""


@dataclass(frozen=True, slots=True)
class Root:
    """A place where models are kept, links to it resolved once; nothing is read outside of it."""

    path: str
    device: int | None
    """Its file system; `None` where its owner lets others below it count too."""
    layered: bool = False
    """A file system of layers: its folders bear its number, its files those of the layers they come from."""

    def holds(self, status: os.stat_result) -> bool:
        """Whether something found below it is on a file system that counts."""
        if self.device is None or status.st_dev == self.device:
            return True
        return self.layered and not stat.S_ISDIR(status.st_mode)


@dataclass(frozen=True, slots=True)
class Unit:
    """One thing to read: small enough that a scan's budget can end between two of them."""

    root: Root
    path: str
    name: str


@dataclass(frozen=True, slots=True)
class Listing:
    """The units of a source, and the roots that could not be listed, with the reason."""

    units: tuple[Unit, ...] = ()
    problems: Mapping[str, str] = field(default_factory=dict)
    roots: tuple[str, ...] = ()
    """The paths of those that are there: a new unit shows in one of them."""


@dataclass(frozen=True, slots=True)
class Reading:
    """The models of one unit, good until something in `watched` changes."""

    models: tuple[Model, ...] = ()
    watched: Mapping[str, Mark | None] = field(default_factory=dict)
    """Path → its mark when it was read; `None` where reading failed: such a path is looked at again."""
    problems: Mapping[str, str] = field(default_factory=dict)
    """Folder (its name from the root) → why it could not be searched for models."""


class ModelSource(Protocol):
    """A kind of place where models are kept."""

    @property
    def name(self) -> str:
        """The word that models carry as their `source`."""
        ...

    @property
    def places(self) -> Sequence[Path]:
        """Where it looks on disks; they answer or hang together, so name a place a source of its own."""
        ...

    def units(self) -> Listing:
        """List what there is to read."""
        ...

    def read(self, unit: Unit) -> Reading:
        """Read one unit."""
        ...
