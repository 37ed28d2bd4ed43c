"""What the driver tells besides its figures: events, slices, sleep, and what a reading does not say."""

from dataclasses import replace

import pytest

from gpu_agent.wire.inventory import Gpu, GpuReport, Health, Outcome
from tests.probe.health.tracker_fixture import WALL, Keeping, codes, gpu, hung, reading


def test_an_event_is_a_cause_with_its_first_moment_a_sentence_and_an_action() -> None:
    keeping = Keeping()
    keeping.at(0, reading(replace(gpu(), energy_mj=9_000)))
    keeping.at(5, reading(replace(gpu(), energy_mj=9_001, events={"xid_48": 1})))
    report = keeping.at(10, reading(replace(gpu(), energy_mj=9_002, events={"xid_48": 1})))
    (why,) = report.gpus[0].reasons
    assert report.gpus[0].health is Health.DEGRADED
    assert (why.code, why.since, why.action) == ("xid_48", WALL + 5, "reset GPU")
    assert "Xid 48" in why.detail


def test_after_a_reset_a_gpu_is_on_probation_and_a_new_event_ends_that() -> None:
    keeping = Keeping()
    keeping.at(0, reading(replace(gpu(), energy_mj=9_000, events={"xid_119": 1})))
    assert keeping.healths(1, reading(replace(gpu(), energy_mj=9_001))) == [Health.LOST]
    assert keeping.healths(2, reading(replace(gpu(), energy_mj=1))) == [Health.LOST]
    assert keeping.healths(3, reading(replace(gpu(), energy_mj=2))) == [Health.LOST]
    again = reading(replace(gpu(), energy_mj=3, events={"xid_119": 1}))
    assert keeping.healths(4, again) == [Health.LOST]
    for now, energy, health in (
        (5, 1, Health.LOST),
        (6, 2, Health.LOST),
        (7, 3, Health.LOST),
        (8, 4, Health.OK),
    ):
        assert keeping.healths(now, reading(replace(gpu(), energy_mj=energy))) == [health]


def test_an_event_of_one_gpu_is_nothing_to_the_others() -> None:
    keeping = Keeping()
    eight = [gpu(index) for index in range(8)]
    eight[3] = replace(eight[3], events={"xid_79": 1})
    report = keeping.at(0, reading(*eight))
    assert [each.health for each in report.gpus] == [*[Health.OK] * 3, Health.LOST, *[Health.OK] * 4]
    assert len(report.usable) == 7


def test_an_event_of_a_gpu_that_lost_its_name_is_noted_of_who_it_was() -> None:
    keeping = Keeping()
    keeping.at(0, reading(gpu(0)))
    nameless = replace(gpu(0, "gpu_lost"), uuid="unidentified-0", events={"xid_79": 1})
    report = keeping.at(1, reading(nameless))
    assert report.gpus[0].uuid == "GPU-0"
    assert codes(report) == ["gpu_lost", "xid_79"]


def test_what_ails_a_gpu_ails_its_slices() -> None:
    keeping = Keeping()
    parent = replace(gpu(0), mig_enabled=True, events={"xid_95": 1})
    part = replace(gpu(0, uuid="MIG-1"), parent_uuid="GPU-0")
    other = replace(gpu(1, uuid="MIG-2"), parent_uuid="GPU-1")
    report = keeping.at(0, reading(parent, part, gpu(1), other))
    assert {each.uuid: each.health for each in report.gpus} == {
        "GPU-0": Health.LOST,
        "MIG-1": Health.LOST,
        "GPU-1": Health.OK,
        "MIG-2": Health.OK,
    }
    assert [each.uuid for each in report.usable] == ["MIG-2"]


def test_a_slice_has_its_own_reasons_besides_and_is_well_with_its_parent() -> None:
    keeping = Keeping()
    part = replace(gpu(0, uuid="MIG-1"), parent_uuid="GPU-0")
    ill = replace(gpu(0, "row_remap_pending", uuid="MIG-1"), parent_uuid="GPU-0")
    report = keeping.at(0, reading(gpu(0, "row_remap_pending", "row_remap_failed"), ill))
    assert codes(report, 1) == ["row_remap_pending", "row_remap_failed"]
    for now in (1, 2):
        assert keeping.healths(now, reading(gpu(0), part)) == [Health.DEGRADED, Health.DEGRADED]
    assert keeping.healths(3, reading(gpu(0), part)) == [Health.OK, Health.OK]


