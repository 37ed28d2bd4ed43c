from dataclasses import replace
from datetime import datetime

import pytest

from gpu_agent.node.limit_settings import OwnersLimits
from gpu_agent.node.limits import BUSY_SECONDS, COOLER_C, Limit, Limits, Now, Pause
from gpu_agent.wire.inventory import Gpu, GpuProcess, GpuReport, Health, Outcome

MONDAY_NOON = datetime.fromisoformat("2026-11-23T12:00")
GPU = Gpu(
    uuid="GPU-0", name="X", index=0, memory_mb=24000, memory_used_mb=1000, temperature_c=50, processes=()
)
MINE, FOREIGN, UNKNOWN = GpuProcess(pid=1, ours=True), GpuProcess(pid=2, ours=False), GpuProcess(pid=3)


def at(seconds: float, *gpus: Gpu, working: bool = False, local: datetime = MONDAY_NOON) -> Now:
    return Now(GpuReport(outcome=Outcome.OK, gpus=gpus or (GPU,)), working, local, seconds)


def hot(celsius: float | None) -> Gpu:
    return replace(GPU, temperature_c=celsius)


def kept_out(pauses: tuple[Pause, ...]) -> list[Limit]:
    return [pause.limit for pause in pauses]


def test_without_limits_nothing_keeps_public_jobs_out() -> None:
    assert Limits(OwnersLimits()).judge(at(0, hot(119), replace(GPU, processes=(FOREIGN,)))) == ()


def test_outside_its_hours_a_schedule_keeps_them_out_and_says_until_when() -> None:
    limits = Limits(OwnersLimits(schedule=("mon-fri 18:00-08:00",)))
    (pause,) = limits.judge(at(0))
    assert pause == Pause(Limit.SCHEDULE, "public jobs are let in again on mon 18:00")
    assert limits.judge(at(1, local=MONDAY_NOON.replace(hour=18))) == ()


def test_a_schedule_opens_at_once_and_closes_at_once() -> None:
    limits = Limits(OwnersLimits(schedule=("mon 12:00-13:00",), resume_after_seconds=600))
    hours = [limits.judge(at(n, local=MONDAY_NOON.replace(hour=11 + n))) == () for n in range(3)]
    assert hours == [False, True, False]


def test_the_hottest_gpu_counts_and_is_named_with_the_figures() -> None:
    limits = Limits(OwnersLimits(max_temperature_c=80))
    warm = replace(hot(79.5), index=1, uuid="GPU-1")
    assert limits.judge(at(0, GPU, warm)) == ()
    (pause,) = limits.judge(at(1, GPU, replace(warm, temperature_c=80)))
    assert pause == Pause(Limit.TEMPERATURE, "GPU 1 has 80 °C, and the limit is 80 °C")


def test_a_temperature_must_fall_well_below_its_limit_and_stay_there() -> None:
    limits = Limits(OwnersLimits(max_temperature_c=80, resume_after_seconds=60))
    just_cooler, cool = hot(80 - COOLER_C), hot(79 - COOLER_C)
    readings = [(0, hot(81)), (10, just_cooler), (100, cool), (150, just_cooler), (160, cool), (219, cool)]
    assert all(kept_out(limits.judge(at(seconds, gpu))) for seconds, gpu in readings)
    assert limits.judge(at(220, cool)) == ()
    assert limits.judge(at(221, just_cooler)) == ()


def test_a_limit_that_is_over_says_for_how_long_it_is_still_waited() -> None:
    limits = Limits(OwnersLimits(max_temperature_c=80, resume_after_seconds=60))
    limits.judge(at(0, hot(90)))
    (pause,) = limits.judge(at(1, hot(40)))
    assert pause.detail.endswith("let in again after 60 s of that")


def test_without_patience_a_limit_ends_with_its_cause() -> None:
    limits = Limits(OwnersLimits(max_temperature_c=80, resume_after_seconds=0))
    assert kept_out(limits.judge(at(0, hot(90))))
    assert limits.judge(at(1, hot(40))) == ()


def test_a_reading_that_is_missed_changes_nothing() -> None:
    limits = Limits(OwnersLimits(max_temperature_c=80, resume_after_seconds=60))
    assert limits.judge(at(0, hot(50))) == ()
    assert limits.judge(at(1, hot(None))) == ()
    limits.judge(at(2, hot(90)))
    assert kept_out(limits.judge(at(3, hot(None))))


