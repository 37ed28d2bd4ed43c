"""Claims and dispatch over HTTP: claim, renew, release and list; select and explain without a claim."""

import asyncio
from collections.abc import Coroutine, Sequence
from dataclasses import replace
from typing import Annotated, TypeVar

from fastapi import Query, Request, Response
from fastapi.responses import StreamingResponse
from pydantic import Field
from starlette.requests import ClientDisconnect

from gpu_agent.registry.actions import Refusal
from gpu_agent.registry.claims import CLAIM_NOT_FOUND, waits_in_queue
from gpu_agent.registry.dispatch.exclusions import Excluded, NoAvailableNode, clears_when
from gpu_agent.registry.job import Job
from gpu_agent.server.api.auth import requester_of
from gpu_agent.server.api.errors import (
    ApiError,
    no_available_node,
    once_stored,
    raise_if_refused,
    refuse_body,
)
from gpu_agent.server.api.routing import (
    WITH_EVENT_ID,
    JobId,
    Registry,
    RegistryRead,
    api_router,
    needs,
    refusals,
)
from gpu_agent.server.fair_queue import collect_in_slices
from gpu_agent.server.views import explanation_json
from gpu_agent.wire.api import (
    ApiRequest,
    ClaimDetail,
    ClaimList,
    ClaimView,
    DryRunRequest,
    ExclusionsList,
    ExplanationView,
    Flag,
    JobRequest,
    Name,
    QueueView,
    ReleaseQuery,
    RenewalList,
    RenewalResult,
    RenewalsRequest,
    RenewRequest,
    Selection,
)

_T = TypeVar("_T")

_RENEW = RenewRequest()

claims = api_router("jobs")
dispatch = api_router("dispatch")


class ExplainQuery(ApiRequest):
    """Which of the excluded nodes to list; the counts are always those of all."""

    limit: Annotated[int, Field(ge=1, le=1000)] | None = Field(
        None, description="At most so many excluded nodes, each with what would end that (`clears_when`)."
    )
    offset: Annotated[int, Field(ge=0)] = Field(0, description="Leave out so many, the nearest.")


class ClaimsQuery(ApiRequest):
    """Which claims to list."""

    node_id: Name | None = Field(None, description="Only claims on this node.")
    limit: Annotated[int, Field(ge=1, le=1000)] = Field(1000, description="At most so many.")
    after: Name | None = Field(None, description="Only jobs after this one: the `next` of the page before.")
    ended: Flag = Field(default=False, description="With true also claims that ended within the hour.")


@claims.get(
    "/v1/claims",
    summary="List claims",
    openapi_extra=needs("read"),
    responses=WITH_EVENT_ID,
)
async def list_claims(query: Annotated[ClaimsQuery, Query()], registry: RegistryRead) -> ClaimList:
    """List claims by job, each with its nodes and its state."""
    found = registry.claims(
        node_id=query.node_id, after=query.after, limit=query.limit + 1, ended=query.ended
    )
    page = tuple(await once_stored(registry, found))[: query.limit]
    following = page[-1].job_id if len(found) > query.limit else None
    return ClaimList(claims=page, count=len(page), next=following)


@claims.post("/v1/claims", summary="Claim slots", openapi_extra=needs("operate"), responses=refusals(409))
async def claim_slots(body: JobRequest, *, request: Request, registry: Registry) -> ClaimView:
    """Reserve slots for a job, all or none; the same job again gets and renews the same claim.

    With `wait_seconds` the answer comes once the job has its claim, or the wait is over.
    """
    claim = registry.claim(job_of(body), requester=requester_of(request))
    return _claim(await until_disconnected(request, claim) if body.wait_seconds else await claim)


@claims.post(
    "/v1/claims/renew",
    summary="Renew several claims",
    openapi_extra=needs("operate"),
)
async def renew_claims(body: RenewalsRequest, *, request: Request, registry: Registry) -> RenewalList:
    """Extend claims by one TTL each; each has a result of its own."""
    answers = await registry.renew_each(body.claims, requester=requester_of(request))
    return RenewalList(
        results=tuple(_renewal(one.job_id, answer) for one, answer in zip(body.claims, answers, strict=True))
    )


@claims.get(
    "/v1/claims/{job_id:job_id}",
    summary="Show a claim",
    openapi_extra=needs("read"),
    responses={**WITH_EVENT_ID, **refusals(404)},
)
async def show_claim(job_id: JobId, registry: RegistryRead) -> ClaimDetail:
    """Show a job's claim and its history, also for an hour after its end."""
    found = await once_stored(registry, registry.claim_of(job_id))
    if found is None:
        place = registry.queue_place(job_id)
        none = f"job {job_id!r} holds no claim, and none of it ended within the hour"
        raise ApiError(CLAIM_NOT_FOUND, none if place is None else waits_in_queue(job_id, place))
    return found


