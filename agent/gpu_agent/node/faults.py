"""Faults of the machine that the registry is told of, for the node's history (§3.3).

One for each kind and probe: the GPUs that were lost since the last, or what keeps all of them from
being read. That a GPU is well again is no fault, and its health travels with every beat anyway.
"""

from gpu_agent.session.events import FaultFound
from gpu_agent.wire.inventory import Gpu, GpuReport, Health

_MOST_NAMED = 4
_LONGEST = 4000
"""Characters of a fault's sentences: a message holds 4096 at most, and a driver's words may be any number."""
_OF_ALL_GPUS = ("nvml_hung", "nvml_child_died", "driver_broken", "no_driver")
"""Reasons that every GPU of the machine has together, and whose sentence says all."""


class Faults:
    """Compares each report with the one before."""

    def __init__(self) -> None:
        self._lost: frozenset[str] = frozenset()
        self._unread: str | None = None

    def found_in(self, report: GpuReport) -> tuple[FaultFound, ...]:
        """Name what failed since the report before."""
        lost = [gpu for gpu in report.gpus if gpu.health is Health.LOST and gpu.parent_uuid is None]
        newly = [gpu for gpu in lost if gpu.uuid not in self._lost]
        self._lost = frozenset(gpu.uuid for gpu in lost)
        faults = (FaultFound("GPU_LOST", _cut(_of_lost(newly))),) if newly else ()
        return (*faults, *self._of_all(report))

    def _of_all(self, report: GpuReport) -> tuple[FaultFound, ...]:
        given = {each.code: each.detail for gpu in report.gpus for each in gpu.reasons}
        unread = next((code for code in _OF_ALL_GPUS if code in given), None)
        before, self._unread = self._unread, unread
        return (FaultFound(unread.upper(), _cut(given[unread])),) if unread and unread != before else ()


def _of_lost(gpus: list[Gpu]) -> str:
    named = [f"GPU {gpu.index} ({gpu.uuid}): {_why(gpu)}" for gpu in gpus[:_MOST_NAMED]]
    more = len(gpus) - len(named)
    return " ".join([*named, f"And {more} more."] if more else named)


def _why(gpu: Gpu) -> str:
    actions = dict.fromkeys(each.action for each in gpu.reasons if each.action)
    return f"{'; '.join(each.detail for each in gpu.reasons)}. Next: {'; '.join(actions)}."


def _cut(words: str) -> str:
    return words if len(words) <= _LONGEST else f"{words[:_LONGEST]}…"
