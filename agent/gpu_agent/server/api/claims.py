"""Claims and dispatch over HTTP: claim, renew, release and list; select and explain without a claim."""

from typing import Annotated

from fastapi import APIRouter, Query
from fastapi.responses import StreamingResponse
from pydantic import Field

from gpu_agent.registry.actions import Refusal
from gpu_agent.registry.dispatch.refusals import NoAvailableNode
from gpu_agent.registry.explain import ModelState, NodeExclusion, NodeExplanation
from gpu_agent.server.api.auth import api_router, needs, refusals
from gpu_agent.server.api.errors import (
    ApiError,
    no_available_node,
    raise_if_refused,
    read_stored,
    unknown_node,
    wait_until_stored,
)
from gpu_agent.server.api.schemas import (
    ApiModel,
    ClaimList,
    DryRunRequest,
    EmptyRequest,
    ExplanationAnswer,
    JobId,
    JobRequest,
    Name,
    NodeId,
)
from gpu_agent.server.service import RegistryService
from gpu_agent.server.views import ExclusionsView, Placement, Selection, explanation_json

# Places for jobs, over HTTP: asked for, listed, renewed and given back.
#
# Which node takes which job is dispatch's; this speaks HTTP for it.


_NOTHING = EmptyRequest()


class ClaimsQuery(ApiModel):
    """Which claims to list."""

    node_id: Name | None = Field(None, description="Only those on this node.")
    limit: Annotated[int, Field(ge=1, le=1000)] = Field(1000, description="At most so many.")
    after: Name | None = Field(None, description="Only jobs behind this one: the `next` of the page before.")


def claim_routes(service: RegistryService) -> APIRouter:
    """Make the routes."""
    router = api_router("jobs")

    @router.get("/v1/claims", summary="List claims", openapi_extra=needs("read"), responses=refusals(503))
    async def list_claims(asked: Annotated[ClaimsQuery, Query()]) -> ClaimList:
        """List who holds which place, by job."""
        found = await read_stored(
            service,
            lambda: service.claims(node_id=asked.node_id, after=asked.after, limit=asked.limit + 1),
        )
        page = tuple(found[: asked.limit])
        following = page[-1].job_id if len(found) > asked.limit else None
        return ClaimList(claims=page, count=len(page), next=following)

    @router.post(
        "/v1/claims", summary="Claim a place", openapi_extra=needs("operate"), responses=refusals(409, 503)
    )
    async def claim_place(asked: JobRequest) -> Placement:
        """Reserve a place for a job; the same job again gets the same place."""
        return _claim_answer(await service.claim(asked.job()))

    @router.post(
        "/v1/claims/{job_id}/renew",
        summary="Renew a claim",
        openapi_extra=needs("operate"),
        responses=refusals(404, 503),
    )
    async def renew_claim(job_id: JobId, _: EmptyRequest = _NOTHING) -> Placement:
        """Keep a job's place for one more TTL."""
        return _claim_answer(await service.renew(job_id))

    @router.delete(
        "/v1/claims/{job_id}",
        summary="Release a claim",
        status_code=204,
        openapi_extra=needs("operate"),
        responses=refusals(404, 503),
    )
    async def release_claim(job_id: JobId) -> None:
        """Give a job's place back."""
        raise_if_refused(await service.release(job_id))

    return router


def _claim_answer(answer: Placement | NoAvailableNode | Refusal) -> Placement:
    if isinstance(answer, NoAvailableNode):
        raise no_available_node(answer)
    if isinstance(answer, Refusal):
        raise ApiError(answer.code, answer.message)
    return answer


# Dispatch questioned over HTTP: which place a job would get, and why a job or a node gets none.
#
# Reserves nothing and changes nothing.


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


def dispatch_routes(service: RegistryService) -> APIRouter:
    """Make the routes."""
    router = api_router("dispatch")

    @router.post(
        "/v1/dispatch/select",
        summary="Try a job",
        openapi_extra=needs("read"),
        responses=refusals(409, 503),
    )
    async def select_place(asked: DryRunRequest) -> Selection:
        """Say which place a job would get at this moment; reserves nothing."""
        chosen = await read_stored(service, lambda: service.select(asked.job()))
        if isinstance(chosen, NoAvailableNode):
            raise no_available_node(chosen)
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
        await wait_until_stored(service)
        explanation = await service.explain(asked.job())
        return StreamingResponse(explanation_json(explanation), media_type="application/json")

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
        told = await read_stored(service, lambda: service.why(node_id, asked.model))
        if told is None:
            raise unknown_node(node_id)
        return _node_explanation(told)

    return router


def _node_explanation(told: NodeExplanation) -> WhyAnswer:
    return WhyAnswer(
        node_id=told.node_id,
        refuses_every_job=told.refuses_every_job,
        objections=tuple(_reason_view(one) for one in told.objections),
        limits=tuple(_reason_view(one) for one in told.limits),
        model=told.model,
    )


def _reason_view(one: NodeExclusion) -> ObjectionView:
    return ObjectionView(
        reason=one.reason.value,
        refuses=one.refuses,
        need=one.need,
        have=one.have,
        clears_when=one.clears_when,
    )
