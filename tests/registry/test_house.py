from dataclasses import FrozenInstanceError

import pytest

from gpu_agent.registry.census import Census
from gpu_agent.registry.claiming import Claiming
from gpu_agent.registry.dispatch.dispatch import Dispatch
from gpu_agent.registry.house import House
from gpu_agent.registry.pacing import Pacer
from gpu_agent.registry.policy import Policy
from gpu_agent.registry.roster import Roster
from gpu_agent.registry.thresholds import Thresholds
from gpu_agent.registry.tokens import Tokens
from gpu_agent.registry.verdicts import Verdicts


def test_nobody_can_exchange_a_part_of_the_house() -> None:
    thresholds, roster = Thresholds(), Roster()
    dispatch = Dispatch(thresholds, lambda: 0.0)
    claiming = Claiming(thresholds, dispatch, debug=lambda: False)
    verdicts = Verdicts(thresholds, roster, dispatch=dispatch, claiming=claiming)
    house = House(
        thresholds=thresholds,
        policy=Policy(),
        pacer=Pacer(thresholds, Census(), lambda: 0.0),
        roster=roster,
        tokens=Tokens(604800.0),
        dispatch=dispatch,
        claiming=claiming,
        verdicts=verdicts,
    )
    with pytest.raises(FrozenInstanceError):
        house.roster = Roster()  # type: ignore[misc]  # that is what must not work
