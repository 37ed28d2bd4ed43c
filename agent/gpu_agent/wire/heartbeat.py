"""One heartbeat as the registry handles it, whichever reader read its frame (§3.4).

A `NodeHeartbeat` is what agents write, and what describes the message. A registry that reads thousands a
second can afford neither a model for each part nor a look at each GPU by itself: here a heartbeat is one flat
record, and the figures of GPUs are columns. What only informs (`timestamp`, `sequence`) is left out. A null
part is an absent one, as everywhere on the wire.
"""

from collections.abc import Iterable, Mapping
from operator import attrgetter
from typing import Any, NamedTuple

from gpu_agent.wire.messages import GpuFigures, Hardware, InstalledModel, NodeCheck, NodeHeartbeat

ModelRow = tuple[str | int | bool | None, ...]
"""The values of an `InstalledModel`, in the order of its fields."""


class Usage(NamedTuple):
    """A machine's load, with the fields of `ResourceUsage`. Unknown figures are None."""

    cpu_percent: float
    mem_percent: float
    gpu_percent: float | None = None
    gpu_mem_percent: float | None = None
    running_jobs: int | None = None


class GpuColumns(NamedTuple):
    """The figures of a node's GPUs, with the fields of `GpuFigures`: each holds a value for each GPU."""

    uuid: tuple[str, ...] = ()
    utilization_percent: tuple[float | None, ...] = ()
    memory_used_mb: tuple[int | None, ...] = ()
    memory_total_mb: tuple[int | None, ...] = ()
    temperature_c: tuple[float | None, ...] = ()
    power_w: tuple[float | None, ...] = ()
    processes: tuple[int | None, ...] = ()
    health: tuple[str, ...] = ()
    reasons: tuple[tuple[str, ...], ...] = ()

    @classmethod
    def of(cls, figures: Iterable[GpuFigures]) -> "GpuColumns":
        """Arrange figures in columns."""
        return cls(*zip(*map(_figures_in_order, figures), strict=True))


class Parts(NamedTuple):
    """The parts of a declaration that a heartbeat replaces, each in full: None where it does not."""

    installed_models: tuple[ModelRow, ...] | None = None
    capability_state: Mapping[str, str] | None = None
    accept_public_jobs: bool | None = None
    labels: Mapping[str, str] | None = None
    max_concurrent_jobs: int | None = None
    hardware: Hardware | None = None
    checks: tuple[NodeCheck, ...] | None = None

    def or_else(self, earlier: "Parts | None") -> "Parts":
        """Return these parts, and of those that they leave out the ones that an earlier heartbeat brought."""
        if earlier is None:
            return self
        absent: dict[str, Any] = {
            name: part for name, part in earlier._asdict().items() if getattr(self, name) is None
        }
        return self._replace(**absent)


class Heartbeat(NamedTuple):
    """What a node reports."""

    node_id: str
    usage: Usage
    gpus: GpuColumns | None = None
    """None where it reports no GPU by itself; no columns' values where it lists none."""
    probe_age_seconds: float | None = None
    running_jobs: tuple[str, ...] | None = None
    parts: Parts | None = None
    """None where it replaces no part of the declaration."""

    @classmethod
    def of(cls, message: NodeHeartbeat) -> "Heartbeat":
        """Take over a message."""
        gpus, models = message.gpus, message.installed_models
        parts = Parts(
            installed_models=None if models is None else model_rows(models),
            capability_state=message.capability_state,
            accept_public_jobs=message.accept_public_jobs,
            labels=message.labels,
            max_concurrent_jobs=message.max_concurrent_jobs,
            hardware=message.hardware,
            checks=message.checks,
        )
        return cls(
            node_id=message.node_id,
            usage=Usage(*_usage_in_order(message.resource_usage)),
            gpus=None if gpus is None else GpuColumns.of(gpus),
            probe_age_seconds=message.probe_age_seconds,
            running_jobs=message.running_jobs,
            parts=None if parts == _NO_PARTS else parts,
        )

    def with_parts_of(self, earlier: "Heartbeat") -> "Heartbeat":
        """Return this heartbeat with the parts that an earlier one replaced and this one does not."""
        parts = earlier.parts if self.parts is None else self.parts.or_else(earlier.parts)
        return self._replace(parts=parts)


_NO_PARTS = Parts()


def model_rows(models: Iterable[InstalledModel]) -> tuple[ModelRow, ...]:
    """Return the values of models."""
    return tuple(map(_model_in_order, models))


def models_of(rows: Iterable[ModelRow]) -> tuple[InstalledModel, ...]:
    """Return the models with these values."""
    names = InstalledModel.model_fields
    return tuple(InstalledModel.model_validate(dict(zip(names, row, strict=True))) for row in rows)


_usage_in_order = attrgetter(*Usage._fields)
_figures_in_order = attrgetter(*GpuColumns._fields)
_model_in_order = attrgetter(*InstalledModel.model_fields)
