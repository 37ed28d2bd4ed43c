"""What a simulated machine is to be, parsed from one line: GPUs, MIG devices, models, faults, its name.

    4xA100-80GB:lost#2@60s-120s, 1xH100-80GB/3g.40gb+2x1g.10gb ; models: whisper=asr ; host: gpu-07

`docs/howto/simulation.md` has the grammar. An error names the place, counted in characters from 1, and what
to write. MIG profiles are checked by size only, not by the driver's rules of placement.
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import inf
from typing import TypeVar

from gpu_agent.probe.health.xids import XIDS
from gpu_agent.probe.models.kinds import KINDS
from gpu_agent.probe.simulation.gpu_models import GpuModel, SimulationError, find_gpu_model

MAX_GPUS = 64
"""How many GPUs one simulated machine may have."""
FAULTS = (
    *("lost", "degraded", "hot", "unknown", "hang", "slowdown", "ecc", "sram", "reset", "prohibited"),
    *("fabric", "nvlinkdown", "nvlinkerrors", "pcie"),
)
OF_NVLINK = frozenset({"fabric", "nvlinkdown", "nvlinkerrors"})
"""Those of a GPU model with NVLinks only."""
"""Faults of a GPU, besides `xidN`; a hang is the whole driver's."""
MODEL_STATES = ("downloading", "error", "gone")
MIG_COMPUTE_PARTS = 7
"""A GPU in MIG mode has at most so many compute parts."""
_MIG_LAYOUT = re.compile(
    r"(?:(?P<count>[0-9]{1,3})\s*[x×]\s*)?(?P<compute>[1-7])g\.(?P<gb>[0-9]{1,4})gb",  # noqa: RUF001
    re.IGNORECASE,
)
_MIB_PER_GB = 1024
_LEFT_BY_THE_DRIVER = 0.97

_COUNT_DIGITS = 6  # more than any limit; int() of thousands of digits is refused
_GROUP = re.compile(r"(?:(?P<count>[0-9]+)\s*[x×]\s*)?(?P<gpu_model>.*)", re.IGNORECASE)  # noqa: RUF001
_MODELS = re.compile(r"\s*models\s*:", re.IGNORECASE)
_HOST = re.compile(r"\s*host\s*:\s*(?P<name>.*?)\s*", re.IGNORECASE)
_HOSTNAME = re.compile(r"[a-z0-9][a-z0-9.-]{0,252}", re.IGNORECASE)
_FAULT = re.compile(
    r"(?P<name>[a-z0-9]+)\s*(?:#\s*(?P<which>[0-9]{1,6}))?\s*(?:@(?P<when>.*))?", re.IGNORECASE
)
_TIME = re.compile(r"\s*([0-9]{1,9}(?:\.[0-9]{1,3})?)([smhd])\s*", re.IGNORECASE)
_UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_Read = TypeVar("_Read")


@dataclass(frozen=True, slots=True)
class MigProfile:
    """The size of one MIG device."""

    compute: int
    memory_gb: int

    @property
    def name(self) -> str:
        """As the driver writes it."""
        return f"{self.compute}g.{self.memory_gb}gb"

    @property
    def memory_mb(self) -> int:
        """MiB; as with true MIG devices, the driver takes a little."""
        return round(self.memory_gb * _MIB_PER_GB * _LEFT_BY_THE_DRIVER)


