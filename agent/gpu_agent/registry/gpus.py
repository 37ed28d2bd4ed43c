"""A node's GPUs: declared once, reported again by each heartbeat.

A fleet of 5 000 nodes has 40 000 GPUs, more than a core's cache holds. A heartbeat that touched each of them
cost more than everything else in it. So the figures of a healthy heartbeat are stored in one row per node,
and reach the GPUs only when something reads them. A GPU that was never declared is not added.
"""

from collections.abc import Iterable, Iterator, KeysView, Mapping, Sequence, ValuesView
from dataclasses import dataclass, field
from enum import IntEnum
from functools import cache, lru_cache
from hashlib import sha256
from math import isnan, nan
from struct import Struct, error

from gpu_agent.registry.job import GpuKind, names_mig, parse_capability
from gpu_agent.wire.codes import ReasonCode
from gpu_agent.wire.gpu_reasons import NO_NEW_JOBS, ONE_GPU_ONLY
from gpu_agent.wire.heartbeat import GpuColumns

STEP_MB = 256
"""Dispatch knows free memory in steps of this size."""

NOT_REPORTED = "not_reported"
"""The reason of a GPU that was declared and is missing from a heartbeat which lists others."""

CHECK_FAILED = ReasonCode.CHECK_FAILED.value
"""The condition of a GPU whose health is good and that failed a required check."""

_NO_DEVICES: Mapping[str, tuple[str, ...]] = {}
_USABLE = frozenset({"ok", "degraded"})

_ROW = ("memory_used_mb", "utilization_percent", "temperature_c", "power_w")
"""The figures of a row, by their names in `GpuColumns` and `GpuState`: one column each, in this order."""

_UNKNOWN_MB = 2**64 - 1
"""An unknown use of memory in a row; no message holds such a number."""

_LANE_BITS = 64
_LANE_ZERO = 1 << 56
"""What a lane of free memory holds for a GPU that is exactly full: none borrows from the next one."""
_STEP_BITS = STEP_MB.bit_length() - 1

_UNKNOWN: dict[str, float | None] = dict.fromkeys((*_ROW, "processes"))


class Difference(IntEnum):
    """What dispatch must take in of new figures."""

    NONE = 0
    AMOUNT = 1
    """How much memory is free, or how loaded the node is: it is open to the same kinds of jobs."""
    MORE = 2


@dataclass(slots=True, kw_only=True)
class GpuState:
    """A GPU of a node: what was declared, and what the last heartbeat reported."""

    uuid: str
    name: str
    memory_mb: int | None
    index: int = 0
    """The driver's, or at schema 1.0 the position in the declared list."""
    place: int = 0
    """Among the node's GPUs as they were declared; written by `Gpus`."""
    compute_capability: str | None = None
    parent_uuid: str | None = None
    is_parent: bool = False
    """True for the parent of MIG devices: it counts in no total and takes no job."""
    health: str = "ok"
    reasons: tuple[str, ...] = ()
    utilization_percent: float | None = None
    memory_used_mb: int | None = None
    temperature_c: float | None = None
    power_w: float | None = None
    processes: int | None = None
    """Compute processes on it, of whatever job; None where the node does not report them."""
    failed_checks: tuple[str, ...] = ()
    """The required admission checks that it, or its MIG parent, failed; written by `Gpus`."""
    kind: GpuKind = field(init=False)
    """What distinguishes it for a job; `set_health` updates what follows from its reasons."""

    def __post_init__(self) -> None:
        """Derive the kind from what was declared, and from the reasons."""
        self.kind = _kind(
            self.name,
            self.memory_mb,
            compute_capability=self.compute_capability,
            has_parent=self.parent_uuid is not None,
        )
        if self.reasons:
            self.set_health(self.health, self.reasons)

    def set_health(self, health: str, reasons: tuple[str, ...]) -> None:
        """Take in its health and the reasons for it."""
        self.health, self.reasons = health, reasons
        single = not ONE_GPU_ONLY.isdisjoint(reasons)
        if single is not self.kind.is_single:
            self.kind = self.kind._replace(is_single=single)

    @property
    def is_sound(self) -> bool:
        """True when its health and its checks let it work: the jobs that it has go on."""
        return self.health in _USABLE and not self.failed_checks

    @property
    def usable(self) -> bool:
        """True when it can take a job."""
        return not self.is_parent and self.is_sound and NO_NEW_JOBS.isdisjoint(self.reasons)

    @property
    def free_step(self) -> int | None:
        """How many whole steps of memory are free; None where that is unknown."""
        size, used = self.memory_mb, self.memory_used_mb
        return None if size is None or used is None else (size - used) // STEP_MB

    @property
    def condition(self) -> str:
        """Its health, or what else makes it unusable."""
        return CHECK_FAILED if self.failed_checks and self.health in _USABLE else self.health

    @property
    def condition_for_jobs(self) -> str:
        """Its condition, and which jobs that leaves it, in words for a person."""
        if self.health == "ok" and not self.reasons and not self.failed_checks:  # as almost always
            return "ok"
        if self.is_sound and not self.is_parent and not self.usable:
            return f"{self.condition} (no new jobs)"
        return f"{self.condition} (jobs of one GPU only)" if self.kind.is_single else self.condition


