"""What a registry is told when it is made, by whoever embeds it or serves it."""

from dataclasses import dataclass, field

from gpu_agent.registry.thresholds import Thresholds
from gpu_agent.server.address import Address
from gpu_agent.server.limits import Limits


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceSettings:
    """What a registry is told when it is made."""

    node_listen: Address = field(default_factory=lambda: Address("127.0.0.1", 8080))
    thresholds: Thresholds = field(default_factory=Thresholds)
    limits: Limits = field(default_factory=Limits)
    allow_simulated: bool = False
    auth_on: bool = True
    """Whether nodes must present tokens; off, whoever reaches the port may act as any node."""
