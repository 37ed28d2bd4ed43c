"""Which nodes an operator wants to see. Judges records; orders and shows nothing."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache

from gpu_agent.registry.record import NodeRecord
from gpu_agent.wire.codes import NodeStatus


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeFilter:
    """Wishes that a node must meet, all of them; each that is left out is no wish."""

    statuses: frozenset[NodeStatus] = frozenset()
    """Any one of these."""
    model: str | None = None
    """A model that is installed, enabled and ready."""
    labels: Mapping[str, str] = field(default_factory=dict)
    gpu_name: str | None = None
    """Part of a GPU's name, whatever the case."""
    connected: bool | None = None

    def admits(self, record: NodeRecord) -> bool:
        """Say whether a node is wanted."""
        if self.statuses and record.status not in self.statuses:
            return False
        if self.connected is not None and record.connected is not self.connected:
            return False
        if self.model is not None and self.model not in record.ready_models:
            return False
        if any(record.labels.get(name) != value for name, value in self.labels.items()):
            return False
        return self.gpu_name is None or _has_gpu(record.gpus.names, self.gpu_name.lower())


EVERYBODY = NodeFilter()


@lru_cache(maxsize=256)
def _has_gpu(names: tuple[str | None, ...], part: str) -> bool:
    """Remembered: ten thousand nodes have few kinds of GPUs between them."""
    return any(part in name.lower() for name in names if name is not None)
