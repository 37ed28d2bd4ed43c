"""Health over time: readings, misses and clocks go in by hand."""

from dataclasses import replace

import pytest

from gpu_agent.probe.health import HealthKeeper
from gpu_agent.probe.nvml_report import Missed
from gpu_agent.probe.reasons import health_from, reason
from gpu_agent.wire.inventory import Gpu, GpuReport, Health, Outcome

WALL = 1_800_000_000.0
"""Unix time at monotonic 0 in these tests."""


def gpu(index: int = 0, *codes: str, uuid: str | None = None) -> Gpu:
    reasons = tuple(reason(code) for code in codes)
    return Gpu(
        uuid=uuid or f"GPU-{index}",
        name="H100",
        index=index,
        memory_mb=81559,
        temperature_c=40,
        retirement_pending=bool({"row_remap_pending", "retired_pages_pending"} & set(codes)),
        recovery_action=next((code for code in codes if code.startswith("recovery_")), "none"),
        health=health_from(reasons),
        reasons=reasons,
    )


def reading(*gpus: Gpu) -> GpuReport:
    return GpuReport(outcome=Outcome.OK, gpus=gpus, driver_version="570.1", cuda_version="12.8")


def hung(since: float) -> Missed:
    return Missed(reason="nvml_hung", since=since, detail="NVML did not answer: reboot.")


class Keeping:
    """A keeper and a hand on its clock."""

    def __init__(self, stale_after_seconds: float = 60.0) -> None:
        self.keeper = HealthKeeper(stale_after_seconds)

    def at(self, now: float, result: GpuReport | Missed) -> GpuReport:
        return self.keeper.observe(result, now_wall=WALL + now, now_mono=now)

    def healths(self, now: float, result: GpuReport | Missed) -> list[Health]:
        return [each.health for each in self.at(now, result).gpus]


def codes(report: GpuReport, index: int = 0) -> list[str]:
    return [each.code for each in report.gpus[index].reasons]


def test_the_first_reading_ever_is_trusted_at_once() -> None:
    report = Keeping().at(0, reading(gpu(0), gpu(1, "row_remap_pending")))
    assert [each.health for each in report.gpus] == [Health.OK, Health.DEGRADED]
    assert report.gpus[1].reasons[0].since == WALL
    assert report.gpus[1].reasons[0].action == "reset GPU"


def test_the_age_is_that_of_the_last_good_reading_and_none_before_it() -> None:
    keeping = Keeping()
    assert keeping.keeper.age_seconds(5) is None
    keeping.at(5, hung(since=0))
    assert keeping.keeper.age_seconds(5) is None
    keeping.at(10, reading(gpu()))
    keeping.at(17, hung(since=12))
    assert keeping.keeper.age_seconds(17) == 7


def test_a_late_answer_is_as_old_as_it_says() -> None:
    keeping = Keeping()
    keeping.at(20, replace(reading(gpu()), age_seconds=6.0))
    assert keeping.keeper.age_seconds(21) == 7


def test_a_miss_keeps_the_last_good_health_until_it_is_stale() -> None:
    keeping = Keeping(stale_after_seconds=60)
    good = keeping.at(0, reading(gpu(0), gpu(1)))
    assert keeping.at(5, hung(since=1)) == good
    assert keeping.at(60, hung(since=1)) == good
    stale = keeping.at(60.1, hung(since=1))
    assert [each.health for each in stale.gpus] == [Health.UNKNOWN, Health.UNKNOWN]
    why = stale.gpus[0].reasons[0]
    assert why.code == "nvml_hung"
    assert why.since == pytest.approx(WALL + 1)
    assert why.detail == "NVML did not answer: reboot."
    assert why.action
    assert stale.usable == ()


def test_stale_gpus_keep_their_identity_and_lose_their_figures() -> None:
    keeping = Keeping()
    keeping.at(0, reading(gpu()))
    stale = keeping.at(100, hung(since=1))
    assert (stale.gpus[0].uuid, stale.gpus[0].memory_mb) == ("GPU-0", 81559)
    assert stale.gpus[0].temperature_c is None
    assert (stale.outcome, stale.driver_version) == (Outcome.DRIVER_BROKEN, "570.1")


def test_the_answer_after_a_hang_is_the_recovery() -> None:
    keeping = Keeping()
    keeping.at(0, reading(gpu()))
    keeping.at(100, hung(since=1))
    recovered = keeping.at(101, reading(gpu()))
    assert (recovered.gpus[0].health, recovered.gpus[0].reasons) == (Health.OK, ())
    assert keeping.keeper.age_seconds(101) == 0


def test_a_hang_does_not_shorten_probation() -> None:
    keeping = Keeping()
    keeping.at(0, reading(gpu(0, "row_remap_pending")))
    keeping.at(1, reading(gpu()))
    keeping.at(100, hung(since=2))
    assert keeping.healths(101, reading(gpu())) == [Health.DEGRADED]
    assert keeping.healths(102, reading(gpu())) == [Health.OK]


def test_a_miss_before_any_reading_is_a_broken_driver_without_gpus() -> None:
    report = Keeping().at(5, hung(since=0))
    assert (report.outcome, report.gpus) == (Outcome.DRIVER_BROKEN, ())
    assert report.detail


