"""Claims and dispatch over HTTP: claim, renew, release and list; select and explain without a claim."""

from typing import Annotated

from fastapi import Query
from fastapi.responses import StreamingResponse
from pydantic import Field

from gpu_agent.registry.actions import Refusal
from gpu_agent.registry.dispatch.exclusions import NoAvailableNode
from gpu_agent.registry.job import Job
from gpu_agent.server.api.errors import (
    ApiError,
    no_available_node,
    once_stored,
    raise_if_refused,
)
from gpu_agent.server.api.routing import JobId, Registry, api_router, needs, refusals
from gpu_agent.server.views import explanation_json
from gpu_agent.wire.api import (
    ApiRequest,
    ClaimList,
    DryRunRequest,
    EmptyRequest,
    ExclusionsList,
    ExplanationView,
    JobRequest,
    Name,
    Placement,
    Selection,
)

_EMPTY = EmptyRequest()

claims = api_router("jobs")
dispatch = api_router("dispatch")


class ClaimsQuery(ApiRequest):
    """Which claims to list."""

    node_id: Name | None = Field(None, description="Only claims on this node.")
    limit: Annotated[int, Field(ge=1, le=1000)] = Field(1000, description="At most so many.")
    after: Name | None = Field(None, description="Only jobs after this one: the `next` of the page before.")


@claims.get("/v1/claims", summary="List claims", openapi_extra=needs("read"), responses=refusals(503))
async def list_claims(query: Annotated[ClaimsQuery, Query()], registry: Registry) -> ClaimList:
    """List claims by job, each with its node."""
    found = registry.claims(node_id=query.node_id, after=query.after, limit=query.limit + 1)
    page = tuple(await once_stored(registry, found))[: query.limit]
    following = page[-1].job_id if len(found) > query.limit else None
    return ClaimList(claims=page, count=len(page), next=following)


@claims.post(
    "/v1/claims", summary="Claim a slot", openapi_extra=needs("operate"), responses=refusals(409, 503)
)
async def claim_slot(request: JobRequest, registry: Registry) -> Placement:
    """Reserve a slot for a job; the same job again gets the same slot."""
    return _placement(await registry.claim(job_of(request)))


@claims.post(
    "/v1/claims/{job_id:job_id}/renew",
    summary="Renew a claim",
    openapi_extra=needs("operate"),
    responses=refusals(404, 503),
)
async def renew_claim(job_id: JobId, registry: Registry, _: EmptyRequest = _EMPTY) -> Placement:
    """Extend a job's claim by one TTL."""
    return _placement(await registry.renew(job_id))


@claims.delete(
    "/v1/claims/{job_id:job_id}",
    summary="Release a claim",
    status_code=204,
    openapi_extra=needs("operate"),
    responses=refusals(404, 503),
)
async def release_claim(job_id: JobId, registry: Registry) -> None:
    """Release a job's claim."""
    raise_if_refused(await registry.release(job_id))


@dispatch.post(
    "/v1/dispatch/select",
    summary="Select a node for a job",
    openapi_extra=needs("read"),
    responses=refusals(409, 503),
)
async def select_node(request: DryRunRequest, registry: Registry) -> Selection:
    """Select the slot that a job would get now; reserves nothing."""
    chosen = await once_stored(registry, registry.select(job_of(request)))
    if isinstance(chosen, NoAvailableNode):
        raise no_available_node(chosen)
    return chosen


@dispatch.post(
    "/v1/dispatch/explain",
    summary="Explain a job",
    openapi_extra=needs("read"),
    response_model=ExplanationView,
    responses=refusals(503),
)
async def explain_job(request: DryRunRequest, registry: Registry) -> StreamingResponse:
    """Explain for every node whether it could take a job, and why not; reserves nothing."""
    explanation = await once_stored(registry, await registry.explain(job_of(request)))
    return StreamingResponse(explanation_json(explanation), media_type="application/json")


@dispatch.get("/v1/exclusions", summary="Show why jobs found no node", openapi_extra=needs("read"))
async def list_exclusions(registry: Registry) -> ExclusionsList:
    """Count the exclusion reasons of failed dispatches in the last hour, by minute, with example nodes."""
    return ExclusionsList(windows=tuple(registry.exclusions()))


def job_of(request: JobRequest) -> Job:
    """Return a request's job as the fleet reads it."""
    return Job(**dict(request))


def _placement(answer: Placement | NoAvailableNode | Refusal) -> Placement:
    if isinstance(answer, NoAvailableNode):
        raise no_available_node(answer)
    if isinstance(answer, Refusal):
        raise ApiError(answer.code, answer.message)
    return answer
