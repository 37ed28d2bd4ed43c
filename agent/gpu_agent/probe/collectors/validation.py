"""Validation of a collector's report, field by field: the rest of the program never meets rubbish.

A value that cannot be true becomes unknown, with the collector's value as its reason. A report whose GPUs
cannot be distinguished is refused as a whole. The rule of a field follows from its type in
`wire.inventory.Gpu` and from `GPU_BOUNDS`; `events`, `recovery_action` and `fabric_faults` are NVML's alone.
"""

import math
from collections.abc import Callable, Mapping
from functools import cache
from typing import TypeVar

from gpu_agent.probe.health.reasons import REASONS, health_from, reason
from gpu_agent.records import field_names
from gpu_agent.wire.inventory import (
    Gpu,
    GpuProcess,
    GpuReport,
    Health,
    HealthReason,
    MemoryKind,
    Outcome,
)

_LONGEST_TEXT = 256
_LONGEST_SENTENCE = 1024
_MOST_LISTED = 4096
_Kind = TypeVar("_Kind")


class InvalidReportError(ValueError):
    """This is no report, or its GPUs cannot be distinguished: the collector's fault."""


def validate(report: object) -> GpuReport:
    """Return the report with what is valid in it; what is not is unknown, with the reason.

    Raises:
        InvalidReportError: it is no report; the sentence says what is wrong with it.
    """
    if not isinstance(report, GpuReport):
        raise InvalidReportError(f"it gave {type(report).__name__} in place of a GpuReport")
    outcome, listed = _field(report, "outcome"), _field(report, "gpus")
    if not isinstance(outcome, Outcome) or not isinstance(listed, tuple):
        raise InvalidReportError("its report has no outcome, or no tuple of GPUs")
    if listed and len(listed) > (most := _bounds("index")[1]):
        raise InvalidReportError(f"it lists {len(listed)} GPUs, more than {most}")
    gpus = tuple(_gpu(one) for one in listed)
    if len({gpu.uuid for gpu in gpus}) < len(gpus):
        raise InvalidReportError("it lists a uuid twice")
    return GpuReport(
        outcome=outcome,
        detail=_text(report.detail, longest=_LONGEST_SENTENCE) or _default_detail(outcome),
        gpus=gpus,
        driver_version=_text(report.driver_version),
        took_ms=_number(0, math.inf)(report.took_ms) or 0.0,
    )


def _default_detail(outcome: Outcome) -> str | None:
    """The detail of a failed outcome that came without one."""
    if outcome is Outcome.OK:
        return None
    return f"A collector says {outcome.value} and not why: see the tools of its GPUs' vendor."


def _gpu(gpu: object) -> Gpu:
    if not isinstance(gpu, Gpu):
        raise InvalidReportError(f"among its GPUs is {type(gpu).__name__}")
    uuid, name = _text(gpu.uuid), _text(gpu.name)
    if not uuid or not name:
        raise InvalidReportError(f"a GPU has no uuid or no name: {_shown((gpu.uuid, gpu.name))}")
    figures: dict[str, object] = {}
    unknowns = _unknowns(gpu.unknowns)
    for field, rule in _rules().items():
        given = getattr(gpu, field)
        figures[field] = None if given is None else rule(given)
        if given is not None and figures[field] is None:
            unknowns[field] = f"its collector reported {_shown(given)}"
    reasons = _reasons(gpu)
    memory_kind = _field(gpu, "memory_kind")
    return Gpu(
        uuid=uuid,
        name=name,
        vendor=_text(gpu.vendor) or "unknown",
        memory_kind=memory_kind if isinstance(memory_kind, MemoryKind) else MemoryKind.UNKNOWN,
        health=health_from(reasons),
        reasons=reasons,
        unknowns=unknowns,
        offered=_flag(_field(gpu, "offered")) is not False,
        **figures,  # type: ignore[arg-type]  # each passed the rule of its field
    )


