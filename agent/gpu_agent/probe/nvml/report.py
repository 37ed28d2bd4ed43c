"""The child's answer as the inventory's words: one line of JSON becomes one `GpuReport`.

Every path to the driver, the daemon's and the command's, reads answers here, so their
verdict on one reading cannot differ. What needs a history is `health`'s to say.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from gpu_agent.probe.health.reasons import REASONS, health_from, reason
from gpu_agent.probe.stand_in import UNIDENTIFIED
from gpu_agent.wire.inventory import (
    Gpu,
    GpuProcess,
    GpuReport,
    HealthReason,
    MemoryKind,
    Outcome,
)


@dataclass(frozen=True, slots=True)
class Answer:
    """A reading, and the ask that it answers."""

    id: int
    report: GpuReport


def parse_answer(line: bytes) -> Answer | None:
    """Read one line from the child; None for what is no answer, such as a library's chatter."""
    try:
        said = json.loads(line)
    except ValueError:
        return None
    if not isinstance(said, dict) or not isinstance(said.get("id"), int) or "outcome" not in said:
        return None
    try:
        report = _report(said)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        report = GpuReport(
            outcome=Outcome.DRIVER_BROKEN,
            detail=f"The NVML child speaks another version than this agent ({error}): restart the agent.",
        )
    return Answer(said["id"], report)


def _report(said: Mapping[str, Any]) -> GpuReport:
    return GpuReport(
        outcome=Outcome(said["outcome"]),
        detail=said.get("detail"),
        gpus=tuple(_gpu(one) for one in said.get("gpus", ())),
        driver_version=said.get("driver_version"),
        cuda_version=said.get("cuda_version"),
        took_ms=float(said.get("took_ms", 0)),
    )


_COPIED_FIELDS = tuple(
    {field.name for field in fields(Gpu)}
    - {"uuid", "name", "memory_kind", "retirement_pending", "throttle_reasons", "processes"}
    - {"health", "reasons", "events", "unknowns"}
)
"""Fields whose value the child sends as the inventory keeps it."""

_RETIREMENT = ("row_remap_pending", "retired_pages_pending")
_NOTHING = "none"
_SIGNS = (*_RETIREMENT, "row_remap_failed")
"""Facts of a reading that are reasons by themselves."""


def _gpu(said: Mapping[str, Any]) -> Gpu:
    index = said["index"]
    reasons = _reasons(said)
    unknowns = dict(said.get("unknowns", {}))
    retirement = [said[sign] for sign in _RETIREMENT if sign in said]
    if not retirement:
        why_not = [unknowns.pop(sign) for sign in _SIGNS if sign in unknowns]
        unknowns |= {"retirement_pending": why_not[0]} if why_not else {}
    throttle, processes = said.get("throttle_reasons"), said.get("processes")
    return Gpu(
        uuid=said.get("uuid") or f"{UNIDENTIFIED}{index}",
        name=said.get("name") or f"unidentified GPU {index}",
        memory_kind=MemoryKind(said.get("memory_kind", MemoryKind.UNKNOWN)),
        retirement_pending=any(retirement) if retirement else None,
        throttle_reasons=None if throttle is None else tuple(throttle),
        processes=None if processes is None else tuple(GpuProcess(**one) for one in processes),
        health=health_from(reasons),
        reasons=reasons,
        events={str(code): int(count) for code, count in said.get("events", {}).items()},
        unknowns=unknowns,
        **{name: said[name] for name in _COPIED_FIELDS if name in said},
    )


def _reasons(said: Mapping[str, Any]) -> tuple[HealthReason, ...]:
    given = [
        reason(one["code"], detail=f"{REASONS[one['code']].detail} ({one['detail']})")
        for one in said.get("reasons", ())
    ]
    asked_for = said.get("recovery_action", _NOTHING)
    recovery = () if asked_for == _NOTHING else (reason(asked_for),)
    return (*given, *recovery, *(reason(sign) for sign in _SIGNS if said.get(sign)))
