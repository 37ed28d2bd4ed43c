"""A node's account of itself to those who wonder why it gets no job: what stands against it, what it is.

Composes what `objections` finds with the state of one model; judges nothing.
"""

from dataclasses import dataclass

from gpu_agent.registry import objections
from gpu_agent.registry.dispatch import naming
from gpu_agent.registry.dispatch.scope import EveryJob
from gpu_agent.registry.dispatch.view import NodeView
from gpu_agent.registry.objections import Objection
from gpu_agent.registry.quoting import quoted
from gpu_agent.registry.record import NodeRecord


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelVersion:
    """One installed version of a model; `status` is the node's own word for it."""

    version: str
    enabled: bool
    status: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelState:
    """How it stands with one model on a node."""

    model_id: str
    ready: bool
    state: str
    """`ready`, `disabled`, `not installed`, or the status of the first enabled version."""
    versions: tuple[ModelVersion, ...]
    reported: str | None
    """What `capability_state` says of it, which goes before the versions' own status."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeWhy:
    """A node's account of itself to those who wonder why it gets no job."""

    node_id: str
    objections: tuple[Objection, ...]
    """In the order of the filters; empty for a node that takes every job within its limits."""
    limits: tuple[Objection, ...]
    model: ModelState | None = None

    @property
    def refuses_every_job(self) -> bool:
        """True while no job at all may come."""
        return any(isinstance(one.scope, EveryJob) for one in self.objections)


def why(view: NodeView, now: float, model: str | None = None) -> NodeWhy:
    """Give the account of one node; `model` asks for the state of that model besides."""
    record = view.record
    return NodeWhy(
        node_id=record.node_id,
        objections=tuple(objections.objections(view, now, model)),
        limits=tuple(objections.limits(view)),
        model=None if model is None else _model(record, model),
    )


def _model(record: NodeRecord, model: str) -> ModelState:
    installed = [one for one in record.models if one.model_id == model]
    return ModelState(
        model_id=model,
        ready=model in record.ready_models,
        state=naming.model_state(record, model),
        versions=tuple(
            ModelVersion(version=one.version, enabled=one.enabled, status=quoted(one.status))
            for one in installed
        ),
        reported=(record.capability_state or {}).get(model),
    )
