"""Health over time: readings, misses and clocks go in by hand."""

from dataclasses import replace

import pytest

from gpu_agent.probe.health.tracker import MissedReading, strip_figures
from gpu_agent.wire.inventory import Gpu, GpuProcess, GpuReport, Health, HealthReason, Outcome
from tests.probe.health.tracker_fixture import WALL, TrackedGpus, codes, gpu, hung, reading


def test_the_first_reading_ever_is_trusted_at_once() -> None:
    report = TrackedGpus().at(0, reading(gpu(0), gpu(1, "row_remap_pending")))
    assert [each.health for each in report.gpus] == [Health.OK, Health.DEGRADED]
    assert report.gpus[1].reasons[0].since == WALL
    assert report.gpus[1].reasons[0].action == "reset GPU"


def test_the_age_is_that_of_the_last_good_reading_and_none_before_it() -> None:
    tracked = TrackedGpus()
    assert tracked.tracker.age_seconds(5) is None
    tracked.at(5, hung(since=0))
    assert tracked.tracker.age_seconds(5) is None
    tracked.at(10, reading(gpu()))
    tracked.at(17, hung(since=12))
    assert tracked.tracker.age_seconds(17) == 7


def test_a_late_answer_is_as_old_as_it_says() -> None:
    tracked = TrackedGpus()
    tracked.at(20, replace(reading(gpu()), age_seconds=6.0))
    assert tracked.tracker.age_seconds(21) == 7


def test_a_miss_keeps_the_last_good_health_until_it_is_stale() -> None:
    tracked = TrackedGpus(stale_after_seconds=60)
    good = tracked.at(0, reading(gpu(0), gpu(1)))
    assert tracked.at(5, hung(since=1)) == good
    assert tracked.at(60, hung(since=1)) == good
    stale = tracked.at(60.1, hung(since=1))
    assert [each.health for each in stale.gpus] == [Health.UNKNOWN, Health.UNKNOWN]
    why = stale.gpus[0].reasons[0]
    assert why.code == "nvml_hung"
    assert why.since == pytest.approx(WALL + 1)
    assert why.detail == "NVML did not answer: reboot."
    assert why.action
    assert stale.usable == ()


def test_stale_gpus_keep_their_identity_and_lose_their_figures() -> None:
    tracked = TrackedGpus()
    tracked.at(0, reading(gpu()))
    stale = tracked.at(100, hung(since=1))
    assert (stale.gpus[0].uuid, stale.gpus[0].memory_mb) == ("GPU-0", 81559)
    assert stale.gpus[0].temperature_c is None
    assert (stale.outcome, stale.driver_version) == (Outcome.DRIVER_BROKEN, "570.1")


def test_the_answer_after_a_hang_is_the_recovery() -> None:
    tracked = TrackedGpus()
    tracked.at(0, reading(gpu()))
    tracked.at(100, hung(since=1))
    recovered = tracked.at(101, reading(gpu()))
    assert (recovered.gpus[0].health, recovered.gpus[0].reasons) == (Health.OK, ())
    assert tracked.tracker.age_seconds(101) == 0


def test_a_hang_does_not_shorten_probation() -> None:
    tracked = TrackedGpus()
    tracked.at(0, reading(gpu(0, "row_remap_pending")))
    tracked.at(1, reading(gpu()))
    tracked.at(100, hung(since=2))
    assert tracked.healths(101, reading(gpu())) == [Health.DEGRADED]
    assert tracked.healths(102, reading(gpu())) == [Health.OK]


def test_a_miss_before_any_reading_is_a_broken_driver_without_gpus() -> None:
    report = TrackedGpus().at(5, hung(since=0))
    assert (report.outcome, report.gpus) == (Outcome.DRIVER_BROKEN, ())
    assert report.detail


def test_a_dying_child_counts_as_a_miss_under_its_own_code() -> None:
    tracked = TrackedGpus()
    tracked.at(0, reading(gpu()))
    died = MissedReading(reason="nvml_child_died", since=2, detail="It was ended by SIGSEGV.")
    assert tracked.healths(10, died) == [Health.OK]
    assert codes(tracked.at(61, died)) == ["nvml_child_died"]


@pytest.mark.parametrize("outcome", [Outcome.DRIVER_BROKEN, Outcome.NO_DRIVER])
def test_a_driver_that_breaks_or_goes_is_believed_at_once(outcome: Outcome) -> None:
    tracked = TrackedGpus()
    tracked.at(0, reading(gpu(0), gpu(1)))
    report = tracked.at(1, GpuReport(outcome=outcome, detail="Reboot."))
    assert report.outcome is outcome
    assert [each.health for each in report.gpus] == [Health.UNKNOWN, Health.UNKNOWN]
    assert codes(report) == [outcome.value]
    assert report.gpus[0].reasons[0].since == WALL + 1
    assert tracked.tracker.age_seconds(3) == 3
    later = tracked.at(9, GpuReport(outcome=outcome, detail="Reboot."))
    assert later.gpus[0].reasons[0].since == WALL + 1
    assert tracked.healths(10, reading(gpu(0), gpu(1))) == [Health.OK, Health.OK]


def test_no_driver_from_the_start_lists_nothing() -> None:
    report = GpuReport(outcome=Outcome.NO_DRIVER, detail="Install it.")
    assert TrackedGpus().at(0, report) == report


