"""The registry's API as a scheduler uses it: claims that renew themselves, nodes, the queue, events.

    async with RegistryClient("https://registry:8081", token=token) as client:
        async with client.claim(JobRequest(job_id="train-7", gpu_count=2), wait=120) as claim:
            ...  # run the job on claim.node_id, on claim.gpu_uuids

`gpu_agent.client.sync` has the same for programs without an event loop.
Needs `pip install 'gpu-agent[client]'`.
"""

try:
    import httpx as _httpx  # noqa: F401 - asked for here, so that its absence is explained
except ModuleNotFoundError as missing:
    raise ModuleNotFoundError(
        "gpu_agent.client needs httpx: pip install 'gpu-agent[client]'", name=missing.name
    ) from missing

from gpu_agent.client.aio import Claim, RegistryClient
from gpu_agent.client.errors import (
    Busy,
    ClaimLost,
    ClaimSuperseded,
    Forbidden,
    JobIdInUse,
    NoAvailableNode,
    NotFound,
    RegistryError,
    Unreachable,
)
from gpu_agent.wire.api import (
    ClaimDetail,
    ClaimNode,
    ClaimView,
    ExplanationView,
    JobRequest,
    NodeDetail,
    NodeExplanation,
    NodeSummary,
    RegistryEvent,
    RenewalResult,
    Selection,
    WaitingJob,
)
from gpu_agent.wire.service_discovery import EndpointView

__all__ = [
    "Busy",
    "Claim",
    "ClaimDetail",
    "ClaimLost",
    "ClaimNode",
    "ClaimSuperseded",
    "ClaimView",
    "EndpointView",
    "ExplanationView",
    "Forbidden",
    "JobIdInUse",
    "JobRequest",
    "NoAvailableNode",
    "NodeDetail",
    "NodeExplanation",
    "NodeSummary",
    "NotFound",
    "RegistryClient",
    "RegistryError",
    "RegistryEvent",
    "RenewalResult",
    "Selection",
    "Unreachable",
    "WaitingJob",
]