def test_a_dying_child_counts_as_a_miss_under_its_own_code() -> None:
    keeping = Keeping()
    keeping.at(0, reading(gpu()))
    died = Missed(reason="nvml_child_died", since=2, detail="It was ended by SIGSEGV.")
    assert keeping.healths(10, died) == [Health.OK]
    assert codes(keeping.at(61, died)) == ["nvml_child_died"]


@pytest.mark.parametrize("outcome", [Outcome.DRIVER_BROKEN, Outcome.NO_DRIVER])
def test_a_driver_that_breaks_or_goes_is_believed_at_once(outcome: Outcome) -> None:
    keeping = Keeping()
    keeping.at(0, reading(gpu(0), gpu(1)))
    report = keeping.at(1, GpuReport(outcome=outcome, detail="Reboot."))
    assert report.outcome is outcome
    assert [each.health for each in report.gpus] == [Health.UNKNOWN, Health.UNKNOWN]
    assert codes(report) == [outcome.value]
    assert report.gpus[0].reasons[0].since == WALL + 1
    assert keeping.keeper.age_seconds(3) == 3
    later = keeping.at(9, GpuReport(outcome=outcome, detail="Reboot."))
    assert later.gpus[0].reasons[0].since == WALL + 1
    assert keeping.healths(10, reading(gpu(0), gpu(1))) == [Health.OK, Health.OK]


def test_no_driver_from_the_start_lists_nothing() -> None:
    report = GpuReport(outcome=Outcome.NO_DRIVER, detail="Install it.")
    assert Keeping().at(0, report) == report


def test_a_gpu_that_vanishes_from_the_list_is_lost_with_its_identity() -> None:
    keeping = Keeping()
    keeping.at(0, reading(gpu(0), gpu(1), gpu(2)))
    report = keeping.at(1, reading(gpu(0), gpu(2)))
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
    assert keeping.at(50, reading(gpu(0), gpu(2))).gpus[1].reasons[0].since == WALL + 1


def test_a_mig_slice_that_vanishes_is_not_lost() -> None:
    keeping = Keeping()
    part = replace(gpu(0, uuid="MIG-1"), parent_uuid="GPU-0")
    keeping.at(0, reading(gpu(0), part))
    assert [each.uuid for each in keeping.at(1, reading(gpu(0))).gpus] == ["GPU-0"]


def test_a_gpu_that_lost_its_name_is_known_by_its_place() -> None:
    keeping = Keeping()
    keeping.at(0, reading(gpu(0), gpu(1)))
    nameless = replace(gpu(1, "gpu_lost"), uuid="unidentified-1", name="unidentified GPU 1")
    report = keeping.at(1, reading(gpu(0), nameless))
    assert [(each.uuid, each.health) for each in report.gpus] == [
        ("GPU-0", Health.OK),
        ("GPU-1", Health.LOST),
    ]


def test_a_gpu_never_seen_before_stays_unidentified_and_is_not_missed_later() -> None:
    keeping = Keeping()
    nameless = replace(gpu(1, "gpu_lost"), uuid="unidentified-1")
    assert keeping.healths(0, reading(gpu(0), nameless)) == [Health.OK, Health.LOST]
    report = keeping.at(1, reading(gpu(0), gpu(1)))
    assert [each.uuid for each in report.gpus] == ["GPU-0", "GPU-1"]


@pytest.mark.parametrize(
    ("code", "held"),
    [
        ("row_remap_pending", Health.DEGRADED),
        ("retired_pages_pending", Health.DEGRADED),
        ("gpu_lost", Health.LOST),
    ],
)
def test_a_cause_that_cleared_is_forgotten_after_three_clean_readings(code: str, held: Health) -> None:
    keeping = Keeping()
    keeping.at(0, reading(gpu(0, code)))
    assert keeping.healths(1, reading(gpu())) == [held]
    second = keeping.at(2, reading(gpu()))
    assert second.gpus[0].health is held
    assert "2 of 3 clean readings" in second.gpus[0].reasons[0].detail
    assert second.gpus[0].temperature_c == 40
    assert keeping.healths(3, reading(gpu())) == [Health.OK]


def test_a_cause_that_returns_begins_its_probation_anew_and_keeps_its_first_moment() -> None:
    keeping = Keeping()
    keeping.at(0, reading(gpu(0, "row_remap_pending")))
    keeping.at(1, reading(gpu()))
    keeping.at(2, reading(gpu()))
    again = keeping.at(3, reading(gpu(0, "row_remap_pending")))
    assert again.gpus[0].reasons[0].since == WALL
    assert keeping.healths(4, reading(gpu())) == [Health.DEGRADED]
    assert keeping.healths(5, reading(gpu())) == [Health.DEGRADED]
    assert keeping.healths(6, reading(gpu())) == [Health.OK]


def test_one_cause_clears_while_another_stays() -> None:
    keeping = Keeping()
    keeping.at(0, reading(gpu(0, "gpu_lost")))
    for now in (1, 2):
        assert keeping.healths(now, reading(gpu(0, "row_remap_pending"))) == [Health.LOST]
    assert keeping.healths(3, reading(gpu(0, "row_remap_pending"))) == [Health.DEGRADED]


def test_gpus_are_judged_one_by_one() -> None:
    keeping = Keeping()
    keeping.at(0, reading(gpu(0), gpu(1, "gpu_lost")))
    assert keeping.healths(1, reading(gpu(0), gpu(1))) == [Health.OK, Health.LOST]


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
