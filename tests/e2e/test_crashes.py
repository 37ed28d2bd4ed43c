"""A registry that is killed at every kind of point loses nothing that it acknowledged."""

import sys

import pytest

from tests.e2e.crashes import campaign
from tests.e2e.crashes.ledger import ANYWHERE, Ledger

pytestmark = pytest.mark.e2e


@pytest.mark.skipif(sys.platform != "linux", reason="traps are set through LD_PRELOAD")
@pytest.mark.timeout(300)
def test_whatever_point_a_registry_dies_at_nothing_acknowledged_is_lost() -> None:
    tally = campaign.run(2, seed=20261124)
    assert tally.losses == []
    assert tally.errors == []
    assert tally.acknowledged > 50


def test_what_was_acknowledged_and_is_not_found_is_a_loss() -> None:
    ledger = Ledger()
    with ledger.asking("claim/1", ANYWHERE, absent=None) as answered:
        answered("node-1")
    assert ledger.compare({"claim/1": None}) != []


def test_what_was_asked_without_an_answer_may_be_found_either_way() -> None:
    for found in (None, "node-2"):
        ledger = Ledger()
        with ledger.asking("claim/1", ANYWHERE, absent=None):
            pass
        assert ledger.compare({"claim/1": found}) == []


def test_a_claim_that_was_asked_is_not_a_loss_of_another_node_once_it_was_answered() -> None:
    ledger = Ledger()
    with ledger.asking("claim/1", ANYWHERE, absent=None) as answered:
        answered("node-1")
    assert ledger.compare({"claim/1": "node-2"}) != []
