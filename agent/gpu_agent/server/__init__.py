"""The registry as a server: nodes on one port, operators on another, a facade that schedulers embed.

The names listed here are what a scheduler in the same process uses. They stay, and so do the
fields of what they return; what is imported from deeper places may move. `docs/embedding.md`.
"""

from gpu_agent.registry.actions import Refusal
from gpu_agent.registry.credentials import Role
from gpu_agent.registry.dispatch.verdict import Excluded, Exclusion, Explanation, NoAvailableNode
from gpu_agent.registry.job import Job
from gpu_agent.registry.thresholds import Thresholds
from gpu_agent.server.address import Address
from gpu_agent.server.chronicle import RegistryEvent
from gpu_agent.server.dispatch_views import ExclusionsView, Selection
from gpu_agent.server.limits import Limits
from gpu_agent.server.node_filter import NodeFilter
from gpu_agent.server.service import RegistryService
from gpu_agent.server.service_settings import ServiceSettings
from gpu_agent.server.stores import open_store
from gpu_agent.server.tokens import NewToken, TokenView
from gpu_agent.server.tracing import caused_by
from gpu_agent.server.views import ClaimView, NodeDetail, NodeSummary, Placement
from gpu_agent.store.base import StoreError

__all__ = [
    "Address",
    "ClaimView",
    "Excluded",
    "Exclusion",
    "ExclusionsView",
    "Explanation",
    "Job",
    "Limits",
    "NewToken",
    "NoAvailableNode",
    "NodeDetail",
    "NodeFilter",
    "NodeSummary",
    "Placement",
    "Refusal",
    "RegistryEvent",
    "RegistryService",
    "Role",
    "Selection",
    "ServiceSettings",
    "StoreError",
    "Thresholds",
    "TokenView",
    "caused_by",
    "open_store",
]
