"""The probe's document against what `nvidia-smi` reported just before and just after it.

A value that moves is right if it lies between the two, or no further outside than the tolerance; any other
value must be equal to one of them. What `nvidia-smi` reports and the probe calls unknown differs.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tests.gpu.nvidia_smi import NOT_REPORTED, Look

Document = Mapping[str, Any]
"""What `gpu-agent probe --json` prints, or one GPU of it."""

_FLAGS = {
    **dict.fromkeys(("Active", "Enabled", "Yes", "1"), True),
    **dict.fromkeys(("Not Active", "Disabled", "No", "0"), False),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Fact:
    """One thing that both report of a GPU."""

    name: str
    fields: tuple[str, ...]
    """Names in `nvidia-smi`; the first that it knows and reports counts."""
    ours: Callable[[Document], object]
    read: Callable[[str], object] = str.casefold
    """Its text as a value: numbers are compared by tolerance, all else is equal or not."""
    within: float = 0.0
    within_share: float = 0.0
    """The tolerance: so many units, and such a share of the value."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """One fact of one GPU, compared once."""

    fact: str
    uuid: str
    ours: object
    theirs: tuple[object, object]
    """Before and after; equal ones for what does not move."""
    agrees: bool
    apart: float = 0.0
    """How far outside of both, for numbers."""

    def __str__(self) -> str:
        before, after = self.theirs
        theirs = f"{before}" if before == after else f"{before}, then {after}"
        return f"{self.uuid} {self.fact}: the probe has {self.ours}, nvidia-smi {theirs}"


def _value(name: str) -> Callable[[Document], object]:
    return lambda gpu: gpu[name]


def _text(name: str) -> Callable[[Document], object]:
    return lambda gpu: None if gpu[name] is None else str(gpu[name]).casefold()


def _number(
    name: str, field: str, *alternatives: str, within: float = 0.0, within_share: float = 0.0
) -> Fact:
    return Fact(
        name=name,
        fields=(field, *alternatives),
        ours=_value(name),
        read=float,
        within=within,
        within_share=within_share,
    )


def _throttle(name: str) -> Fact:
    return Fact(
        name=f"throttle: {name}",
        fields=(f"clocks_event_reasons.{name}", f"clocks_throttle_reasons.{name}"),
        ours=lambda gpu: None if gpu["throttle_reasons"] is None else name in gpu["throttle_reasons"],
        read=_FLAGS.__getitem__,
    )


def _has_reason(code: str) -> Callable[[Document], object]:
    return lambda gpu: any(reason["code"] == code for reason in gpu["reasons"])


def _recovery(gpu: Document) -> object:
    """The action as `nvidia-smi` calls it, from the reason's code."""
    action = gpu["recovery_action"]
    return None if action is None else str(action).removeprefix("recovery_").replace("_", " ")


def _fabric_completed(gpu: Document) -> object:
    faults = gpu["fabric_faults"]
    return None if faults is None else "fabric_incomplete" not in faults


FACTS: tuple[Fact, ...] = (
    Fact(name="index", fields=("index",), ours=_value("index"), read=int),
    Fact(name="name", fields=("name",), ours=_text("name")),
    Fact(name="pci_bus_id", fields=("pci.bus_id",), ours=_text("pci_bus_id")),
    Fact(name="compute_capability", fields=("compute_cap",), ours=_text("compute_capability")),
    _number("memory_mb", "memory.total"),
    _number("memory_reserved_mb", "memory.reserved", within=1),
    _number("memory_used_mb", "memory.used", within=64),
    _number("memory_free_mb", "memory.free", within=64),
    _number("utilization_percent", "utilization.gpu", within=25),
    _number("memory_utilization_percent", "utilization.memory", within=25),
    _number("temperature_c", "temperature.gpu", within=3),
    _number("power_w", "power.draw", "power.draw.average", within=15, within_share=0.2),
    _number("power_limit_w", "enforced.power.limit", within=1),
    _number("clock_sm_mhz", "clocks.sm", within=300, within_share=0.1),
    _number("clock_memory_mhz", "clocks.mem", within=300, within_share=0.1),
    _number("ecc_uncorrected", "ecc.errors.uncorrected.volatile.total"),
    _number("pcie_generation_max", "pcie.link.gen.max"),
    _number("pcie_width", "pcie.link.width.current"),
    _number("pcie_width_max", "pcie.link.width.max"),
    Fact(name="compute_mode", fields=("compute_mode",), ours=_text("compute_mode")),
    Fact(
        name="fabric completed",
        fields=("fabric.state",),
        ours=_fabric_completed,
        read=lambda text: text.casefold().endswith("completed"),
    ),
    *(
        _throttle(name)
        for name in (
            "sw_power_cap",
            "hw_slowdown",
            "hw_thermal_slowdown",
            "hw_power_brake_slowdown",
            "sw_thermal_slowdown",
            "sync_boost",
        )
    ),
    Fact(
        name="mig_enabled",
        fields=("mig.mode.current",),
        ours=_value("mig_enabled"),
        read=_FLAGS.__getitem__,
    ),
    Fact(name="recovery_action", fields=("gpu_recovery_action",), ours=_recovery),
    Fact(
        name="row_remap_failed",
        fields=("remapped_rows.failure",),
        ours=_has_reason("row_remap_failed"),
        read=_FLAGS.__getitem__,
    ),
)

