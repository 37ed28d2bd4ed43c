"""A node's GPUs: declared once, told anew by every beat.

A fleet of 5 000 nodes has 40 000 GPUs, more than a core's cache holds, and a beat that
touched each of them cost more than all the rest of it. So the figures of a healthy beat are
laid in one row per node, and reach the GPUs only when somebody looks at them. Judges nothing;
a GPU that was never declared is not invented.
"""

from array import array
from collections.abc import Iterable, Iterator, KeysView, Mapping, Sequence, ValuesView
from dataclasses import dataclass
from math import isnan, nan

from gpu_agent.wire.messages import GpuFigures

STEP_MB = 256
"""Free memory is told apart in such steps by those who choose a node."""

NOT_REPORTED = "not_reported"
"""The reason of a GPU that was declared and is missing from a beat which lists the others."""

_USABLE = frozenset({"ok", "degraded"})


@dataclass(slots=True, kw_only=True)
class GpuState:
    """A GPU of a node: what was declared, and what the last beat said of it."""

    uuid: str
    name: str
    memory_mb: int | None
    parent_uuid: str | None = None
    is_parent: bool = False
    """True for a GPU cut into MIG slices: it counts in no total and takes no job."""
    health: str = "ok"
    reasons: tuple[str, ...] = ()
    utilization_percent: float | None = None
    memory_used_mb: int | None = None
    temperature_c: float | None = None
    power_w: float | None = None

    @property
    def usable(self) -> bool:
        """True when a job may be placed on it."""
        return not self.is_parent and self.health in _USABLE


class Gpus(Mapping[str, GpuState]):
    """The GPUs of one node by UUID, in the order in which they were declared."""

    __slots__ = (
        "_behind",
        "_in_one_row",
        "_order",
        "_others",
        "_placeable",
        "_sizes",
        "_states",
        "_used",
        "_well",
        "_well_healths",
        "names",
        "usable",
    )

    def __init__(self, states: Iterable[GpuState] = ()) -> None:
        self._states = {state.uuid: state for state in states}
        self.names = tuple(None if state.is_parent else state.name for state in self._states.values())
        """As declared; None for the parent of MIG slices, which counts in no total."""
        self._order = "\n".join(self._states)
        """One comparison tells that a beat lists the GPUs as they were declared, and touches one string."""
        self._in_one_row = not any("\n" in uuid for uuid in self._states)
        """False where the comparison would take one GPU for two; then each is written by itself."""
        self._sizes = _row([state.memory_mb for state in self._states.values()])
        self._used = array("d")
        self._others = array("d")
        self._well_healths = ("ok",) * len(self._states)
        self._behind = False
        """True while the row is newer than the states."""
        self._well = False
        """True when the last beat named every GPU in order, all of them well."""
        self._placeable = sum(not state.is_parent for state in self._states.values())
        self.usable = sum(state.usable for state in self._states.values())
        """How many a job may be placed on, by the last beat."""

    def write(self, figures: tuple[GpuFigures, ...] | None, *, exactly: bool) -> bool:
        """Write one beat's figures; says whether those who choose a node could tell the difference.

        `exactly` asks for any difference in memory, not in whole steps of it. None (a node that
        reports no figures) makes every GPU usable (§4).
        """
        if figures is None:
            self._assume_usable()
            return True
        if not self._are_all_well(figures):
            self._write_each(figures)
            return True
        used = _row([one.memory_used_mb for one in figures])
        differs = not self._well or (used != self._used and self._moved(used, exactly=exactly))
        self._used = used
        self._others = _row(
            [one.utilization_percent for one in figures]
            + [one.temperature_c for one in figures]
            + [one.power_w for one in figures]
        )
        self._behind = self._well = True
        self.usable = self._placeable
        return differs

    @property
    def healths(self) -> tuple[str, ...]:
        """The health of each."""
        return self._well_healths if self._well else tuple(state.health for state in self._states.values())

    @property
    def memory_used(self) -> list[int | None]:
        """The memory in use on each, in MiB, if the node says."""
        if self._well:
            return [None if isnan(used) else int(used) for used in self._used]
        return [state.memory_used_mb for state in self._states.values()]

    def keys(self) -> KeysView[str]:
        """Look at their names alone, whatever the beats have said since."""
        return self._states.keys()

    def values(self) -> ValuesView[GpuState]:
        """Look at all of them."""
        return self._up_to_date().values()

    def __getitem__(self, uuid: str) -> GpuState:
        return self._up_to_date()[uuid]

    def __iter__(self) -> Iterator[str]:
        return iter(self._states)

    def __len__(self) -> int:
        return len(self._states)

    def _are_all_well(self, figures: tuple[GpuFigures, ...]) -> bool:
        """Say whether these are all GPUs as declared, with nothing against any of them."""
        well = [one.uuid for one in figures if one.health == "ok" and not one.reasons]
        names_all = len(well) == len(figures) == len(self._states)
        return names_all and "\n".join(well) == self._order and self._in_one_row

    def _moved(self, used: "array[float]", *, exactly: bool) -> bool:
        """Say whether a GPU's free memory is in another step, or is not known exactly."""
        if exactly:
            return True
        return any(
            before != after
            and (isnan(before + after + size) or (size - before) // STEP_MB != (size - after) // STEP_MB)
            for size, before, after in zip(self._sizes, self._used, used, strict=True)
        )

    def _up_to_date(self) -> dict[str, GpuState]:
        if self._behind:
            self._behind = False
            count = len(self._states)
            for place, (state, used) in enumerate(zip(self._states.values(), self.memory_used, strict=True)):
                state.health, state.reasons, state.memory_used_mb = "ok", (), used
                state.utilization_percent = _known(self._others[place])
                state.temperature_c = _known(self._others[place + count])
                state.power_w = _known(self._others[place + 2 * count])
        return self._states

    def _write_each(self, figures: tuple[GpuFigures, ...]) -> None:
        """Write figures of which not all are well, or which do not name the GPUs as declared."""
        self._behind = self._well = False
        missing = dict(self._states)
        for one in self._matched(figures):
            state = missing.pop(one.uuid, None)
            if state is not None:
                _write_one(state, one)
        for state in missing.values():
            _write_one(state, GpuFigures(uuid=state.uuid, health="unknown", reasons=(NOT_REPORTED,)))
        self.usable = sum(state.usable for state in self._states.values())

    def _matched(self, figures: tuple[GpuFigures, ...]) -> Iterable[GpuFigures]:
        """Give GPUs declared without a UUID the figures of their place."""
        nameless = all(uuid.startswith("#") for uuid in self._states)
        if not nameless or len(figures) != len(self._states):
            return figures
        return [
            one.model_copy(update={"uuid": uuid}) for one, uuid in zip(figures, self._states, strict=True)
        ]

    def _assume_usable(self) -> None:
        self._behind = self._well = False
        for state in self._states.values():
            _write_one(state, GpuFigures(uuid=state.uuid))
        self.usable = self._placeable


def _row(figures: Sequence[float | None]) -> "array[float]":
    try:
        return array("d", figures)  # type: ignore[arg-type]  # None is what the TypeError is about
    except TypeError:
        return array("d", [nan if figure is None else figure for figure in figures])


def _known(figure: float) -> float | None:
    return None if isnan(figure) else figure


def _write_one(state: GpuState, one: GpuFigures) -> None:
    state.health, state.reasons = one.health, one.reasons
    state.utilization_percent, state.memory_used_mb = one.utilization_percent, one.memory_used_mb
    state.temperature_c, state.power_w = one.temperature_c, one.power_w
