"""The registry as a server: nodes on one port, operators on another, a facade that schedulers embed.

The names listed here are what a scheduler in the same process uses. They stay, and so do the
fields of what they return; what is imported from deeper places may move. `docs/howto/embedding.md`.
"""

from gpu_agent.registry.actions import Refusal
from gpu_agent.registry.dispatch.exclusions import Excluded, Explanation, NoAvailableNode
from gpu_agent.registry.job import Job
from gpu_agent.registry.settings import Thresholds
from gpu_agent.registry.tokens import Role
from gpu_agent.runtime.address import Address
from gpu_agent.server.limits import Limits
from gpu_agent.server.service import RegistryService, ServiceSettings, caused_by
from gpu_agent.server.storage import EtcdSecurity, open_store
from gpu_agent.server.views import NodeFilter
from gpu_agent.store.base import StoreError
from gpu_agent.wire.api import (
    ClaimView,
    ExclusionsView,
    NewToken,
    NodeDetail,
    NodeSummary,
    RegistryEvent,
    Selection,
    TokenView,
)
from gpu_agent.wire.codes import ExclusionReason

__all__ = [
    "Address",
    "ClaimView",
    "EtcdSecurity",
    "Excluded",
    "ExclusionReason",
    "ExclusionsView",
    "Explanation",
    "Job",
    "Limits",
    "NewToken",
    "NoAvailableNode",
    "NodeDetail",
    "NodeFilter",
    "NodeSummary",
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
