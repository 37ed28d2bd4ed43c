"""How much GPU memory is free, once what claims need and the node does not show yet is taken off (§5).

A claim promises that its GPU's use will grow by what the job needs. What has grown since is shown by the
node's own figures; only the rest is taken off again. A promise on a GPU that the node no longer declares may
be kept by any of those that it does: it is taken off each of them, whole, until its claim ends.
"""

from dataclasses import dataclass

from gpu_agent.registry.gpus import GpuState
from gpu_agent.registry.load import known_percent
from gpu_agent.registry.record import NodeRecord


@dataclass(slots=True)
class Promise:
    """What the claims on one GPU will make of its memory. MiB."""

    claims: int = 0
    needs_mb: int = 0
    expected_mb: int = 0
    """The use that the node will show once every claim has what it needs."""

    def make(self, need_mb: int, used_mb: int, *, shown: bool) -> None:
        """Add a claim; `shown` says that its job runs, so that `used_mb` holds its memory already."""
        self.claims += 1
        self.needs_mb += need_mb
        self.expected_mb = max(self.expected_mb, used_mb) + (0 if shown else need_mb)

    def end(self, need_mb: int) -> None:
        """Take a claim back."""
        self.claims -= 1
        self.needs_mb -= need_mb
        self.expected_mb -= need_mb

    def unshown_mb(self, used_mb: int) -> int:
        """Return what is promised and not in the node's figures yet; never more than all needs."""
        return min(max(self.expected_mb - used_mb, 0), self.needs_mb)


Promises = dict[str, Promise]
"""By the GPU's UUID; a GPU without claims has no entry."""


def used_mb(record: NodeRecord, gpu: GpuState) -> int:
    """Return what the node says is in use; its mean over all GPUs where it tells nothing of this one.

    Never less than nothing or more than the GPU has: no figure of a node puts it into debt.
    """
    used, memory = gpu.memory_used_mb, gpu.memory_mb
    if used is not None:
        return max(used, 0) if memory is None else min(max(used, 0), memory)
    share = None if record.usage is None else known_percent(record.usage.gpu_mem_percent)
    return 0 if share is None or memory is None else int(memory * share / 100)


def free_mb(record: NodeRecord, gpu: GpuState, promises: Promises) -> int | None:
    """Return what a new job may count on; None where the GPU's memory is unknown."""
    if gpu.memory_mb is None:
        return None
    used = used_mb(record, gpu)
    if not promises:
        return gpu.memory_mb - used
    promise = promises.get(gpu.uuid)
    promised = 0 if promise is None else promise.unshown_mb(used)
    return gpu.memory_mb - used - promised - _stray_mb(record, promises)


def _stray_mb(record: NodeRecord, promises: Promises) -> int:
    """Return what is promised on GPUs that the node declares no more, as after a change of schema."""
    declared = record.gpus.keys()
    if promises.keys() <= declared:
        return 0
    return sum(promise.needs_mb for uuid, promise in promises.items() if uuid not in declared)
