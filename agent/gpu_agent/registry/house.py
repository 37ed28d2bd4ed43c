"""What all who handle nodes share: one object handed down instead of five. Holds nothing of its own."""

from dataclasses import dataclass

from gpu_agent.registry.claiming import Claiming
from gpu_agent.registry.dispatch.dispatch import Dispatch
from gpu_agent.registry.pacing import Pacer
from gpu_agent.registry.policy import Policy
from gpu_agent.registry.roster import Roster
from gpu_agent.registry.thresholds import Thresholds
from gpu_agent.registry.tokens import Tokens
from gpu_agent.registry.verdicts import Verdicts


@dataclass(frozen=True, slots=True, kw_only=True)
class House:
    """The parts of one fleet."""

    thresholds: Thresholds
    policy: Policy
    pacer: Pacer
    roster: Roster
    tokens: Tokens
    dispatch: Dispatch
    claiming: Claiming
    verdicts: Verdicts