@lru_cache(maxsize=1024)
def _kind(name: str, memory_mb: int | None, *, compute_capability: str | None, has_parent: bool) -> GpuKind:
    """Thousands of GPUs are of one kind."""
    capability = parse_capability(compute_capability) or (0, 0)
    return GpuKind(name.lower(), memory_mb or 0, capability, is_mig=has_parent or names_mig(name))


class Gpus(Mapping[str, GpuState]):
    """The GPUs of one node by UUID, in the order in which they were declared."""

    __slots__ = (
        "_all_ok",
        "_failed_checks",
        "_free",
        "_in_one_row",
        "_is_unreported",
        "_lanes",
        "_layout",
        "_memory_bytes",
        "_ok_healths",
        "_order",
        "_processes",
        "_row",
        "_row_is_newer",
        "_states",
        "devices",
        "in_order",
        "kinds",
        "list_id",
        "names",
        "not_ok_since",
        "placeable",
        "usable",
    )

    def __init__(self, states: Iterable[GpuState] = (), *, before: "Gpus | None" = None) -> None:
        """Begin with what is declared; `before` is the list that it replaces."""
        self._states = {state.uuid: state for state in states}
        self.in_order = tuple(self._states.values())
        """As they were declared; reading them here does not bring the newest figures."""
        for place, state in enumerate(self.in_order):
            state.place = place
        self.names = tuple(None if state.is_parent else state.name for state in self._states.values())
        """As declared; None for the parent of MIG devices, which counts in no total."""
        self.kinds = tuple(
            state.kind._replace(is_single=False) if state.kind.is_single else state.kind
            for state in self._states.values()
        )
        """In the order in which they were declared."""
        self.list_id = _list_id(self._states.values())
        """What distinguishes the list of a node without UUIDs; empty where each GPU has one."""
        self.devices = _devices(self._states.values())
        """The MIG devices of each parent that is named, declared itself or not."""
        self._order = "\n".join(self._states)
        """The keys as one string: one comparison shows whether a heartbeat lists them in this order."""
        self._in_one_row = not any("\n" in uuid for uuid in self._states)
        """False where that comparison is not safe; then each GPU is written by itself."""
        self._layout = _layout(len(self._states))
        self._memory_bytes = self._layout.size // len(_ROW)
        self._row = b""
        """The last heartbeat's figures where all were ok: the first column of each GPU, then the second."""
        self._lanes = _lanes(tuple(state.memory_mb for state in self._states.values()))
        self._free: int | None = None
        """Free memory by that row, in whole steps, a lane for each GPU; None where one is unknown."""
        self._ok_healths = _all_are_ok(len(self._states))
        self._row_is_newer = False
        """True while the row is newer than the states."""
        self._processes: tuple[int | None, ...] = ()
        """The last heartbeat's, in order, where all were ok."""
        self._failed_checks: Mapping[str, tuple[str, ...]] = {}
        self.not_ok_since: dict[str, tuple[str, float]] = {} if before is None else dict(before.not_ok_since)
        """Of each GPU that was not ok in the last heartbeat: its health, and when that was first reported."""
        self._is_unreported = False
        """True when the last heartbeat brought no figures, and that is written."""
        self._all_ok = False
        """True when the last heartbeat listed every GPU in order, and all of them ok."""
        self.placeable = sum(not state.is_parent for state in self._states.values())
        """How many are no parents of MIG devices."""
        self.usable = sum(state.usable for state in self._states.values())
        """How many can take a job, by the last heartbeat."""

    def write(self, figures: GpuColumns | None, *, exactly: bool, at: float = 0.0) -> Difference:
        """Write the figures of a heartbeat that came `at`; returns what dispatch must take in.

        Dispatch holds free memory in steps, so a change within one step is no difference; neither is another
        number of processes where there were some before. With `exactly` every change of memory is one:
        dispatch knows the free memory of a node with claims to the MiB, and a job that waits for memory gets
        the last MiB that it lacks. None means that the node reports no figures; then every GPU is usable
        (§4), and only the first such heartbeat differs.
        """
        if figures is None:
            return Difference.NONE if self._is_unreported else self._assume_usable()
        self._is_unreported = False
        uuids, utilizations, used, _, temperatures, powers, processes, healths, reasons = figures
        in_order = "\n".join(uuids) == self._order and self._in_one_row
        if not in_order or healths != self._ok_healths or any(reasons) or self._failed_checks:
            self._write_each(figures, at)
            return Difference.MORE
        if self.not_ok_since:
            self.not_ok_since.clear()
        lanes, is_memory_unknown = self._lanes, False
        try:
            row = self._layout.pack(*used, *utilizations, *temperatures, *powers)
        except error:  # one is unknown
            row = self._row_with_unknown(used, (*utilizations, *temperatures, *powers))
            if None in used:
                lanes, is_memory_unknown = None, True
        memory = row[: self._memory_bytes]
        free = None if lanes is None else lanes[0] - int.from_bytes(memory, "little") & lanes[1]
        if exactly or free is None:
            differs = is_memory_unknown or memory != self._row[: self._memory_bytes]
        else:
            differs = free != self._free
        self._row, self._free, self._row_is_newer = row, free, True
        if processes != self._processes:
            others, self._processes = self._processes, processes
            if _busy(processes) != _busy(others):
                self._all_ok = False
        if not self._all_ok:
            self._all_ok, self.usable = True, self.placeable
            return Difference.MORE
        return Difference.AMOUNT if differs else Difference.NONE

    def write_memory(self, used: tuple[int, ...]) -> Difference:
        """Write the memory that each uses now; all else is as the last heartbeat reported it.

        Where not all were ok in that, or it listed others, nothing is written.
        """
        if not self._all_ok or len(used) != len(self._states):
            return Difference.NONE
        memory = _lane_layout(len(used)).pack(*used)
        self._row, self._row_is_newer = memory + self._row[self._memory_bytes :], True
        lanes = self._lanes
        self._free = None if lanes is None else lanes[0] - int.from_bytes(memory, "little") & lanes[1]
        return Difference.AMOUNT

    def set_failed_checks(self, failed: Mapping[str, tuple[str, ...]]) -> None:
        """Set which required checks which GPUs failed; the next `write` counts the usable GPUs by it."""
        self._is_unreported = False
        self._failed_checks = {uuid: names for uuid, names in failed.items() if uuid in self._states}
        for state in self._up_to_date().values():
            own = self._failed_checks.get(state.uuid, ())
            state.failed_checks = own or self._failed_checks.get(state.parent_uuid or "", ())

    def usable_states(self) -> list[GpuState]:
        """Return those that can take a job; the health of a MIG device's parent counts for the device."""
        states = self.values()
        if self._all_ok and not self._failed_checks and self.placeable == len(states):  # as almost always
            return list(states)
        return [one for one in states if one.usable and self._parent_is_sound(one)]

    @property
    def all_ok(self) -> bool:
        """True when the last heartbeat listed every GPU in order, all of them ok, and no check failed."""
        return self._all_ok

    @property
    def takes_amounts(self) -> bool:
        """True when the last heartbeat reported all GPUs in order as ok, or none."""
        return self._all_ok or self._is_unreported

    @property
    def healths(self) -> tuple[str, ...]:
        """The condition of each."""
        return self._ok_healths if self._all_ok else tuple(one.condition for one in self._states.values())

    @property
    def conditions(self) -> tuple[str, ...]:
        """The condition of each, and which jobs that leaves it: what dispatch depends on."""
        if self._all_ok:
            return self._ok_healths
        return tuple(state.condition_for_jobs for state in self._states.values())

    @property
    def in_use(self) -> tuple[bool, ...]:
        """Whether each shows processes, in order; unknown is no."""
        if self._all_ok:
            return _busy(self._processes)
        return _busy([state.processes for state in self._states.values()])

    @property
    def utilizations(self) -> Sequence[float | None]:
        """The utilization of each, in order; percent, None where it is unknown."""
        if self._all_ok:
            size = len(self._states)
            return [_known(figure) for figure in self._layout.unpack(self._row)[size : 2 * size]]
        return [state.utilization_percent for state in self._states.values()]

    @property
    def unknown(self) -> tuple[float, ...]:
        """A column of which nothing is known."""
        return (nan,) * len(self._states)

    @property
    def figures(self) -> tuple[float, ...]:
        """Four columns: utilization, free steps of memory, temperature, power; NaN for an unknown one."""
        size = len(self._states)
        if self._all_ok:
            row = self._layout.unpack(self._row)
            return (*row[size : 2 * size], *(self.free_steps or self.unknown), *row[2 * size :])
        states = self._states.values()
        columns = (
            [state.utilization_percent for state in states],
            [state.free_step for state in states],
            [state.temperature_c for state in states],
            [state.power_w for state in states],
        )
        return tuple(nan if figure is None else figure for column in columns for figure in column)

    def since(self, uuid: str) -> float | None:
        """Return when the health of a GPU that is not ok was first reported, in monotonic seconds."""
        health, since = self.not_ok_since.get(uuid, ("", 0.0))
        return since if health == self[uuid].health else None

    def places_of(self, uuids: Iterable[str]) -> tuple[int | None, ...]:
        """Return the place of each of these in the order; None for one that is not declared."""
        found = map(self._states.get, uuids)
        return tuple(None if state is None else state.place for state in found)

    @property
    def free_steps(self) -> list[int] | None:
        """How many whole steps of memory are free on each, in order; None where one is unknown."""
        if self._all_ok:
            return None if self._free is None else _steps_in(self._free, len(self._states))
        steps = [state.free_step for state in self._states.values()]
        return None if None in steps else [one for one in steps if one is not None]

    @property
    def memory_and_use(self) -> tuple[float, ...] | None:
        """Two columns in order: memory in use in MiB, utilization, NaN where that is unknown.

        None unless the last heartbeat reported all as ok, with their memory.
        """
        if not self._all_ok or self._free is None:
            return None
        return _memory_layout(len(self.in_order)).unpack_from(self._row)

    def keys(self) -> KeysView[str]:
        """Return their keys alone, without reading the figures."""
        return self._states.keys()

    def values(self) -> ValuesView[GpuState]:
        """Return them all, with their newest figures."""
        return self._up_to_date().values()

    def __getitem__(self, uuid: str) -> GpuState:
        return self._up_to_date()[uuid]

    def __iter__(self) -> Iterator[str]:
        return iter(self._states)

    def __len__(self) -> int:
        return len(self._states)

    def _parent_is_sound(self, state: GpuState) -> bool:
        parent = None if state.parent_uuid is None else self._states.get(state.parent_uuid)
        return parent is None or parent.is_sound

    def _up_to_date(self) -> dict[str, GpuState]:
        if self._row_is_newer:
            self._row_is_newer = False
            size = len(self._states)
            figures = [_known(figure) for figure in self._layout.unpack(self._row)]
            for place, state in enumerate(self._states.values()):
                values = {name: figures[column * size + place] for column, name in enumerate(_ROW)}
                _write_one(state, {**values, "processes": self._processes[place]})
        return self._states

    def _write_each(self, figures: GpuColumns, at: float) -> None:
        """Write figures of which not all are ok, or which do not list the GPUs as declared."""
        self._row_is_newer = self._all_ok = False
        missing = dict(self._states)
        for place, uuid in enumerate(self._matched(figures.uuid)):
            state = missing.pop(uuid, None)
            if state is not None:
                values = {name: getattr(figures, name)[place] for name in _UNKNOWN}
                _write_one(state, values, health=figures.health[place], reasons=figures.reasons[place])
        for state in missing.values():
            _write_one(state, _UNKNOWN, health="unknown", reasons=(NOT_REPORTED,))
        before, self.not_ok_since = self.not_ok_since, {}
        for uuid, state in self._states.items():
            if state.health != "ok":
                health, since = before.get(uuid, ("", at))
                self.not_ok_since[uuid] = (state.health, since if health == state.health else at)
        self.usable = sum(state.usable for state in self._states.values())

    def _matched(self, uuids: Sequence[str]) -> Iterable[str]:
        """Return whose figures these are: GPUs declared without a UUID get those of their position."""
        nameless = all(uuid.startswith("#") for uuid in self._states)
        return self._states if nameless and len(uuids) == len(self._states) else uuids

    def _row_with_unknown(self, used: tuple[int | None, ...], others: tuple[float | None, ...]) -> bytes:
        """Return a row of which some figures are not known."""
        return self._layout.pack(
            *(_UNKNOWN_MB if one is None else one for one in used),
            *(nan if one is None else one for one in others),
        )

    def _assume_usable(self) -> Difference:
        """Write that nothing is reported."""
        self._row_is_newer = self._all_ok = False
        for state in self._states.values():
            _write_one(state, _UNKNOWN)
        self.usable = sum(state.usable for state in self._states.values())
        self._is_unreported = True
        return Difference.MORE


