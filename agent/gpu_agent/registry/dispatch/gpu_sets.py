"""Which nodes have enough usable GPUs of a name: nodes with the same set of GPUs share one verdict.

A fleet has few different sets, and jobs ask for few different things, so each demand's answer is worked out
once and then kept right as nodes change. Knows no memory: that is filed apart.
"""

from collections.abc import Set as AbstractSet

from gpu_agent.registry.dispatch.bits import Postings
from gpu_agent.registry.dispatch.view import GpuSet

_REMEMBERED_DEMANDS = 256
"""Beyond so many different demands all are forgotten and worked out again when asked."""


class GpuSets:
    """Slots by the set of usable GPUs that their nodes have."""

    def __init__(self) -> None:
        self._sets = Postings[GpuSet]()
        self._answers: dict[tuple[str, int], int] = {}

    def holders(self, name: str, count: int) -> int:
        """Return the slots with at least `count` GPUs whose name contains `name` (lower case)."""
        answer = self._answers.get((name, count))
        if answer is None:
            answer = self._work_out(name, count)
        return answer

    def move(self, slot: int, old: GpuSet | None, new: GpuSet | None) -> None:
        """File a slot under another set; None is no node there, `()` a node without usable GPUs."""
        self._sets.move(slot, _one(old), _one(new))
        for (name, count), answer in self._answers.items():
            if _suffices(old, name, count) is not _suffices(new, name, count):
                self._answers[name, count] = answer ^ 1 << slot

    def _work_out(self, name: str, count: int) -> int:
        if len(self._answers) >= _REMEMBERED_DEMANDS:
            self._answers.clear()
        answer = 0
        for gpus in self._sets:
            if _suffices(gpus, name, count):
                answer |= self._sets.holders(gpus)
        self._answers[name, count] = answer
        return answer


def _one(gpus: GpuSet | None) -> AbstractSet[GpuSet]:
    return set() if gpus is None else {gpus}


def _suffices(gpus: GpuSet | None, name: str, count: int) -> bool:
    return gpus is not None and sum(number for one, number in gpus if name in one) >= count