_PENDING = ("retired_pages.pending", "remapped_rows.pending")
FIELDS = tuple(
    dict.fromkeys([*(name for fact in FACTS for name in fact.fields), "driver_version", *_PENDING])
)
"""What `nvidia-smi` is asked for."""


def compare(document: Document, before: Look, after: Look) -> Iterator[Comparison]:
    """Compare every GPU of a document with the looks before and after it."""
    whole = {gpu["uuid"]: gpu for gpu in document["gpus"] if not gpu["parent_uuid"]}
    yield from _driver(document, before, after)
    for uuid in sorted(whole.keys() | before.rows.keys()):
        listed = uuid in before.rows and uuid in after.rows
        yield _equal("listed", uuid, uuid in whole, (listed, listed))
        if uuid in whole and listed:
            yield from _of_gpu(whole[uuid], before.rows[uuid], after.rows[uuid])
            yield from _sets(document, whole[uuid], before, after)


def compare_first_memory_call(used_mb: Mapping[str, int], before: Look, after: Look) -> Iterator[Comparison]:
    """Compare NVML's first memory call: it counts what the driver reserves as used, from driver 510 on."""
    for uuid, mb in used_mb.items():
        if uuid not in before.rows or uuid not in after.rows:
            continue  # `compare` has said so
        bounds = [
            sum(
                float(look.rows[uuid][name])
                for name in ("memory.used", "memory.reserved")
                if look.rows[uuid].get(name, "") not in NOT_REPORTED
            )
            for look in (before, after)
        ]
        yield _near("memory used (first call)", uuid, mb, bounds, within=64)


def _driver(document: Document, before: Look, after: Look) -> Iterator[Comparison]:
    versions = [next(iter(look.rows.values()), {}).get("driver_version") for look in (before, after)]
    yield _equal("driver_version", "the driver", document["driver_version"], (versions[0], versions[1]))


def _of_gpu(gpu: Document, before: Mapping[str, str], after: Mapping[str, str]) -> Iterator[Comparison]:
    for fact in FACTS:
        texts = [_reported(row, fact.fields) for row in (before, after)]
        if None in texts:
            continue
        theirs = [fact.read(text) for text in texts if text is not None]
        ours = fact.ours(gpu)
        if fact.read is float:
            within = fact.within + fact.within_share * max(map(_as_float, theirs))
            yield _near(fact.name, gpu["uuid"], ours, [_as_float(one) for one in theirs], within=within)
        else:
            yield _equal(fact.name, gpu["uuid"], ours, (theirs[0], theirs[1]))
    pending = [
        [_FLAGS[row[name]] for name in _PENDING if row.get(name, "") not in NOT_REPORTED]
        for row in (before, after)
    ]
    if all(pending):
        yield _equal(
            "retirement_pending", gpu["uuid"], gpu["retirement_pending"], (any(pending[0]), any(pending[1]))
        )


def _sets(document: Document, gpu: Document, before: Look, after: Look) -> Iterator[Comparison]:
    uuid = gpu["uuid"]
    devices = frozenset(one["uuid"] for one in document["gpus"] if one["parent_uuid"] == uuid)
    yield _equal("MIG devices", uuid, devices, (before.mig_devices[uuid], after.mig_devices[uuid]))
    if gpu["processes"] is None or gpu["mig_enabled"]:
        return  # `nvidia-smi` lists the processes of MIG devices under their GPU
    ours = {one["pid"]: one["memory_mb"] for one in gpu["processes"]}
    theirs = [look.processes.get(uuid, {}) for look in (before, after)]
    steady, seen = theirs[0].keys() & theirs[1].keys(), theirs[0].keys() | theirs[1].keys()
    yield Comparison(
        fact="processes",
        uuid=uuid,
        ours=sorted(ours),
        theirs=(sorted(theirs[0]), sorted(theirs[1])),
        agrees=steady <= ours.keys() <= seen,
    )
    for pid in steady & ours.keys():
        texts = [look[pid] for look in theirs]
        if not NOT_REPORTED.intersection(texts):
            yield _near("memory of a process", uuid, ours[pid], [float(text) for text in texts], within=64)


def _reported(row: Mapping[str, str], fields: Iterable[str]) -> str | None:
    return next((row[name] for name in fields if row.get(name, "") not in NOT_REPORTED), None)


def _as_float(value: object) -> float:
    return float(str(value))


def _equal(fact: str, uuid: str, ours: object, theirs: tuple[object, object]) -> Comparison:
    return Comparison(fact=fact, uuid=uuid, ours=ours, theirs=theirs, agrees=ours in theirs)


def _near(fact: str, uuid: str, ours: object, theirs: Sequence[float], *, within: float) -> Comparison:
    both = (theirs[0], theirs[-1])
    if ours is None:
        return Comparison(fact=fact, uuid=uuid, ours=None, theirs=both, agrees=False)
    value = _as_float(ours)
    apart = max(min(theirs) - value, value - max(theirs), 0.0)
    return Comparison(fact=fact, uuid=uuid, ours=ours, theirs=both, agrees=apart <= within, apart=apart)
