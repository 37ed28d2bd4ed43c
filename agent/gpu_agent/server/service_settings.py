"""What a registry is told when it is made, by whoever embeds it or serves it."""

from dataclasses import dataclass, field

from gpu_agent.registry.thresholds import Thresholds
from gpu_agent.server.address import Address
from gpu_agent.server.limits import Limits
from gpu_agent.server.tls import Encryption


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceSettings:
    """What a registry is told when it is made."""

    node_listen: Address = field(default_factory=lambda: Address("127.0.0.1", 8080))
    thresholds: Thresholds = field(default_factory=Thresholds)
    limits: Limits = field(default_factory=Limits)
    allow_simulated: bool = False
    auth_on: bool = True
    """Whether nodes must present tokens; off, whoever reaches the port may act as any node."""
    tls: Encryption | None = None
    """What the nodes' port is encrypted with; None leaves it readable to who listens on the way."""
    plaintext: bool = False
    """Whether other machines reach a port that is not encrypted: every list of nodes says so."""
