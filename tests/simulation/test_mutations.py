"""Each invariant bites: a rule of the product that is broken on purpose is seen within a few seeds."""

import pytest

from tests.simulation.harness import run_seed
from tests.simulation.invariants.base import Invariant, only
from tests.simulation.mutations import MUTATIONS, Mutation

MOST_SEEDS = 20
PROVEN_ELSEWHERE = {Invariant.NO_CRASH}
"""By any exception that a machine raises."""


def seeds_until_it_shows(mutation: Mutation) -> int | None:
    """Play worlds with the rule broken until the promise is; returns how many it took."""
    with mutation.apply(), only(mutation.breaks):
        for seed in range(MOST_SEEDS):
            broken = run_seed(seed, mutation.profile(seed)).broken
            if broken is not None and broken.invariant is mutation.breaks:
                return seed + 1
    return None


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.name)
def test_a_broken_rule_is_seen(mutation: Mutation) -> None:
    assert seeds_until_it_shows(mutation) is not None


def test_every_invariant_is_shown_to_bite() -> None:
    assert {mutation.breaks for mutation in MUTATIONS} | PROVEN_ELSEWHERE == set(Invariant)
