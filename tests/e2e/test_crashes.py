"""A registry that is killed at every kind of point loses nothing that it acknowledged."""

import sys

import pytest

from tests.e2e.crashes import campaign
from tests.e2e.crashes.ledger import ANYWHERE, Ledger

pytestmark = pytest.mark.e2e


@pytest.mark.skipif(sys.platform != "linux", reason="traps are set through LD_PRELOAD")
@pytest.mark.timeout(300)
def test_wherever_a_registry_is_killed_no_acknowledged_change_is_lost() -> None:
    tally = campaign.run(2, seed=20261124)
    assert tally.losses == []
    assert tally.errors == []
    assert tally.acknowledged > 50


def test_an_acknowledged_change_that_is_missing_is_a_loss() -> None:
    ledger = Ledger()
    with ledger.asking("claim/1", ANYWHERE, absent=None) as answered:
        answered("node-1")
    assert ledger.compare({"claim/1": None}) != []


def test_a_change_without_an_answer_may_be_there_or_not() -> None:
    for found in (None, "node-2"):
        ledger = Ledger()
        with ledger.asking("claim/1", ANYWHERE, absent=None):
            pass
        assert ledger.compare({"claim/1": found}) == []


def test_an_answered_claim_is_not_a_loss_of_another_node() -> None:
    ledger = Ledger()
    with ledger.asking("claim/1", ANYWHERE, absent=None) as answered:
        answered("node-1")
    assert ledger.compare({"claim/1": "node-2"}) != []