def test_while_nothing_is_read_an_event_stays_beside_what_makes_the_gpu_unknown() -> None:
    keeping = Keeping()
    keeping.at(0, reading(replace(gpu(), events={"xid_48": 1})))
    report = keeping.at(1, GpuReport(outcome=Outcome.DRIVER_BROKEN, detail="Reboot."))
    assert codes(report) == ["xid_48", "driver_broken"]
    assert report.gpus[0].health is Health.UNKNOWN
    assert codes(keeping.at(2, reading(gpu()))) == ["xid_48"]


def test_a_gpu_that_sleeps_keeps_its_health_and_its_count_of_clean_readings() -> None:
    keeping = Keeping()
    keeping.at(0, reading(gpu(0, "row_remap_pending")))
    keeping.at(1, reading(gpu(0)))
    asleep = replace(gpu(0), asleep=True, temperature_c=None)
    reports = [keeping.at(now, reading(asleep)) for now in range(2, 12)]
    assert {report.gpus[0].health for report in reports} == {Health.DEGRADED}
    assert "1 of 3 clean readings" in reports[-1].gpus[0].reasons[0].detail
    assert keeping.healths(20, reading(gpu(0))) == [Health.DEGRADED]
    assert keeping.healths(21, reading(gpu(0))) == [Health.OK]


def test_a_gpu_that_sleeps_after_a_hang_is_no_longer_hung() -> None:
    keeping = Keeping(stale_after_seconds=1)
    keeping.at(0, reading(gpu(0)))
    assert keeping.healths(9, hung(since=2)) == [Health.UNKNOWN]
    assert keeping.healths(10, reading(replace(gpu(0), asleep=True))) == [Health.OK]


def test_a_gpu_lost_before_it_said_who_it_is_never_takes_the_identity_of_its_slice() -> None:
    keeping = Keeping()
    slice_ = replace(gpu(0, uuid="MIG-1"), parent_uuid="GPU-0")
    keeping.at(0, reading(gpu(0), slice_))
    lost = keeping.at(1, reading(gpu(0, "gpu_lost", uuid="unidentified-0")))
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
    ("code", "silent"),
    [
        ("row_remap_pending", NO_WORD_OF_MEMORY),
        ("row_remap_failed", NO_WORD_OF_MEMORY),
        ("retired_pages_pending", NO_WORD_OF_MEMORY),
        ("row_remap_pending", NO_WORD_OF_ROWS),
        ("row_remap_failed", NO_WORD_OF_ROWS),
        ("retired_pages_pending", NO_WORD_OF_PAGES),
        ("recovery_reset", NO_WORD_OF_RECOVERY),
        ("recovery_drain_p2p", NO_WORD_OF_RECOVERY),
    ],
)
def test_a_reading_that_does_not_say_clears_nothing_and_counts_as_no_clean_one(
    code: str, silent: Gpu
) -> None:
    keeping = Keeping()
    ill = keeping.healths(0, reading(gpu(0, code)))
    for now in range(1, 6):
        assert keeping.healths(now, reading(silent)) == ill
    assert [keeping.healths(now, reading(gpu())) for now in (6, 7, 8)] == [ill, ill, [Health.OK]]


@pytest.mark.parametrize(
    ("code", "silent"), [("retired_pages_pending", NO_WORD_OF_ROWS), ("row_remap_failed", NO_WORD_OF_PAGES)]
)
def test_a_sign_that_is_told_clears_though_another_is_not(code: str, silent: Gpu) -> None:
    keeping = Keeping()
    ill = keeping.healths(0, reading(gpu(0, code)))
    told = [keeping.healths(now, reading(silent)) for now in (1, 2, 3)]
    assert told == [ill, ill, [Health.OK]]


@pytest.mark.parametrize("gone", ["gpu_lost", "gpu_reset_required", "gpu_silent", "gpu_inaccessible"])
def test_a_gpu_that_is_not_read_clears_nothing(gone: str) -> None:
    keeping = Keeping()
    keeping.at(0, reading(gpu(0, "row_remap_failed")))
    for now in range(1, 6):
        assert "row_remap_failed" in codes(keeping.at(now, reading(gpu(0, gone))))
    assert codes(keeping.at(6, reading(gpu())))[0] == "row_remap_failed"


def test_a_lost_gpu_that_is_merely_listed_again_stays_lost() -> None:
    keeping = Keeping()
    keeping.at(0, reading(gpu(0, "gpu_lost")))
    for now in range(1, 6):
        assert keeping.healths(now, reading(gpu(0, "gpu_inaccessible"))) == [Health.LOST]
