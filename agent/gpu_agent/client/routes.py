"""The registry's routes as values: what is sent, and which document answers. No input, no output.

Every request here may be sent again when its outcome is not known (node protocol §4).
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Generic, TypeVar
from urllib.parse import quote, urlencode

from pydantic import BaseModel

from gpu_agent.wire.api import (
    ClaimDetail,
    ClaimList,
    ClaimName,
    ClaimView,
    CordonRequest,
    DrainRequest,
    EventList,
    ExclusionsList,
    ExplanationView,
    JobRequest,
    MemberList,
    NodeDetail,
    NodeExplanation,
    NodeList,
    QueueView,
    ReasonRequest,
    RenewalList,
    RenewalsRequest,
    RenewRequest,
    Selection,
    ThresholdList,
)
from gpu_agent.wire.fleet_documents import FleetFigures, NodeGpuHistory
from gpu_agent.wire.service_discovery import EndpointList

AnswerT = TypeVar("AnswerT", bound=BaseModel)

EVENTS_PATH = "/v1/events"


@dataclass(frozen=True, slots=True)
class Route(Generic[AnswerT]):
    """One request; `answer` is the model of what answers it."""

    method: str
    path: str
    answer: type[AnswerT]
    body: bytes | None = None


class NoContent(BaseModel):
    """The answer to a request whose status says everything."""


def claim(job: JobRequest) -> Route[ClaimView]:
    """Reserve slots for a job."""
    return Route("POST", "/v1/claims", ClaimView, _json(job))


def renew(job_id: str, claim_id: str, *, ttl_seconds: float | None = None) -> Route[ClaimView]:
    """Renew one claim."""
    body = RenewRequest(claim_id=claim_id, ttl_seconds=ttl_seconds)
    return Route("POST", f"/v1/claims/{_id(job_id)}/renew", ClaimView, _json(body))


def renew_all(claims: Iterable[ClaimName]) -> Route[RenewalList]:
    """Renew several claims; each has a result of its own."""
    return Route("POST", "/v1/claims/renew", RenewalList, _json(RenewalsRequest(claims=tuple(claims))))


def release(job_id: str, claim_id: str, *, reason: str = "") -> Route[NoContent]:
    """Release one claim because its job has ended."""
    fields = {"claim_id": claim_id, "reason": reason}
    return Route("DELETE", _query(f"/v1/claims/{_id(job_id)}", fields), NoContent)


def show_claim(job_id: str) -> Route[ClaimDetail]:
    """Show a job's claim and its history."""
    return Route("GET", f"/v1/claims/{_id(job_id)}", ClaimDetail)


def list_claims(*, node_id: str | None, ended: bool, after: str | None) -> Route[ClaimList]:
    """List one page of claims."""
    fields = {"node_id": node_id, "after": after, "ended": "true" if ended else None}
    return Route("GET", _query("/v1/claims", fields), ClaimList)


def show_queue() -> Route[QueueView]:
    """List the jobs that wait."""
    return Route("GET", "/v1/queue", QueueView)


def select(job: JobRequest) -> Route[Selection]:
    """Select the slots that a job would get now."""
    return Route("POST", "/v1/dispatch/select", Selection, _json(job))


def explain(job: JobRequest, *, limit: int | None, offset: int) -> Route[ExplanationView]:
    """Explain for each node why it can or cannot take a job."""
    page = {"limit": None if limit is None else str(limit), "offset": str(offset) if offset else None}
    return Route("POST", _query("/v1/dispatch/explain", page), ExplanationView, _json(job))


def show_exclusions() -> Route[ExclusionsList]:
    """Count why jobs found no node in the last hour."""
    return Route("GET", "/v1/exclusions", ExclusionsList)


def show_members() -> Route[MemberList]:
    """Show the registry's processes."""
    return Route("GET", "/v1/members", MemberList)


def show_thresholds() -> Route[ThresholdList]:
    """Show the thresholds in force."""
    return Route("GET", "/v1/thresholds", ThresholdList)


def list_nodes(
    *,
    statuses: Iterable[str],
    model: str | None,
    labels: Mapping[str, str],
    gpu_name: str | None,
    connected: bool | None,
    after: str | None,
) -> Route[NodeList]:
    """List one page of nodes."""
    fields: dict[str, str | list[str] | None] = {
        "status": list(statuses),
        "model": model,
        "label": [f"{name}={value}" for name, value in labels.items()],
        "gpu_name": gpu_name,
        "connected": None if connected is None else str(connected).lower(),
        "limit": "1000",
        "after": after,
    }
    return Route("GET", _query("/v1/nodes", fields), NodeList)