def _list_id(states: Iterable[GpuState]) -> str:
    listed = list(states)
    if not any(state.uuid.startswith("#") for state in listed):
        return ""
    text = "\n".join(f"{state.uuid} {state.name} {state.memory_mb}" for state in listed)
    return sha256(text.encode()).hexdigest()[:16]


def _devices(states: Iterable[GpuState]) -> Mapping[str, tuple[str, ...]]:
    devices: dict[str, tuple[str, ...]] = {}
    for state in states:
        if state.parent_uuid is not None:
            devices[state.parent_uuid] = (*devices.get(state.parent_uuid, ()), state.uuid)
    return devices or _NO_DEVICES


@lru_cache(maxsize=1024)
def _lanes(sizes: tuple[int | None, ...]) -> tuple[int, int] | None:
    """Return the memory of each as lanes of one number, and what keeps whole steps of it; None if unknown.

    One subtraction then tells the free memory of all, and one comparison whether a step differs.
    """
    if None in sizes:
        return None
    lanes = [_LANE_ZERO + size for size in sizes if size is not None]
    return _joined(lanes), _joined([(1 << _LANE_BITS) - STEP_MB] * len(lanes))


def _joined(lanes: Sequence[int]) -> int:
    return sum(lane << _LANE_BITS * place for place, lane in enumerate(lanes))


