"""The agent as it stands at one moment: what whoever asks on this machine is told of, and nothing secret.

A frozen picture, made by the loop and read by anybody. It decides nothing and formats nothing.
"""

from dataclasses import dataclass

from gpu_agent.node.public_pool import Standing
from gpu_agent.session.view import SessionView
from gpu_agent.wire.declaration import Owner
from gpu_agent.wire.inventory import Inventory


@dataclass(frozen=True, slots=True, kw_only=True)
class Picture:
    """All that the agent knows, without its tokens. Instants are monotonic seconds."""

    session: SessionView
    registry_url: str
    owner: Owner
    """What the owner wishes."""
    public_jobs: Standing
    """What comes of that for jobs of the public pool, now."""
    inventory: Inventory | None
    """None before the first probe has ended."""
    probe_age_seconds: float | None
    state_since: float | None
    link_since: float | None
    """Since when the registry hears this node, or does not."""
    verdict_at: float | None
    last_beat_at: float | None
