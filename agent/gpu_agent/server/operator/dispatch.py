"""Dispatch questioned over HTTP: which place a job would get, and why a job or a node gets none.

Reserves nothing and changes nothing.
"""

from typing import Annotated

from fastapi import APIRouter, Query
from fastapi.responses import StreamingResponse
from pydantic import Field

from gpu_agent.registry.dispatch.verdict import NoAvailableNode
from gpu_agent.registry.objections import Objection
from gpu_agent.registry.why import ModelState, NodeWhy
from gpu_agent.server.dispatch_views import ExclusionsView, Selection
from gpu_agent.server.explanation_json import written
from gpu_agent.server.operator.models import ApiModel, DryRunRequest, ExplanationAnswer, Name
from gpu_agent.server.operator.paths import NodeId
from gpu_agent.server.operator.problems import no_node, unknown_node
from gpu_agent.server.operator.reads import kept, settled
from gpu_agent.server.operator.routes import needs, refusals, subject
from gpu_agent.server.service import RegistryService


class WhyQuery(ApiModel):
    """What to say besides."""

    model: Name | None = Field(None, description="Also how it stands with this model there.")


class ObjectionView(ApiModel):
    """One reason for which a node refuses some jobs."""

    reason: str
    refuses: str
    """Which jobs, in words."""
    need: str
    have: str
    clears_when: str


class WhyAnswer(ApiModel):
    """Which jobs a node would be refused now, and why."""

    node_id: str
    refuses_every_job: bool
    objections: tuple[ObjectionView, ...]
    """What may pass, in the order of the filters."""
    limits: tuple[ObjectionView, ...]
    """What the node is: jobs beyond it never fit."""
    model: ModelState | None


class ExclusionsAnswer(ApiModel):
    """What dispatches failed on in the last hour, minute by minute, the oldest first."""

    windows: tuple[ExclusionsView, ...]


def about_dispatch(service: RegistryService) -> APIRouter:
    """Make the routes."""
    router = subject("dispatch")

    @router.post(
        "/v1/dispatch/select",
        summary="Try a job",
        openapi_extra=needs("read"),
        responses=refusals(409, 503),
    )
    async def select_place(asked: DryRunRequest) -> Selection:
        """Say which place a job would get at this moment; reserves nothing."""
        chosen = await kept(service, lambda: service.select(asked.job()))
        if isinstance(chosen, NoAvailableNode):
            raise no_node(chosen)
        return chosen

    @router.post(
        "/v1/dispatch/explain",
        summary="Explain a job",
        openapi_extra=needs("read"),
        response_model=ExplanationAnswer,
        responses=refusals(503),
    )
    async def explain_job(asked: DryRunRequest) -> StreamingResponse:
        """Say of every node whether it could take a job, and why not; reserves nothing."""
        await settled(service)
        explanation = await service.explain(asked.job())
        return StreamingResponse(written(explanation), media_type="application/json")

    @router.get("/v1/exclusions", summary="Show what jobs failed on", openapi_extra=needs("read"))
    async def list_exclusions() -> ExclusionsAnswer:
        """Count what dispatches failed on in the last hour, by the minute, with example nodes."""
        return ExclusionsAnswer(windows=tuple(service.exclusions()))

    @router.get(
        "/v1/nodes/{node_id}/why",
        summary="Ask a node why it gets no job",
        openapi_extra=needs("read"),
        responses=refusals(404, 503),
    )
    async def ask_node_why(node_id: NodeId, asked: Annotated[WhyQuery, Query()]) -> WhyAnswer:
        """Say which jobs a node would be refused now, and why, with what would change it."""
        told = await kept(service, lambda: service.why(node_id, asked.model))
        if told is None:
            raise unknown_node(node_id)
        return _answer(told)

    return router


def _answer(told: NodeWhy) -> WhyAnswer:
    return WhyAnswer(
        node_id=told.node_id,
        refuses_every_job=told.refuses_every_job,
        objections=tuple(_shown(one) for one in told.objections),
        limits=tuple(_shown(one) for one in told.limits),
        model=told.model,
    )


def _shown(one: Objection) -> ObjectionView:
    return ObjectionView(
        reason=one.reason.value,
        refuses=one.refuses,
        need=one.need,
        have=one.have,
        clears_when=one.clears_when,
    )
