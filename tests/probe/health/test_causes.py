"""Causes besides the figures: events, MIG devices, suspended GPUs, readings that do not cover a reason."""

from dataclasses import replace

import pytest

from gpu_agent.probe.health.tracker import MissedReading
from gpu_agent.wire.inventory import Gpu, GpuReport, Health, Outcome
from tests.probe.health.tracker_fixture import WALL, TrackedGpus, codes, gpu, hung, reading


def test_an_event_is_a_cause_with_its_first_moment_a_sentence_and_an_action() -> None:
    tracked = TrackedGpus()
    tracked.at(0, reading(replace(gpu(), energy_mj=9_000)))
    tracked.at(5, reading(replace(gpu(), energy_mj=9_001, events={"xid_48": 1})))
    report = tracked.at(10, reading(replace(gpu(), energy_mj=9_002, events={"xid_48": 1})))
    (why,) = report.gpus[0].reasons
    assert report.gpus[0].health is Health.DEGRADED
    assert (why.code, why.since, why.action) == ("xid_48", WALL + 5, "reset GPU")
    assert "Xid 48" in why.detail


def test_after_a_reset_a_gpu_is_on_probation_and_a_new_event_ends_that() -> None:
    tracked = TrackedGpus()
    tracked.at(0, reading(replace(gpu(), energy_mj=9_000, events={"xid_119": 1})))
    assert tracked.healths(1, reading(replace(gpu(), energy_mj=9_001))) == [Health.LOST]
    assert tracked.healths(2, reading(replace(gpu(), energy_mj=1))) == [Health.LOST]
    assert tracked.healths(3, reading(replace(gpu(), energy_mj=2))) == [Health.LOST]
    again = reading(replace(gpu(), energy_mj=3, events={"xid_119": 1}))
    assert tracked.healths(4, again) == [Health.LOST]
    for now, energy, health in (
        (5, 1, Health.LOST),
        (6, 2, Health.LOST),
        (7, 3, Health.LOST),
        (8, 4, Health.OK),
    ):
        assert tracked.healths(now, reading(replace(gpu(), energy_mj=energy))) == [health]


def test_an_event_of_one_gpu_is_nothing_to_the_others() -> None:
    tracked = TrackedGpus()
    eight = [gpu(index) for index in range(8)]
    eight[3] = replace(eight[3], events={"xid_79": 1})
    report = tracked.at(0, reading(*eight))
    assert [each.health for each in report.gpus] == [*[Health.OK] * 3, Health.LOST, *[Health.OK] * 4]
    assert len(report.usable) == 7


def test_an_event_of_an_unidentified_gpu_counts_for_its_last_identity() -> None:
    tracked = TrackedGpus()
    tracked.at(0, reading(gpu(0)))
    nameless = replace(gpu(0, "gpu_lost"), uuid="unidentified-0", events={"xid_79": 1})
    report = tracked.at(1, reading(nameless))
    assert report.gpus[0].uuid == "GPU-0"
    assert codes(report) == ["gpu_lost", "xid_79"]


def test_a_fault_of_a_gpu_is_a_fault_of_its_mig_devices() -> None:
    tracked = TrackedGpus()
    parent = replace(gpu(0), mig_enabled=True, events={"xid_95": 1})
    part = replace(gpu(0, uuid="MIG-1"), parent_uuid="GPU-0")
    other = replace(gpu(1, uuid="MIG-2"), parent_uuid="GPU-1")
    report = tracked.at(0, reading(parent, part, gpu(1), other))
    assert {each.uuid: each.health for each in report.gpus} == {
        "GPU-0": Health.LOST,
        "MIG-1": Health.LOST,
        "GPU-1": Health.OK,
        "MIG-2": Health.OK,
    }
    assert [each.uuid for each in report.usable] == ["MIG-2"]


def test_a_mig_device_has_its_own_reasons_and_clears_with_its_gpu() -> None:
    tracked = TrackedGpus()
    part = replace(gpu(0, uuid="MIG-1"), parent_uuid="GPU-0")
    ill = replace(gpu(0, "row_remap_pending", uuid="MIG-1"), parent_uuid="GPU-0")
    report = tracked.at(0, reading(gpu(0, "row_remap_pending", "row_remap_failed"), ill))
    assert codes(report, 1) == ["row_remap_pending", "row_remap_failed"]
    for now in (1, 2):
        assert tracked.healths(now, reading(gpu(0), part)) == [Health.DEGRADED, Health.DEGRADED]
    assert tracked.healths(3, reading(gpu(0), part)) == [Health.OK, Health.OK]


def test_while_nothing_is_read_an_event_stays_beside_what_makes_the_gpu_unknown() -> None:
    tracked = TrackedGpus()
    tracked.at(0, reading(replace(gpu(), events={"xid_48": 1})))
    report = tracked.at(1, GpuReport(outcome=Outcome.DRIVER_BROKEN, detail="Reboot."))
    assert codes(report) == ["xid_48", "driver_broken"]
    assert report.gpus[0].health is Health.UNKNOWN
    assert codes(tracked.at(2, reading(gpu()))) == ["xid_48"]


def test_a_broken_driver_that_was_late_once_is_not_called_silent_once_it_answers() -> None:
    tracked = TrackedGpus(stale_after_seconds=1)
    tracked.at(0, reading(gpu()))
    broken = GpuReport(outcome=Outcome.DRIVER_BROKEN, detail="Reboot.")
    tracked.at(2, broken)
    assert codes(tracked.at(9, hung(since=8))) == ["driver_broken", "nvml_hung"]
    assert codes(tracked.at(10, broken)) == ["driver_broken"]
    assert codes(tracked.at(11, replace(broken, outcome=Outcome.NO_DRIVER))) == ["no_driver"]