@dataclass(frozen=True, slots=True, kw_only=True)
class SimulatedFault:
    """A fault of a GPU or a model, in seconds from when the simulation begins."""

    name: str
    begins: float = 0.0
    ends: float = inf

    def holds_at(self, elapsed: float) -> bool:
        """Whether it lasts at that moment."""
        return self.begins <= elapsed < self.ends


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuPlan:
    """One GPU."""

    gpu_model: GpuModel
    mig_profiles: tuple[MigProfile, ...] = ()
    faults: tuple[SimulatedFault, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelPlan:
    """One model that the machine has."""

    model_id: str
    kind: str
    faults: tuple[SimulatedFault, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Simulation:
    """A machine that does not exist."""

    gpus: tuple[GpuPlan, ...]
    models: tuple[ModelPlan, ...] | None = None
    """None where the line states none: then the models on the disks are reported."""
    hangs: tuple[SimulatedFault, ...] = ()
    """When the driver does not answer."""
    hostname: str | None = None
    """None: that of the true machine."""


def parse_spec(spec: str) -> Simulation:
    """Parse a line.

    Raises:
        SimulationError: it cannot be parsed, or names something unknown; says where, and what to write.
    """
    machine, *sections = spec.split(";")
    plans: list[GpuPlan] = []
    hangs: list[SimulatedFault] = []
    for place, group in _parts(machine, ","):
        gpus, driver = _placed(place, group, lambda text: _group(text, whole=spec))
        plans += gpus
        hangs += driver
        if len(plans) > MAX_GPUS:
            raise SimulationError(f"{spec.strip()[:60]!r} asks for more than {MAX_GPUS} GPUs: ask for fewer.")
    models: tuple[ModelPlan, ...] | None = None
    hostname: str | None = None
    start = len(machine) + 1
    for section in sections:
        if (host := _HOST.fullmatch(section)) is not None:
            hostname = _placed(start + host.start("name"), host["name"], _hostname)
        else:
            models = tuple(_models(section, start))
        start += len(section) + 1
    return Simulation(gpus=tuple(plans), models=models, hangs=tuple(hangs), hostname=hostname)


def _hostname(text: str) -> str:
    if _HOSTNAME.fullmatch(text) is None:
        raise SimulationError(f"{text[:40]!r} is no hostname: write for example gpu-07.")
    return text


def _parts(text: str, separator: str, start: int = 0) -> Iterator[tuple[int, str]]:
    """Each part with where it begins, spaces left out."""
    for part in text.split(separator):
        yield start + len(part) - len(part.lstrip()), part.strip()
        start += len(part) + 1


def _placed(place: int, text: str, read: Callable[[str], _Read]) -> _Read:
    """Parse a part; an error names its place in the line."""
    try:
        return read(text)
    except _PlacedError:
        raise
    except SimulationError as error:
        raise _PlacedError(f"at character {place + 1}, {error}") from None


class _PlacedError(SimulationError):
    """An error that names its place already."""


def _group(text: str, *, whole: str) -> tuple[list[GpuPlan], list[SimulatedFault]]:
    if not text:
        raise SimulationError(f"{whole[:60]!r} has an empty group: write for example 8xH100-80GB.")
    written, *faults_text = text.split(":")
    named, slash, layout = written.partition("/")
    count, gpu_model = _counted(named.strip())
    profiles = parse_mig_layout(layout, gpu_model) if slash else ()
    faults = [_fault(each.strip(), count) for each in faults_text]
    if not gpu_model.nvlinks and (impossible := OF_NVLINK & {fault.name for fault, _ in faults}):
        raise SimulationError(f"{gpu_model.label} has no NVLink: leave out :{min(impossible)}.")
    hangs = [fault for fault, _ in faults if fault.name == "hang"]
    plans = [
        GpuPlan(
            gpu_model=gpu_model,
            mig_profiles=profiles,
            faults=tuple(f for f, which in faults if f.name != "hang" and which in (None, number)),
        )
        for number in range(1, min(count, MAX_GPUS + 1) + 1)
    ]
    return plans, hangs


def _counted(text: str) -> tuple[int, GpuModel]:
    match = _GROUP.fullmatch(text)
    count, wanted = (match["count"], match["gpu_model"]) if match else (None, text)
    if not wanted:
        raise SimulationError(f"{text!r} names no GPU: write for example {text}H100-80GB.")
    gpus = int(count[:_COUNT_DIGITS]) if count else 1
    if gpus == 0:
        raise SimulationError(f"{text!r} asks for no GPU at all: write at least 1x.")
    return gpus, find_gpu_model(wanted)


def parse_mig_layout(text: str, gpu_model: GpuModel) -> tuple[MigProfile, ...]:
    """One profile for each MIG device, such as `3g.40gb+2x1g.10gb`.

    Raises:
        SimulationError: it cannot be parsed, or the GPU model is too small for it.
    """
    if not gpu_model.mig:
        raise SimulationError(f"{gpu_model.label} has no MIG: leave out /{text.strip()[:40]}.")
    found: list[MigProfile] = []
    for part in map(str.strip, text.split("+")):
        match = _MIG_LAYOUT.fullmatch(part)
        if match is None:
            raise SimulationError(
                f"{part[:40]!r} is no MIG profile: write for example 7x1g.10gb or 3g.40gb+4g.40gb."
            )
        profile = MigProfile(int(match["compute"]), int(match["gb"]))
        if profile.memory_gb == 0:
            raise SimulationError(f"{part!r} has no memory: write for example 1g.10gb.")
        found += [profile] * int(match["count"] or 1)
    compute, memory_mb = sum(each.compute for each in found), sum(each.memory_mb for each in found)
    if not found or compute > MIG_COMPUTE_PARTS or memory_mb > gpu_model.memory_mb:
        raise SimulationError(
            f"{text.strip()[:40]!r} asks for {compute} parts and {sum(each.memory_gb for each in found)} GB: "
            f"{gpu_model.label} has {MIG_COMPUTE_PARTS} and {round(gpu_model.memory_mb / _MIB_PER_GB)} GB."
        )
    return tuple(found)


def _fault(text: str, count: int) -> tuple[SimulatedFault, int | None]:
    match = _FAULT.fullmatch(text)
    name = match["name"].lower() if match else ""
    if match is None or not _is_fault(name):
        raise SimulationError(_no_fault(text, (*FAULTS, *(f"xid{number}" for number in XIDS))))
    which = int(match["which"]) if match["which"] else None
    if which is not None and name == "hang":
        raise SimulationError(f"{text!r} names one GPU, but the driver hangs for all: write hang without #.")
    if which is not None and not 1 <= which <= count:
        raise SimulationError(f"{text!r} names GPU {which} of a group of {count}: count from #1 to #{count}.")
    return _timed(name, match["when"], text), which


def _is_fault(name: str) -> bool:
    number = name.removeprefix("xid")
    return name in FAULTS or (name.startswith("xid") and number.isdecimal() and int(number[:6]) in XIDS)


def _models(text: str, start: int) -> Iterator[ModelPlan]:
    head = _MODELS.match(text)
    if head is None:
        raise SimulationError(
            f"at character {start + 1}, {text.strip()[:40]!r} is no list of models: write "
            "for example ; models: whisper=asr, opus-mt-zh-en=nmt."
        )
    if not text[head.end() :].strip():
        return
    for place, entry in _parts(text[head.end() :], ",", start + head.end()):
        yield _placed(place, entry, _model)


def _model(text: str) -> ModelPlan:
    model_id, sign, rest = text.partition("=")
    kind, *states = (part.strip() for part in rest.split(":"))
    if not sign or not model_id.strip():
        raise SimulationError(f"{text[:40]!r} is no model: write its id and its kind, such as whisper=asr.")
    if kind not in KINDS:
        raise SimulationError(f"{kind!r} is no kind of model. Kinds: {', '.join(KINDS)}.")
    return ModelPlan(model_id=model_id.strip(), kind=kind, faults=tuple(_state(each) for each in states))


def _state(text: str) -> SimulatedFault:
    match = _FAULT.fullmatch(text)
    if match is None or match["which"] or match["name"].lower() not in MODEL_STATES:
        raise SimulationError(_no_fault(text, MODEL_STATES, what="no state of a model"))
    return _timed(match["name"].lower(), match["when"], text)


def _timed(name: str, when: str | None, text: str) -> SimulatedFault:
    if when is None:
        return SimulatedFault(name=name)
    begin, dash, end = when.partition("-")
    begins, ends = _seconds(begin), _seconds(end) if dash else inf
    if ends <= begins:
        raise SimulationError(f"{text!r} ends before it begins: write the later time last.")
    return SimulatedFault(name=name, begins=begins, ends=ends)


def _seconds(text: str) -> float:
    match = _TIME.fullmatch(text)
    if match is None:
        raise SimulationError(f"{text.strip()!r} is no time: write it like 90s, 5m or 1h.")
    return float(match[1]) * _UNITS[match[2].lower()]


def _no_fault(text: str, known: tuple[str, ...], *, what: str = "no fault") -> str:
    word = re.split(r"[#@]", text)[0].strip().lower()
    from difflib import get_close_matches  # noqa: PLC0415 - for a mistake alone

    nearest = get_close_matches(word, known, n=1, cutoff=0.0)[0]
    there = ", ".join(known)
    return f"{text[:40]!r} is {what} that can be simulated; the nearest is {nearest}. There are: {there}."
