"""Whom a registry takes, and how often it wants to hear from them: beside the thresholds."""

from dataclasses import dataclass

from gpu_agent.registry import pacing


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """One registry's choices; the defaults are the strict ones."""

    allow_simulated: bool = False
    auth_off: bool = False
    max_beats_per_second: float = pacing.MAX_BEATS_PER_SECOND
