"""The table of reasons and what it makes of them."""

import pytest

from gpu_agent.probe.reasons import REASONS, Clears, health_from, meaning, reason
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


def test_what_nobody_knew_ends_with_the_next_reading() -> None:
    unknown = [entry for entry in REASONS.values() if entry.health is Health.UNKNOWN]
    assert {entry.clears for entry in unknown} == {Clears.READING}


def test_every_event_has_a_meaning_whether_it_counts_or_not() -> None:
    assert meaning("xid_79") == REASONS["xid_79"].detail
    assert "program" in meaning("xid_13")
    assert "catalogue" in meaning("xid_9999")
    assert meaning("ecc_uncorrected") == REASONS["ecc_uncorrected"].detail