def test_a_child_that_died_no_longer_hangs() -> None:
    tracked = TrackedGpus(stale_after_seconds=1)
    tracked.at(0, reading(gpu()))
    assert codes(tracked.at(9, hung(since=2))) == ["nvml_hung"]
    died = MissedReading(reason="nvml_child_died", since=2, detail="It crashed.")
    assert codes(tracked.at(10, died)) == ["nvml_child_died"]
    assert codes(tracked.at(20, hung(since=2))) == ["nvml_hung"]


def test_a_suspended_gpu_has_its_health_and_clean_readings_unchanged() -> None:
    tracked = TrackedGpus()
    tracked.at(0, reading(gpu(0, "row_remap_pending")))
    tracked.at(1, reading(gpu(0)))
    asleep = replace(gpu(0), asleep=True, temperature_c=None)
    reports = [tracked.at(now, reading(asleep)) for now in range(2, 12)]
    assert {report.gpus[0].health for report in reports} == {Health.DEGRADED}
    assert "1 of 3 clean readings" in reports[-1].gpus[0].reasons[0].detail
    assert tracked.healths(20, reading(gpu(0))) == [Health.DEGRADED]
    assert tracked.healths(21, reading(gpu(0))) == [Health.OK]


def test_a_gpu_suspended_after_a_hang_is_no_longer_hung() -> None:
    tracked = TrackedGpus(stale_after_seconds=1)
    tracked.at(0, reading(gpu(0)))
    assert tracked.healths(9, hung(since=2)) == [Health.UNKNOWN]
    assert tracked.healths(10, reading(replace(gpu(0), asleep=True))) == [Health.OK]


def test_an_unidentified_lost_gpu_never_takes_the_identity_of_its_mig_device() -> None:
    tracked = TrackedGpus()
    slice_ = replace(gpu(0, uuid="MIG-1"), parent_uuid="GPU-0")
    tracked.at(0, reading(gpu(0), slice_))
    lost = tracked.at(1, reading(gpu(0, "gpu_lost", uuid="unidentified-0")))
    assert [each.uuid for each in lost.gpus] == ["GPU-0"]


NO_WORD_OF_MEMORY = replace(gpu(), retirement_pending=None)
NO_WORD_OF_ROWS = replace(
    gpu(),
    retirement_pending=False,
    unknowns={"row_remap_pending": "timeout", "row_remap_failed": "timeout"},
)
NO_WORD_OF_PAGES = replace(gpu(), retirement_pending=False, unknowns={"retired_pages_pending": "timeout"})
NO_WORD_OF_RECOVERY = replace(gpu(), recovery_action=None)


@pytest.mark.parametrize(
    ("code", "partial"),
    [
        ("row_remap_pending", NO_WORD_OF_MEMORY),
        ("row_remap_failed", NO_WORD_OF_MEMORY),
        ("retired_pages_pending", NO_WORD_OF_MEMORY),
        ("row_remap_pending", NO_WORD_OF_ROWS),
        ("row_remap_failed", NO_WORD_OF_ROWS),
        ("retired_pages_pending", NO_WORD_OF_PAGES),
        ("recovery_reset", NO_WORD_OF_RECOVERY),
        ("recovery_drain_p2p", NO_WORD_OF_RECOVERY),
        ("fabric_route_unhealthy", replace(gpu(), fabric_faults=None)),
        ("sram_ecc_threshold", replace(gpu(), sram_threshold_exceeded=None)),
    ],
)
def test_a_reading_that_does_not_cover_a_reason_clears_nothing(code: str, partial: Gpu) -> None:
    tracked = TrackedGpus()
    ill = tracked.healths(0, reading(gpu(0, code)))
    for now in range(1, 6):
        assert tracked.healths(now, reading(partial)) == ill
    assert [tracked.healths(now, reading(gpu())) for now in (6, 7, 8)] == [ill, ill, [Health.OK]]


@pytest.mark.parametrize(
    ("code", "partial"), [("retired_pages_pending", NO_WORD_OF_ROWS), ("row_remap_failed", NO_WORD_OF_PAGES)]
)
def test_a_field_that_was_read_clears_its_reason_though_another_was_not(code: str, partial: Gpu) -> None:
    tracked = TrackedGpus()
    ill = tracked.healths(0, reading(gpu(0, code)))
    healths = [tracked.healths(now, reading(partial)) for now in (1, 2, 3)]
    assert healths == [ill, ill, [Health.OK]]


@pytest.mark.parametrize("gone", ["gpu_lost", "gpu_reset_required", "gpu_silent", "gpu_inaccessible"])
def test_a_gpu_that_is_not_read_clears_nothing(gone: str) -> None:
    tracked = TrackedGpus()
    tracked.at(0, reading(gpu(0, "row_remap_failed")))
    for now in range(1, 6):
        assert "row_remap_failed" in codes(tracked.at(now, reading(gpu(0, gone))))
    assert codes(tracked.at(6, reading(gpu())))[0] == "row_remap_failed"


def test_a_lost_gpu_that_is_merely_listed_again_stays_lost() -> None:
    tracked = TrackedGpus()
    tracked.at(0, reading(gpu(0, "gpu_lost")))
    for now in range(1, 6):
        assert tracked.healths(now, reading(gpu(0, "gpu_inaccessible"))) == [Health.LOST]


def test_a_compute_mode_that_was_not_read_leaves_the_gpu_as_it_was_and_one_that_was_clears_at_once() -> None:
    tracked = TrackedGpus()
    assert tracked.healths(0, reading(gpu(0, "compute_mode_prohibited"))) == [Health.UNKNOWN]
    assert tracked.healths(1, reading(replace(gpu(), compute_mode=None))) == [Health.UNKNOWN]
    assert tracked.healths(2, reading(gpu())) == [Health.OK]