@pytest.mark.parametrize(
    ("settings", "gpu"),
    [
        (OwnersLimits(max_temperature_c=80), hot(None)),
        (OwnersLimits(min_free_memory_mb=1), replace(GPU, memory_used_mb=None)),
        (OwnersLimits(pause_while_in_use=True), replace(GPU, processes=None)),
    ],
)
def test_a_limit_that_nobody_can_watch_keeps_them_out_until_the_first_reading(
    settings: OwnersLimits, gpu: Gpu
) -> None:
    limits = Limits(settings)
    (pause,) = limits.judge(at(0, gpu))
    assert "tell" in pause.detail or "told" in pause.detail
    assert limits.judge(at(1, GPU)) == ()


def test_one_usable_gpu_with_enough_free_memory_is_enough() -> None:
    limits = Limits(OwnersLimits(min_free_memory_mb=8000, resume_after_seconds=0))
    full = replace(GPU, memory_free_mb=7999)
    sick = replace(GPU, uuid="GPU-1", index=1, health=Health.LOST)
    assert limits.judge(at(0, full, GPU)) == ()
    (pause,) = limits.judge(at(1, full, sick))
    assert pause.detail == "7999 MB are free on GPU 0, the most of all, and the limit is 8000 MB"


@pytest.mark.parametrize(
    ("processes", "used"), [((), False), ((MINE,), False), ((MINE, FOREIGN), True), ((UNKNOWN,), True)]
)
def test_a_process_that_no_worker_announced_is_somebody_elses(
    processes: tuple[GpuProcess, ...], *, used: bool
) -> None:
    limits = Limits(OwnersLimits(pause_while_in_use=True))
    assert kept_out(limits.judge(at(0, replace(GPU, processes=processes)))) == [Limit.IN_USE] * used


def test_a_game_is_somebody_elses_use_once_it_has_lasted() -> None:
    limits = Limits(OwnersLimits(pause_while_in_use=True, resume_after_seconds=5))
    game = replace(GPU, utilization_percent=95)
    assert limits.judge(at(0, game)) == ()
    assert limits.judge(at(BUSY_SECONDS - 1, game)) == ()
    (pause,) = limits.judge(at(BUSY_SECONDS, game))
    assert pause.detail == "GPU 0 is in use at 95 %, and no job is in flight"
    idle = replace(GPU, utilization_percent=2)
    assert kept_out(limits.judge(at(BUSY_SECONDS + 1, idle)))
    assert limits.judge(at(BUSY_SECONDS + 6, idle)) == ()


def test_use_that_a_job_or_a_process_of_ours_explains_is_nobody_elses() -> None:
    limits = Limits(OwnersLimits(pause_while_in_use=True))
    busy, ours = (replace(GPU, utilization_percent=95, processes=one) for one in ((), (MINE,)))
    for seconds in range(0, 100, 10):
        assert limits.judge(at(seconds, busy, working=True)) == ()
    for seconds in range(100, 200, 10):
        assert limits.judge(at(seconds, ours)) == ()


def test_where_no_processes_are_told_use_beside_a_job_is_not_known_and_changes_nothing() -> None:
    limits = Limits(OwnersLimits(pause_while_in_use=True))
    untold = replace(GPU, processes=None, utilization_percent=90)
    assert limits.judge(at(0, replace(untold, utilization_percent=1))) == ()
    assert limits.judge(at(10, untold, working=True)) == ()


def test_a_sleeping_gpu_is_in_nobodys_use() -> None:
    asleep = replace(GPU, asleep=True, processes=None, utilization_percent=None)
    assert Limits(OwnersLimits(pause_while_in_use=True)).judge(at(0, asleep)) == ()


def test_all_that_keeps_them_out_is_told_together() -> None:
    limits = Limits(OwnersLimits(schedule=("sun",), max_temperature_c=30, pause_while_in_use=True))
    pauses = limits.judge(at(0, replace(GPU, processes=(FOREIGN,))))
    assert kept_out(pauses) == [Limit.SCHEDULE, Limit.TEMPERATURE, Limit.IN_USE]


def test_a_gpu_that_sleeps_is_cool_and_free_though_it_is_not_asked() -> None:
    limits = Limits(OwnersLimits(max_temperature_c=80, min_free_memory_mb=20000, pause_while_in_use=True))
    sleeping = Gpu(uuid="GPU-0", name="X", index=0, memory_mb=24000, asleep=True)
    assert limits.judge(at(0, sleeping)) == ()
    assert kept_out(limits.judge(at(1, sleeping, replace(hot(90), uuid="GPU-1")))) == [Limit.TEMPERATURE]


def test_a_schedule_needs_nobody_to_watch_the_gpus() -> None:
    limits = Limits(OwnersLimits(schedule=("mon",), max_temperature_c=80, min_free_memory_mb=1), polled=False)
    assert kept_out(limits.judge(at(0))) == [Limit.TEMPERATURE, Limit.FREE_MEMORY]
    assert Limits(OwnersLimits(schedule=("mon",)), polled=False).judge(at(0)) == ()
