"""Each fault that a driver tells is seen in time, said by every page, and over after it has healed."""

import pytest

from gpu_agent.probe.health.history import QUIET_SECONDS, SLOWDOWN_SECONDS
from gpu_agent.probe.health.reasons import REASONS, Clears, how_to
from gpu_agent.probe.nvml.readings import SLOW_READINGS
from gpu_agent.wire.inventory import Health
from tests.nvml_fake.fault_table import DRIVERS, FAULTS, POLL_SECONDS, REOPEN_EVERY, Seen, table

OF_NO_DEVICE = {
    *("nvml_hung", "nvml_child_died", "driver_broken", "no_driver"),
    *("collector_hung", "collector_failed", "collector_degraded", "collector_unsure"),
}
"""Reasons of a driver as a whole, or of another vendor's GPU."""
TESTED_BY_THEMSELVES = {"gpu_silent", "gpu_inaccessible", "mig_without_slices", "recovery_other"}


def test_every_reason_of_one_gpu_is_among_the_faults() -> None:
    assert {fault.code for fault in FAULTS} == set(REASONS) - OF_NO_DEVICE - TESTED_BY_THEMSELVES


@pytest.mark.parametrize("driver", DRIVERS)
def test_a_fault_is_seen_in_time_said_everywhere_and_over_after_its_end(driver: str) -> None:
    for seen in table([driver]):
        if driver in seen.fault.unseen_by:
            assert seen.after_seconds is None, seen
            continue
        check(seen)


def check(seen: Seen) -> None:
    code = seen.fault.code
    entry = REASONS[code]
    assert seen.after_seconds is not None, seen
    assert seen.after_seconds <= seen_within(code), seen
    assert seen.health is entry.health or seen.health is Health.LOST, seen
    step = how_to(entry.action, name="NVIDIA", indexes=(0,))
    assert all(word in seen.said_by_probe for word in (f"({code}", entry.detail, step)), seen
    assert code in seen.said_by_registry, seen
    assert seen.said_by_registry.startswith(seen.health.value), seen
    assert seen.healed_after_seconds is not None, seen
    assert seen.healed_after_seconds <= healed_within(seen), seen


def seen_within(code: str) -> float:
    if "slowdown" in code or code == "pcie_link_slow":
        return SLOWDOWN_SECONDS + 2 * POLL_SECONDS
    return SLOW_READINGS * POLL_SECONDS


def healed_within(seen: Seen) -> float:
    probation = 4 * POLL_SECONDS
    if REASONS[seen.fault.code].clears in (Clears.PROGRAMS, Clears.QUIET):
        return QUIET_SECONDS + probation
    return probation + (REOPEN_EVERY * POLL_SECONDS if seen.health is Health.LOST else 0)
