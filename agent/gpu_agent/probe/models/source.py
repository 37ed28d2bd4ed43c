"""What a model source is: it lists units, reads them one by one, and never raises.

A unit (a repository of a hub cache, a folder) is small enough that a scan's budget can end between two of
them. A reading names what it watched, so that an unchanged unit costs a few `lstat` calls the next time.
`LazySource` imports a source's module only once one of its places exists; `reportable_models` drops models
that no message could carry.
"""

import importlib
import os
import stat
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol, cast

from gpu_agent.wire.inventory import Model

# The contract between the catalogue and the places where models are kept.
#
# A source lists its *units* (a repository of a hub cache, a folder), cheaply; the catalogue decides
# which of them to read, when, and for how long. A reading remembers what it watched, so that an
# unchanged unit costs a few `lstat` calls the next time.
#
# No source raises: what cannot be read is a model in error, or a problem of its root.


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


# A source of models that is loaded once one of its places is there; two of one kind and place are equal.
#
# Most machines have one kind of cache and not the others; a probe must not pay for those. It refuses
# to say that a place is not there where it could not look.


class LazySource:
    """Stands for `kind(roots, cross_file_systems=…)` of a module beside this one."""

    def __init__(self, name: str, kind: str, roots: Sequence[Path], *, cross_file_systems: bool) -> None:
        """`name` is the source's own, `kind` its module and class: `module:Class`."""
        self.name = name
        self.places = tuple(roots)
        self._kind = kind
        self._cross_file_systems = cross_file_systems
        self._source: ModelSource | None = None

    def __eq__(self, other: object) -> bool:
        return isinstance(other, LazySource) and self._same == other._same

    def __hash__(self) -> int:
        return hash(self._same)

    @property
    def _same(self) -> tuple[object, ...]:
        return self.name, self._kind, self.places, self._cross_file_systems

    def units(self) -> Listing:
        """List what there is to read: nothing, without loading anything, while no place is there."""
        if self._source is None and not any(map(_may_exist, self.places)):
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


def _may_exist(place: Path) -> bool:
    try:
        os.lstat(place)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except (OSError, ValueError):
        return True
    return True


# Which of the models found may be told to a registry: those with a name, in fields of a sane length.
#
# A cache holds whatever names people give to folders and write into files. A model that no message
# could carry is a problem of the place where it lies, with a reason; a mere remark that is too long
# is left out. It refuses to shorten an id or a version: a cut name would be another model's.


LONGEST_FIELD = 1024
"""Characters in one field of a message; the protocol's own bound."""
LARGEST_SIZE_BYTES = 2**53
"""The largest size that every JSON reader keeps exact; a sparse file can claim more."""


def reportable_models(models: Iterable[Model], place: str) -> tuple[tuple[Model, ...], dict[str, str]]:
    """The models that can be told, and why the others of this place cannot."""
    told: list[Model] = []
    problems: dict[str, str] = {}
    for model in models:
        fault = _fault(model)
        if fault:
            problems[place] = fault
        else:
            told.append(_without_long_remarks(model))
    return tuple(told), problems


def _fault(model: Model) -> str | None:
    if not model.model_id.strip(" /"):
        return "it holds a model without a name; rename it, or state a model_id"
    for what, text in (("id", model.model_id), ("version", model.version)):
        if len(text) > LONGEST_FIELD:
            return f"the {what} of a model in it is longer than {LONGEST_FIELD} characters; shorten it"
    return None


def _without_long_remarks(model: Model) -> Model:
    size = model.size_bytes
    remarks = model.src_lang, model.tgt_lang, model.dialect, model.revision
    if all(map(_fits, remarks)) and (size is None or size <= LARGEST_SIZE_BYTES):
        return model
    return replace(
        model,
        src_lang=_fitting(model.src_lang),
        tgt_lang=_fitting(model.tgt_lang),
        dialect=_fitting(model.dialect),
        revision=_fitting(model.revision),
        size_bytes=None if size is None or size > LARGEST_SIZE_BYTES else size,
    )


def _fits(text: str | None) -> bool:
    return text is None or len(text) <= LONGEST_FIELD


def _fitting(text: str | None) -> str | None:
    return text if _fits(text) else None
