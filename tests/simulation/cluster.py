"""All that takes part in one world, for those who observer it and those who trouble it."""

from collections.abc import Iterator
from dataclasses import dataclass, field

from gpu_agent.registry.fleet import Fleet
from gpu_agent.registry.job import Claim
from gpu_agent.registry.node import NodeRecord
from tests.simulation.agents import Agent
from tests.simulation.fault_profile import FaultProfile
from tests.simulation.gateways import Gateways
from tests.simulation.network import Network
from tests.simulation.registry_process import RegistryProcess
from tests.simulation.world import World


@dataclass(slots=True)
class Cluster:
    """One world's cast."""

    world: World
    profile: FaultProfile
    network: Network
    registry: RegistryProcess
    gateways: Gateways | None = None
    agents: list[Agent] = field(default_factory=list)

    @property
    def fleet(self) -> Fleet:
        """The registry's machine; only while it runs."""
        return self.registry.fleet

    def records(self) -> list[NodeRecord]:
        """Every node that the registry knows, in no order that matters."""
        return list(self.fleet._nodes.records.values())

    def claims(self) -> dict[str, Claim]:
        """Every claim that the registry holds."""
        return self.fleet._dispatch._claims._held

    def boxes_of(self, node_id: str) -> Iterator[Agent]:
        """Find the agents that go by an id just now."""
        return (agent for agent in self.agents if agent.registered_as == node_id)