def _reasons(gpu: Gpu) -> tuple[HealthReason, ...]:
    """Return the reasons that `REASONS` has; any other fault gets the code of its health."""
    health, given = _field(gpu, "health"), _field(gpu, "reasons")
    stated = [one for one in _listed(given, HealthReason) if _text(_field(one, "code"))]
    known = [
        reason(
            one.code,
            detail=_text(one.detail, longest=_LONGEST_SENTENCE),
            since=_number(0, math.inf)(one.since),
        )
        for one in stated
        if one.code in REASONS
    ]
    if health in (Health.OK, health_from(known)):
        return tuple(known)
    code = _CODE_OF.get(health, _UNSURE) if isinstance(health, Health) else _UNSURE
    others = "; ".join(f"{_text(one.code)}: {_text(one.detail)}" for one in stated if one.code not in REASONS)
    return (*known, reason(code, detail=others or None))


_UNSURE = "collector_unsure"
_CODE_OF = {Health.DEGRADED: "collector_degraded", Health.LOST: "gpu_lost"}


def _field(holder: object, name: str) -> object:
    """Return the value of a field as an object: the field's type was never checked."""
    value: object = getattr(holder, name)
    return value


def _listed(value: object, kind: type[_Kind]) -> list[_Kind]:
    """Return the items of a tuple that have the type; none of what is no tuple, or too long."""
    if not isinstance(value, tuple) or len(value) > _MOST_LISTED:
        return []
    return [one for one in value if isinstance(one, kind)]


def _text(value: object, *, longest: int = _LONGEST_TEXT) -> str | None:
    """Return a text without control characters, which steer a terminal, cut to a length; None for no text."""
    if not isinstance(value, str):
        return None
    return "".join(letter if letter.isprintable() else " " for letter in value[:longest]).strip()


def _flag(value: object) -> bool | None:
    return value if isinstance(value, bool) else None


def _number(least: float, most: float) -> Callable[[object], float | None]:
    def check(value: object) -> float | None:
        fits = isinstance(value, int | float) and not isinstance(value, bool) and least <= value <= most
        return float(value) if fits and isinstance(value, int | float) else None

    return check


def _count(least: float, most: float) -> Callable[[object], int | None]:
    def check(value: object) -> int | None:
        whole = isinstance(value, int) and not isinstance(value, bool)
        return value if whole and isinstance(value, int) and least <= value <= most else None

    return check


def _texts(value: object) -> tuple[str, ...] | None:
    texts = tuple(text for one in _listed(value, str) if (text := _text(one)))
    return texts if texts or value == () else None


def _processes(value: object) -> tuple[GpuProcess, ...] | None:
    pid, memory = _count(1, 1 << 31), _count(*_bounds("memory_used_mb"))
    processes = tuple(
        GpuProcess(pid=one.pid, memory_mb=memory(one.memory_mb))
        for one in _listed(value, GpuProcess)
        if pid(one.pid) is not None
    )
    return processes if processes or value == () else None


def _unknowns(value: object) -> dict[str, str]:
    if not isinstance(value, Mapping):
        return {}
    known = set(field_names(Gpu))
    return {str(name): _text(why) or "no reason was given" for name, why in value.items() if name in known}


def _shown(value: object) -> str:
    """Show a value, shortly; its own `repr` is the collector's code, and may fail."""
    if isinstance(value, int | float | str | bytes | tuple):
        return f"{value!r:.60}"
    return type(value).__name__


_NVML_ALONE = frozenset({"recovery_action", "fabric_faults"})
_OF_TYPE: Mapping[object, Callable[[object], object]] = {
    str | None: _text,
    bool | None: _flag,
    tuple[str, ...] | None: _texts,
    tuple[GpuProcess, ...] | None: _processes,
}
_OF_FIGURE: Mapping[object, Callable[[float, float], Callable[[object], object]]] = {
    int | None: _count,
    float | None: _number,
}


@cache
def _rules() -> Mapping[str, Callable[[object], object]]:
    """Make the rule of each field that may be unknown, by its type, and by its bounds if it is a number."""
    rules: dict[str, Callable[[object], object]] = {}
    for name, kind in Gpu.__annotations__.items():
        if kind in _OF_FIGURE:
            rules[name] = _OF_FIGURE[kind](*_bounds(name))
        elif kind in _OF_TYPE and name not in _NVML_ALONE:
            rules[name] = _OF_TYPE[kind]
    return rules


def _bounds(name: str) -> tuple[int, int]:
    from gpu_agent.probe.nvml.readings import GPU_BOUNDS  # noqa: PLC0415 - most collectors find no GPU

    return GPU_BOUNDS[name]
