"""Places for jobs, over HTTP: asked for, listed, renewed and given back.

Which node takes which job is dispatch's; this speaks HTTP for it.
"""

from typing import Annotated

from fastapi import APIRouter, Query
from pydantic import Field

from gpu_agent.registry.actions import Refusal
from gpu_agent.registry.dispatch.verdict import NoAvailableNode
from gpu_agent.server.operator.models import (
    ApiModel,
    ClaimList,
    JobRequest,
    Name,
    NothingMore,
)
from gpu_agent.server.operator.paths import JobId
from gpu_agent.server.operator.problems import Refused, no_node, unless_refused
from gpu_agent.server.operator.reads import kept
from gpu_agent.server.operator.routes import needs, refusals, subject
from gpu_agent.server.service import RegistryService
from gpu_agent.server.views import Placement

_NOTHING = NothingMore()


class ClaimsQuery(ApiModel):
    """Which claims to list."""

    node_id: Name | None = Field(None, description="Only those on this node.")
    limit: Annotated[int, Field(ge=1, le=1000)] = Field(1000, description="At most so many.")
    after: Name | None = Field(None, description="Only jobs behind this one: the `next` of the page before.")


def about_jobs(service: RegistryService) -> APIRouter:
    """Make the routes."""
    router = subject("jobs")

    @router.get("/v1/claims", summary="List claims", openapi_extra=needs("read"), responses=refusals(503))
    async def list_claims(asked: Annotated[ClaimsQuery, Query()]) -> ClaimList:
        """List who holds which place, by job."""
        found = await kept(
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
        return _placed(await service.claim(asked.job()))

    @router.post(
        "/v1/claims/{job_id}/renew",
        summary="Renew a claim",
        openapi_extra=needs("operate"),
        responses=refusals(404, 503),
    )
    async def renew_claim(job_id: JobId, _: NothingMore = _NOTHING) -> Placement:
        """Keep a job's place for one more TTL."""
        return _placed(await service.renew(job_id))

    @router.delete(
        "/v1/claims/{job_id}",
        summary="Release a claim",
        status_code=204,
        openapi_extra=needs("operate"),
        responses=refusals(404, 503),
    )
    async def release_claim(job_id: JobId) -> None:
        """Give a job's place back."""
        unless_refused(await service.release(job_id))

    return router


def _placed(answer: Placement | NoAvailableNode | Refusal) -> Placement:
    if isinstance(answer, NoAvailableNode):
        raise no_node(answer)
    if isinstance(answer, Refusal):
        raise Refused(answer.code, answer.message)
    return answer
