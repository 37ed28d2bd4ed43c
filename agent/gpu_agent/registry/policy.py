"""Whom a registry takes: beside the thresholds, by which it judges them."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """One registry's choices; the defaults are the strict ones."""

    allow_simulated: bool = False
    auth_off: bool = False