def find_nodes(text: str | None, *, show: str | None, sort: str | None, after: str | None) -> Route[NodeList]:
    """List one page of nodes by text, kind and order."""
    fields: dict[str, str | list[str] | None] = {
        "q": text,
        "show": show,
        "sort": sort,
        "limit": "1000",
        "after": after,
    }
    return Route("GET", _query("/v1/nodes", fields), NodeList)


def show_fleet() -> Route[FleetFigures]:
    """Show the fleet in figures."""
    return Route("GET", "/v1/fleet", FleetFigures)


def show_gpu_history(node_id: str) -> Route[NodeGpuHistory]:
    """Show what a node's GPUs did lately."""
    return Route("GET", f"/v1/nodes/{_id(node_id)}/gpu-history", NodeGpuHistory)


def show_node(node_id: str) -> Route[NodeDetail]:
    """Show a node in full."""
    return Route("GET", f"/v1/nodes/{_id(node_id)}", NodeDetail)


def node_events(node_id: str, *, limit: int) -> Route[EventList]:
    """Show a node's latest events."""
    return Route("GET", _query(f"/v1/nodes/{_id(node_id)}/events", {"limit": str(limit)}), EventList)


def explain_node(node_id: str, *, model: str | None) -> Route[NodeExplanation]:
    """Explain which jobs a node would refuse now."""
    return Route("GET", _query(f"/v1/nodes/{_id(node_id)}/explain", {"model": model}), NodeExplanation)


def drain(node_id: str, *, deadline_seconds: float | None, reason: str) -> Route[NodeDetail]:
    """Let a node finish its jobs, then take it offline."""
    return _act(node_id, "drain", DrainRequest(deadline_seconds=deadline_seconds, reason=reason))


def cordon(node_id: str, *, gpu_uuid: str | None, reason: str) -> Route[NodeDetail]:
    """Give a node, or one GPU of it, no new jobs."""
    return _act(node_id, f"{_gpu(gpu_uuid)}cordon", CordonRequest(reason=reason))


def uncordon(node_id: str, *, gpu_uuid: str | None, reason: str) -> Route[NodeDetail]:
    """End a cordon."""
    return act(node_id, f"{_gpu(gpu_uuid)}uncordon", reason=reason)


def act(node_id: str, action: str, *, reason: str) -> Route[NodeDetail]:
    """Request an action on a node that needs no more than a reason, if that: `resume`, `refresh`, `check`."""
    return _act(node_id, action, ReasonRequest(reason=reason))


def remove_node(node_id: str, *, reason: str) -> Route[NoContent]:
    """Remove a node's record."""
    return Route("DELETE", _query(f"/v1/nodes/{_id(node_id)}", {"reason": reason}), NoContent)


def list_endpoints(*, model: str | None, labels: Mapping[str, str]) -> Route[EndpointList]:
    """List the workers of ready nodes."""
    pairs = [f"{name}={value}" for name, value in labels.items()]
    return Route("GET", _query("/v1/endpoints", {"model": model, "label": pairs}), EndpointList)


def events_path(*, after: int | None, node_id: str | None) -> str:
    """Return the path of the event stream."""
    return _query(EVENTS_PATH, {"after": None if after is None else str(after), "node_id": node_id})


def _act(node_id: str, action: str, body: BaseModel) -> Route[NodeDetail]:
    return Route("POST", f"/v1/nodes/{_id(node_id)}/{action}", NodeDetail, _json(body))


def _gpu(uuid: str | None) -> str:
    return "" if uuid is None else f"gpus/{_id(uuid)}/"


def _json(body: BaseModel) -> bytes:
    """Write what differs from the defaults: an older registry knows no newer field."""
    return body.model_dump_json(exclude_defaults=True).encode()


def _id(part: str) -> str:
    return quote(part, safe="")


def _query(path: str, fields: Mapping[str, str | list[str] | None]) -> str:
    words = urlencode({name: value for name, value in fields.items() if value}, doseq=True)
    return f"{path}?{words}" if words else path
