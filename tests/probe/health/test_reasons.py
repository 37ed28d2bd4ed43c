"""The table of reasons and what it makes of them."""

import pytest

from gpu_agent.probe.health.reasons import REASONS, Clears, health_from, meaning, reason
from gpu_agent.probe.health.xids import XIDS, Action, xid_code, xid_of_code
from gpu_agent.wire.inventory import Health


@pytest.mark.parametrize("code", REASONS)
def test_every_reason_leads_away_from_ok_with_a_sentence_and_a_next_step(code: str) -> None:
    made = reason(code, since=5.0)
    assert REASONS[code].health is not Health.OK
    assert made.detail
    assert made.action
    assert made.since == 5.0


def test_no_reason_is_ok() -> None:
    assert health_from([]) is Health.OK


@pytest.mark.parametrize(
    ("codes", "worst"),
    [
        (["row_remap_pending"], Health.DEGRADED),
        (["row_remap_pending", "nvml_hung"], Health.UNKNOWN),
        (["gpu_lost", "nvml_hung", "row_remap_pending"], Health.LOST),
    ],
)
def test_the_worst_reason_decides(codes: list[str], worst: Health) -> None:
    assert health_from(reason(code) for code in codes) is worst


def test_an_unknown_health_ends_with_the_next_reading() -> None:
    unknown = [entry for entry in REASONS.values() if entry.health is Health.UNKNOWN]
    assert {entry.clears for entry in unknown} == {Clears.READING}


def test_every_event_has_a_meaning_whether_it_counts_or_not() -> None:
    assert meaning("xid_79") == REASONS["xid_79"].detail
    assert "program" in meaning("xid_13")
    assert "catalogue" in meaning("xid_9999")
    assert meaning("ecc_uncorrected") == REASONS["ecc_uncorrected"].detail


# The table of Xids against what the specification asks of it.


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
    assert xid_code(79) == "xid_79"
    assert xid_of_code(xid_code(79)) is XIDS[79]
    assert xid_of_code("xid_9999") is None
    assert xid_of_code("ecc_uncorrected") is None
