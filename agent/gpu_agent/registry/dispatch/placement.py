"""Which of a node's GPUs a job gets. Presumes that the node is able; judges and reserves nothing."""

from gpu_agent.registry.dispatch.demand import Demand
from gpu_agent.registry.dispatch.memory import free_mb
from gpu_agent.registry.dispatch.view import NodeView, usable_gpus
from gpu_agent.registry.gpus import GpuState
from gpu_agent.registry.load import known_percent

_UNKNOWN_USE_PERCENT = 50.0


def fittest(view: NodeView, demand: Demand) -> tuple[str, ...]:
    """Choose GPUs with enough free memory: fewest claims first, then most free memory, then least busy."""
    record, promises, needed = view.record, view.promises, demand.memory_mb

    def rating(gpu: GpuState, free: int) -> tuple[int, int, float]:
        promise = promises.get(gpu.uuid)
        busy = known_percent(gpu.utilization_percent)
        return (
            0 if promise is None else promise.claims,
            -free,
            _UNKNOWN_USE_PERCENT if busy is None else busy,
        )

    fitting: list[tuple[tuple[int, int, float], str]] = []
    for gpu in usable_gpus(record, demand.gpu_name):
        free = free_mb(record, gpu, promises)
        if not needed or (free is not None and free >= needed):
            fitting.append((rating(gpu, free or 0), gpu.uuid))
    fitting.sort()
    return tuple(uuid for _, uuid in fitting[: max(demand.gpu_count, 0)])
