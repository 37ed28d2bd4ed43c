"""The child's answer as the inventory's types: one line of JSON becomes one `GpuReport`.

The daemon and the command both parse answers here, so they cannot judge one reading differently. `read_once`
is the command's whole reading. What needs more than one reading is the health tracker's.
"""

import json
import time
from collections.abc import Iterator, Mapping
from typing import Any, Protocol

from gpu_agent.probe.health.reasons import REASONS, health_from, reason
from gpu_agent.probe.nvml.no_answer import DEADLINE_SECONDS, death_sentence, hung_sentence
from gpu_agent.probe.stand_in import UNIDENTIFIED
from gpu_agent.records import dataclass, field_names
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
    """A reading, and the id of its request."""

    id: int
    report: GpuReport


class OneShotChild(Protocol):
    """A child that was asked for one reading: forked from this program, or executed."""

    @property
    def requested_at(self) -> float:
        """Monotonic seconds."""

    @property
    def failure(self) -> str | None:
        """Why there is none."""

    def finish(self, timeout_seconds: float) -> tuple[bytes, bytes, int | None]:
        """Read its output and errors until it ends; without an exit status it is abandoned."""

    def dismiss(self) -> None:
        """End it unread."""


def read_once(child: OneShotChild, deadline_seconds: float = DEADLINE_SECONDS) -> GpuReport:
    """Fetch the answer.

    A driver that has not answered by the deadline, counted from the request, is broken.
    """
    if child.failure is not None:
        return GpuReport(outcome=Outcome.DRIVER_BROKEN, detail=child.failure)
    left = max(0.0, child.requested_at + deadline_seconds - time.monotonic())
    output, errors, status = child.finish(left)
    answers = [answer for line in output.splitlines() if (answer := parse_answer(line))]
    if answers:
        return answers[-1].report
    no_answer = hung_sentence(deadline_seconds) if status is None else death_sentence(status, errors)
    took_ms = round((time.monotonic() - child.requested_at) * 1000, 3)
    return GpuReport(outcome=Outcome.DRIVER_BROKEN, detail=no_answer, took_ms=took_ms)


def parse_answer(line: bytes) -> Answer | None:
    """Parse one line from the child; None for what is no answer, such as a library's chatter."""
    try:
        answer = json.loads(line)
    except ValueError:
        return None
    if not isinstance(answer, dict) or not isinstance(answer.get("id"), int) or "outcome" not in answer:
        return None
    try:
        report = _report(answer)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        report = GpuReport(
            outcome=Outcome.DRIVER_BROKEN,
            detail=f"The NVML child speaks another version than this agent ({error}): restart the agent.",
        )
    return Answer(answer["id"], report)


def _report(answer: Mapping[str, Any]) -> GpuReport:
    return GpuReport(
        outcome=Outcome(answer["outcome"]),
        detail=answer.get("detail"),
        gpus=tuple(_gpu(one) for one in answer.get("gpus", ())),
        driver_version=answer.get("driver_version"),
        cuda_version=answer.get("cuda_version"),
        took_ms=float(answer.get("took_ms", 0)),
    )


_COPIED_FIELDS = tuple(
    set(field_names(Gpu))
    - {"uuid", "name", "memory_kind", "retirement_pending", "throttle_reasons", "fabric_faults", "processes"}
    - {"health", "reasons", "events", "unknowns"}
)
"""Fields whose value the child sends as the inventory holds it."""

_RETIREMENT = ("row_remap_pending", "retired_pages_pending")
_FAULT_FIELDS = (*_RETIREMENT, "row_remap_failed")
"""Fields of a reading that are reasons by themselves."""
_NO_RECOVERY = "none"


def _gpu(sent: Mapping[str, Any]) -> Gpu:
    index = sent["index"]
    reasons = _reasons(sent)
    unknowns = dict(sent.get("unknowns", {}))
    retirement = [sent[name] for name in _RETIREMENT if name in sent]
    if not retirement:
        why_not = [unknowns.pop(name) for name in _RETIREMENT if name in unknowns]
        unknowns |= {"retirement_pending": why_not[0]} if why_not else {}
    throttle, fabric, processes = (
        sent.get(name) for name in ("throttle_reasons", "fabric_faults", "processes")
    )
    return Gpu(
        uuid=sent.get("uuid") or f"{UNIDENTIFIED}{index}",
        name=sent.get("name") or f"unidentified GPU {index}",
        memory_kind=MemoryKind(sent.get("memory_kind", MemoryKind.UNKNOWN)),
        retirement_pending=any(retirement) if retirement else None,
        throttle_reasons=None if throttle is None else tuple(throttle),
        fabric_faults=None if fabric is None else tuple(fabric),
        processes=None if processes is None else tuple(GpuProcess(**one) for one in processes),
        health=health_from(reasons),
        reasons=reasons,
        events={str(code): int(count) for code, count in sent.get("events", {}).items()},
        unknowns=unknowns,
        **{name: sent[name] for name in _COPIED_FIELDS if name in sent},
    )


def _reasons(sent: Mapping[str, Any]) -> tuple[HealthReason, ...]:
    given = [
        reason(one["code"], detail=f"{REASONS[one['code']].detail} ({one['detail']})")
        for one in sent.get("reasons", ())
    ]
    return (*given, *(reason(code) for code in _codes_of_figures(sent)))


def _codes_of_figures(sent: Mapping[str, Any]) -> Iterator[str]:
    """The reasons that figures are by themselves."""
    requested = sent.get("recovery_action", _NO_RECOVERY)
    if requested != _NO_RECOVERY:
        yield requested
    for name in _FAULT_FIELDS:
        if sent.get(name):
            yield name
    if sent.get("sram_threshold_exceeded"):
        yield "sram_ecc_threshold"
    if sent.get("compute_mode") == "prohibited":
        yield "compute_mode_prohibited"
    yield from sent.get("fabric_faults") or ()