def _steps_in(free: int, count: int) -> list[int]:
    """Return what each lane holds, in steps."""
    octets = (free >> _STEP_BITS).to_bytes(count * _LANE_BITS // 8, "little")
    zero = _LANE_ZERO >> _STEP_BITS
    return [lane - zero for lane in _lane_layout(count).unpack(octets)]


def _busy(processes: Sequence[int | None]) -> tuple[bool, ...]:
    return tuple(map(bool, processes))


@cache
def _all_are_ok(count: int) -> tuple[str, ...]:
    return ("ok",) * count


@cache
def _layout(count: int) -> Struct:
    """Return the layout of a row of so many GPUs; a message limits how many."""
    return Struct(f"<{count}Q{(len(_ROW) - 1) * count}d")


@cache
def _lane_layout(count: int) -> Struct:
    return Struct(f"<{count}Q")


@cache
def _memory_layout(count: int) -> Struct:
    """Return the layout of the first two columns of a row."""
    return Struct(f"<{count}Q{count}d")


def _known(figure: float) -> float | None:
    return None if isnan(figure) or figure == _UNKNOWN_MB else figure


def _write_one(
    state: GpuState,
    figures: Mapping[str, float | None],
    *,
    health: str = "ok",
    reasons: tuple[str, ...] = (),
) -> None:
    """Write the figures of a GPU; a row holds whole ones as floats."""
    state.set_health(health, reasons)
    used = figures["memory_used_mb"]
    state.memory_used_mb = None if used is None else int(used)
    state.utilization_percent, state.temperature_c = figures["utilization_percent"], figures["temperature_c"]
    processes = figures["processes"]
    state.power_w, state.processes = figures["power_w"], None if processes is None else int(processes)