def test_a_gpu_that_vanishes_from_the_list_is_lost_with_its_identity() -> None:
    tracked = TrackedGpus()
    tracked.at(0, reading(gpu(0), gpu(1), gpu(2)))
    report = tracked.at(1, reading(gpu(0), gpu(2)))
    assert [(each.index, each.health) for each in report.gpus] == [
        (0, Health.OK),
        (1, Health.LOST),
        (2, Health.OK),
    ]
    assert (report.gpus[1].uuid, report.gpus[1].memory_mb, report.gpus[1].temperature_c) == (
        "GPU-1",
        81559,
        None,
    )
    assert codes(report, 1) == ["gpu_lost"]
    assert tracked.at(50, reading(gpu(0), gpu(2))).gpus[1].reasons[0].since == WALL + 1


def test_a_mig_device_that_vanishes_is_not_lost() -> None:
    tracked = TrackedGpus()
    part = replace(gpu(0, uuid="MIG-1"), parent_uuid="GPU-0")
    tracked.at(0, reading(gpu(0), part))
    assert [each.uuid for each in tracked.at(1, reading(gpu(0))).gpus] == ["GPU-0"]


def test_an_unidentified_gpu_is_known_by_its_index() -> None:
    tracked = TrackedGpus()
    tracked.at(0, reading(gpu(0), gpu(1)))
    nameless = replace(gpu(1, "gpu_lost"), uuid="unidentified-1", name="unidentified GPU 1")
    report = tracked.at(1, reading(gpu(0), nameless))
    assert [(each.uuid, each.health) for each in report.gpus] == [
        ("GPU-0", Health.OK),
        ("GPU-1", Health.LOST),
    ]


def test_a_gpu_never_seen_before_stays_unidentified_and_is_not_missed_later() -> None:
    tracked = TrackedGpus()
    nameless = replace(gpu(1, "gpu_lost"), uuid="unidentified-1")
    assert tracked.healths(0, reading(gpu(0), nameless)) == [Health.OK, Health.LOST]
    report = tracked.at(1, reading(gpu(0), gpu(1)))
    assert [each.uuid for each in report.gpus] == ["GPU-0", "GPU-1"]


@pytest.mark.parametrize(
    ("code", "held"),
    [
        ("row_remap_pending", Health.DEGRADED),
        ("retired_pages_pending", Health.DEGRADED),
        ("gpu_lost", Health.LOST),
    ],
)
def test_a_cause_that_cleared_ends_after_three_clean_readings(code: str, held: Health) -> None:
    tracked = TrackedGpus()
    tracked.at(0, reading(gpu(0, code)))
    assert tracked.healths(1, reading(gpu())) == [held]
    second = tracked.at(2, reading(gpu()))
    assert second.gpus[0].health is held
    assert "2 of 3 clean readings" in second.gpus[0].reasons[0].detail
    assert second.gpus[0].temperature_c == 40
    assert tracked.healths(3, reading(gpu())) == [Health.OK]


def test_a_returning_cause_restarts_its_probation_and_has_its_first_since() -> None:
    tracked = TrackedGpus()
    tracked.at(0, reading(gpu(0, "row_remap_pending")))
    tracked.at(1, reading(gpu()))
    tracked.at(2, reading(gpu()))
    again = tracked.at(3, reading(gpu(0, "row_remap_pending")))
    assert again.gpus[0].reasons[0].since == WALL
    assert tracked.healths(4, reading(gpu())) == [Health.DEGRADED]
    assert tracked.healths(5, reading(gpu())) == [Health.DEGRADED]
    assert tracked.healths(6, reading(gpu())) == [Health.OK]


def test_one_cause_clears_while_another_stays() -> None:
    tracked = TrackedGpus()
    tracked.at(0, reading(gpu(0, "gpu_lost")))
    for now in (1, 2):
        assert tracked.healths(now, reading(gpu(0, "row_remap_pending"))) == [Health.LOST]
    assert tracked.healths(3, reading(gpu(0, "row_remap_pending"))) == [Health.DEGRADED]


def test_gpus_are_judged_one_by_one() -> None:
    tracked = TrackedGpus()
    tracked.at(0, reading(gpu(0), gpu(1, "gpu_lost")))
    assert tracked.healths(1, reading(gpu(0), gpu(1))) == [Health.OK, Health.LOST]


# GPUs that are not polled: identity and health stay, figures are unknown.


READ = Gpu(
    uuid="GPU-1",
    name="RTX 4090",
    index=0,
    memory_mb=24_564,
    memory_used_mb=1_000,
    temperature_c=50,
    processes=(GpuProcess(pid=1),),
    visible=True,
    health=Health.DEGRADED,
    reasons=(HealthReason(code="row_remap_pending", detail="rows wait"),),
    events={"xid_13": 1},
    unknowns={"mig_enabled": "not supported", "power_w": "not supported"},
)


def test_identity_and_health_stay_and_figures_are_unknown_with_the_reason() -> None:
    (gpu,) = strip_figures(GpuReport(outcome=Outcome.OK, gpus=(READ,), driver_version="570.1")).gpus
    assert (gpu.uuid, gpu.name, gpu.memory_mb, gpu.visible) == ("GPU-1", "RTX 4090", 24_564, True)
    assert (gpu.health, gpu.reasons) == (Health.DEGRADED, READ.reasons)
    assert (gpu.memory_used_mb, gpu.temperature_c, gpu.processes) == (None, None, None)
    for name in ("memory_used_mb", "temperature_c", "processes", "power_w"):
        assert "poll_gpus" in gpu.unknowns[name]
    assert gpu.unknowns["mig_enabled"] == "not supported"


def test_events_of_earlier_readings_are_not_reported_again() -> None:
    (gpu,) = strip_figures(GpuReport(outcome=Outcome.OK, gpus=(READ,))).gpus
    assert gpu.events == {}


def test_the_machines_versions_stay() -> None:
    assert strip_figures(GpuReport(outcome=Outcome.OK, driver_version="570.1")).driver_version == "570.1"