@claims.post(
    "/v1/claims/{job_id:job_id}/renew",
    summary="Renew a claim",
    openapi_extra=needs("operate"),
    responses=refusals(404, 409),
)
async def renew_claim(
    job_id: JobId, *, request: Request, registry: Registry, body: RenewRequest = _RENEW
) -> ClaimView:
    """Extend a job's claim by one TTL, or by another one."""
    return _claim(
        await registry.renew(
            job_id,
            body.claim_id,
            ttl_seconds=body.ttl_seconds,
            requester=requester_of(request),
        )
    )


@claims.delete(
    "/v1/claims/{job_id:job_id}",
    summary="Release a claim",
    status_code=204,
    openapi_extra=needs("operate"),
    responses=refusals(404, 409),
)
async def release_claim(
    job_id: JobId, query: Annotated[ReleaseQuery, Query()], *, request: Request, registry: Registry
) -> Response:
    """Release a job's claim because the job has ended; also an ended claim that still holds GPUs."""
    await refuse_body(request, lambda: registry.claim_of(job_id), instead="name the claim as `?claim_id=ID`")
    requester = requester_of(request)
    refusal = await registry.release(job_id, query.claim_id, requester=requester, reason=query.reason)
    raise_if_refused(refusal)
    return Response(status_code=204)


@claims.get(
    "/v1/queue",
    summary="List waiting jobs",
    openapi_extra=needs("read"),
    responses=WITH_EVENT_ID,
)
async def list_queue(registry: RegistryRead) -> QueueView:
    """List the jobs that wait for capacity, in the order in which they get it, with the reason."""
    jobs = tuple(await once_stored(registry, await collect_in_slices(registry.queue())))
    return QueueView(jobs=jobs, count=len(jobs))


@dispatch.post(
    "/v1/dispatch/select",
    summary="Select a node for a job",
    openapi_extra=needs("read"),
    responses=refusals(409),
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
)
async def explain_job(
    request: DryRunRequest, query: Annotated[ExplainQuery, Query()], *, registry: Registry
) -> StreamingResponse:
    """Explain for every node whether it could take a job, and why not; reserves nothing."""
    explanation = await once_stored(registry, await registry.explain(job_of(request)))
    excluded: Sequence[Excluded] = explanation.excluded[query.offset :]
    if query.limit is not None:
        page = excluded[: query.limit]
        excluded = [
            replace(one, clears_when=clears_when(one, registry.explain_node(one.node_id))) for one in page
        ]
    return StreamingResponse(explanation_json(explanation, excluded), media_type="application/json")


@dispatch.get("/v1/exclusions", summary="Show why jobs found no node", openapi_extra=needs("read"))
async def list_exclusions(registry: Registry) -> ExclusionsList:
    """Count the exclusion reasons of failed dispatches in the last hour, by minute, with example nodes."""
    return ExclusionsList(windows=tuple(registry.exclusions()))


def job_of(request: JobRequest) -> Job:
    """Return a request's job as the fleet reads it."""
    return Job(**request.__dict__)  # what `dict` looks up in the model takes as long as the job itself


async def until_disconnected(request: Request, answer: Coroutine[None, None, _T]) -> _T:
    """Wait for an answer, and no longer than its caller does."""
    async with asyncio.TaskGroup() as tasks:
        waiting = tasks.create_task(answer, name="claim")
        watching = tasks.create_task(_disconnected(request, waiting), name="claim disconnect")
        waiting.add_done_callback(lambda _: watching.cancel())
    if waiting.cancelled():
        raise ClientDisconnect
    return waiting.result()


async def _disconnected(request: Request, waiting: asyncio.Task[_T]) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
    waiting.cancel()


def _claim(answer: ClaimView | NoAvailableNode | Refusal) -> ClaimView:
    if isinstance(answer, NoAvailableNode):
        raise no_available_node(answer)
    if isinstance(answer, Refusal):
        raise ApiError(answer.code, answer.message)
    return answer


def _renewal(job_id: str, answer: ClaimView | Refusal) -> RenewalResult:
    if isinstance(answer, Refusal):
        return RenewalResult(job_id=job_id, ok=False, code=answer.code, detail=answer.message)
    return RenewalResult(job_id=job_id, ok=True, claim=answer)
