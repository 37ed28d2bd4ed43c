"""What a model source is: it lists units, reads them one by one, and never raises.

A unit (a repository of a hub cache, a folder) is small enough that a scan's budget can end between two of
them. A reading names what it watched, so that an unchanged unit costs a few `lstat` calls the next time. What
cannot be read is a model in error, or a problem of its folder.

To add a source: a module beside this one with a `SOURCE` and a class like `ModelSource`, its row in
`all_sources`, the setting for its paths in `node.settings` (with `reload=True`; then `make reference`), and
its line in the contract `model-sources` of `.importlinter`. Tests find the module, and demand the row, the
line, docs/reference/models.md and another value for the setting in `tests/node/test_reload.py`.
"""

import os
import stat
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

from gpu_agent.records import dataclass, field, replace
from gpu_agent.wire.inventory import Model

UNVERSIONED = "unversioned"
"""The version of a model whose files state none."""

Mark = tuple[int, int, int]
"""What shows whether a file or folder changed: inode, modification time (ns), size."""


@dataclass(frozen=True, slots=True)
class Root:
    """A folder that is searched for models, its links resolved once; nothing outside of it is read."""

    path: str
    device: int | None
    """Its file system; `None` where other file systems below it count too."""
    overlay: bool = False
    """On an overlay: its folders have the overlay's device number, its files those of their layers."""
    local: bool = False
    """All that counts below it is on one file system, which no other machine changes."""

    def holds(self, status: os.stat_result) -> bool:
        """Whether something found below it is on a file system that counts."""
        if self.device is None or status.st_dev == self.device:
            return True
        return self.overlay and not stat.S_ISDIR(status.st_mode)


@dataclass(frozen=True, slots=True)
class Unit:
    """One thing to read."""

    root: Root
    path: str
    name: str
    folder: bool = True
    """It was listed as a folder, and not as a link to one; a reading may rely on it."""


@dataclass(frozen=True, slots=True)
class Listing:
    """The units of a source, and the roots that could not be listed, with the reason."""

    units: tuple[Unit, ...] = ()
    problems: Mapping[str, str] = field(default_factory=dict)
    roots: tuple[str, ...] = ()
    """The paths of the roots that exist: a new unit shows in one of them, or in one of `folders`."""
    folders: Mapping[str, Mark | None] = field(default_factory=dict)
    """Path → its mark: the folders below the roots that were listed to find units."""
    local: bool = False
    """There are roots, and each is `Root.local`."""


@dataclass(frozen=True, slots=True)
class Reading:
    """The models of one unit, valid until something in `watched` changes."""

    models: tuple[Model, ...] = ()
    watched: Mapping[str, Mark | None] = field(default_factory=dict)
    """Path → its mark when it was read; `None` where reading failed: such a path is read again."""
    problems: Mapping[str, str] = field(default_factory=dict)
    """Folder (its name from the root) → why it could not be searched for models."""


class ModelSource(Protocol):
    """One kind of model cache."""

    @property
    def name(self) -> str:
        """The `source` of its models."""
        ...

    @property
    def paths(self) -> Sequence[Path]:
        """Where it searches.

        Paths of one source hang together, so a path of its own needs a source of its own.
        """
        ...

    def units(self) -> Listing:
        """List what there is to read."""
        ...

    def read(self, unit: Unit) -> Reading:
        """Read one unit."""
        ...


class SourceFactory(Protocol):
    """The class of a source: called with its roots."""

    def __call__(self, roots: Sequence[Path], *, cross_file_systems: bool) -> ModelSource:
        """Make the source."""
        ...


class LazySource:
    """A source whose module is imported only once one of its paths exists.

    Most machines have one kind of cache; a probe must not pay for the others. Two of one kind and paths are
    equal.
    """

    def __init__(
        self, name: str, load: Callable[[], SourceFactory], roots: Sequence[Path], *, cross_file_systems: bool
    ) -> None:
        """`name` is the source's own; `load` imports its class."""
        self.name = name
        self.paths = tuple(roots)
        self._load = load
        self._cross_file_systems = cross_file_systems
        self._source: ModelSource | None = None

    def __eq__(self, other: object) -> bool:
        return isinstance(other, LazySource) and self._key == other._key

    def __hash__(self) -> int:
        return hash(self._key)

    @property
    def _key(self) -> tuple[object, ...]:
        return self.name, self.paths, self._cross_file_systems

    def units(self) -> Listing:
        """List what there is to read: nothing, without an import, while no path exists."""
        if self._source is None and not any(map(_may_exist, self.paths)):
            return Listing()
        return self._loaded().units()

    def read(self, unit: Unit) -> Reading:
        """Read one unit."""
        return self._loaded().read(unit)

    def _loaded(self) -> ModelSource:
        if self._source is None:
            self._source = self._load()(self.paths, cross_file_systems=self._cross_file_systems)
        return self._source


def _may_exist(path: Path) -> bool:
    """False only where it was seen that the path does not exist."""
    try:
        os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except (OSError, ValueError):
        return True
    return True


# ---- which models can be reported

LONGEST_FIELD = 1024
"""Characters in one field of a message; the protocol's own bound."""
LARGEST_SIZE_BYTES = 2**53
"""The largest size that every JSON reader keeps exact; a sparse file can claim more."""


def reportable_models(models: Iterable[Model], folder: str) -> tuple[tuple[Model, ...], dict[str, str]]:
    """Split models into those that a message can carry, and why the others of this folder cannot be sent.

    Folders and files have whatever names people give them. An id or version that is too long is a problem,
    because a cut name would be another model's; an optional field that is too long is left out.
    """
    reportable: list[Model] = []
    problems: dict[str, str] = {}
    for model in models:
        if problem := _problem(model):
            problems[folder] = problem
        else:
            reportable.append(_without_long_fields(model))
    return tuple(reportable), problems


def _problem(model: Model) -> str | None:
    if not model.model_id.strip(" /"):
        return "it holds a model without a name; rename it, or state a model_id"
    if len(model.model_id) + len(model.version) <= LONGEST_FIELD:
        return None  # nearly each
    for what, text in (("id", model.model_id), ("version", model.version)):
        if len(text) > LONGEST_FIELD:
            return f"the {what} of a model in it is longer than {LONGEST_FIELD} characters; shorten it"
    return None


def _without_long_fields(model: Model) -> Model:
    size = model.size_bytes
    texts = model.src_lang, model.tgt_lang, model.dialect, model.revision
    if sum(map(len, filter(None, texts))) <= LONGEST_FIELD and (size or 0) <= LARGEST_SIZE_BYTES:
        return model  # nearly each
    return replace(
        model,
        src_lang=_if_it_fits(model.src_lang),
        tgt_lang=_if_it_fits(model.tgt_lang),
        dialect=_if_it_fits(model.dialect),
        revision=_if_it_fits(model.revision),
        size_bytes=None if size is None or size > LARGEST_SIZE_BYTES else size,
    )


def _fits(text: str | None) -> bool:
    return text is None or len(text) <= LONGEST_FIELD


def _if_it_fits(text: str | None) -> str | None:
    return text if _fits(text) else None
