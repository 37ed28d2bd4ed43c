"""The table of Xids against what the specification asks of it."""

import pytest

from gpu_agent.probe.xids import XIDS, Action, code_of, told
from gpu_agent.wire.inventory import Health

APPLICATIONS = {13, 31, 43, 45, 68, 109}
COUNTING = {48, 63, 64, 74, 79, 92, 94, 95, 119, 120}


def test_the_xids_of_applications_never_count_and_those_of_the_hardware_do() -> None:
    assert {number for number, xid in XIDS.items() if xid.health is None} == APPLICATIONS
    assert {number for number, xid in XIDS.items() if xid.health is not None} == COUNTING


@pytest.mark.parametrize("number", sorted(COUNTING))
def test_an_xid_that_counts_makes_a_gpu_degraded_or_lost_and_names_itself(number: int) -> None:
    assert XIDS[number].health in (Health.DEGRADED, Health.LOST)
    assert f"Xid {number}" in XIDS[number].detail


def test_what_leaves_no_gpu_to_use_is_lost() -> None:
    lost = {number for number, xid in XIDS.items() if xid.health is Health.LOST}
    assert lost == {79, 95, 119, 120}
    assert XIDS[79].action is Action.REBOOT


def test_a_lost_gpu_is_never_left_without_something_to_do() -> None:
    mild = {xid.action for xid in XIDS.values() if xid.health is Health.LOST}
    assert mild <= {Action.RESET_GPU, Action.REBOOT}


def test_a_code_leads_back_to_its_row() -> None:
    assert code_of(79) == "xid_79"
    assert told(code_of(79)) is XIDS[79]
    assert told("xid_9999") is None
    assert told("ecc_uncorrected") is None
