"""How seeds went, for a person: what broke, what led to it, and the one command that plays it again."""

import logging
from dataclasses import dataclass

from tests.simulation.climate import climate_for
from tests.simulation.play import Played, play

TAIL_LINES = 60


@dataclass(frozen=True, slots=True)
class Report:
    """What is told of one seed; small, so that it travels between processes."""

    seed: int
    mark: str
    broken: str | None
    text: str


def play_and_report(nodes: int | None, seed: int) -> Report:
    """Play a seed in a process of its own, which has nobody to log to."""
    logging.disable(logging.CRITICAL)
    return report(play(seed, climate_for(seed, nodes)), nodes=nodes)


def report(played: Played, *, nodes: int | None = None) -> Report:
    """Tell of a seed; at length only where something broke."""
    if played.broken is None:
        return Report(played.seed, played.mark, None, "")
    return Report(
        played.seed,
        played.mark,
        played.broken.invariant.name,
        f"{played.trace.tail(TAIL_LINES)}\n\nseed {played.seed}: {played.broken}\n"
        f"again: {replay(played.seed, nodes)}\n",
    )


def replay(seed: int, nodes: int | None = None) -> str:
    """Write the command that plays a seed again."""
    return f"make simulate SEEDS={seed}" + (f" NODES={nodes}" if nodes is not None else "") + " [TRACE=1]"


def seeds_of(text: str) -> range:
    """Read one seed, `12345`, or many, `0-9999`; raises `ValueError`."""
    first, _, last = text.partition("-")
    return range(int(first), int(last or first) + 1)
