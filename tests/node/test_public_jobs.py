import logging
import time
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import pytest

from gpu_agent.node.jobs import Jobs, WorkerProcess
from gpu_agent.node.public_jobs import (
    BUSY_SECONDS,
    COOLER_C,
    Limit,
    Now,
    Pause,
    PublicJobLimits,
    PublicJobs,
    PublicJobsState,
)
from gpu_agent.node.settings import AgentSettings, PublicJobsSettings, load
from gpu_agent.wire.inventory import Gpu, GpuProcess, GpuReport, Health, Outcome


def pool(folder: Path, text: str = "", *, wanted: bool = True) -> PublicJobs:
    path = folder / "agent.toml"
    path.write_text(
        f"accept_public_jobs = {str(wanted).lower()}\n[labels]\nzone = 'a'\n[public_jobs]\n{text}"
    )
    return PublicJobs(load({"registry_url": "ws://h"}, config=path))


def report(celsius: float = 50, percent: float = 0) -> GpuReport:
    gpu = Gpu(uuid="G", name="X", temperature_c=celsius, utilization_percent=percent, processes=())
    return GpuReport(outcome=Outcome.OK, gpus=(gpu,))


def test_a_limit_pauses_and_resumes_public_jobs(tmp_path: Path) -> None:
    public = pool(tmp_path, "max_temperature_c = 80\nresume_after_seconds = 10")
    accepted = [
        public.owner_at(report(celsius), Jobs(), now=now).accept_public_jobs
        for now, celsius in [(0, 50), (1, 90), (2, 50), (12, 50)]
    ]
    assert accepted == [True, False, False, True]


def test_the_rest_of_what_the_owner_states_stays(tmp_path: Path) -> None:
    public = pool(tmp_path, "max_temperature_c = 40")
    assert public.owner_at(report(), Jobs(), now=0).labels == {"zone": "a"}


def test_without_public_jobs_no_limit_is_checked(tmp_path: Path) -> None:
    public = pool(tmp_path, "max_temperature_c = 40", wanted=False)
    assert not public.owner_at(report(), Jobs(), now=0).accept_public_jobs
    assert public.state == PublicJobsState(wanted=False)
    assert not public.state.accepted


def test_jobs_in_flight_explain_the_use_of_a_gpu(tmp_path: Path) -> None:
    public, jobs = pool(tmp_path, "pause_while_in_use = true"), Jobs()
    assert jobs.start("job", WorkerProcess("w"), uid=0, now=1.0) is None
    for now in (0, 30, 60):
        assert public.owner_at(report(percent=99), jobs, now=now).accept_public_jobs
    jobs.finish("job")
    accepted = [public.owner_at(report(percent=99), jobs, now=now).accept_public_jobs for now in (61, 81)]
    assert accepted == [True, False]


@pytest.mark.parametrize(("zone", "open_hour"), [("Etc/GMT-14", 14), ("Etc/GMT+10", 14)])
def test_the_hours_are_those_of_the_owners_time_zone(
    tmp_path: Path, zone: str, open_hour: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    midnight = {"Etc/GMT-14": 0, "Etc/GMT+10": 86400}[zone]  # UTC at which it is 14:00 there
    monkeypatch.setattr("gpu_agent.runtime.schedule.time.time", lambda: float(midnight))
    public = pool(tmp_path, f'schedule = ["{open_hour}:00-{open_hour + 1}:00"]\ntime_zone = "{zone}"')
    assert public.owner_at(report(), Jobs(), now=0).accept_public_jobs


def test_each_change_of_the_pausing_limits_is_logged_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    public = pool(tmp_path, "max_temperature_c = 80\nresume_after_seconds = 0")
    with caplog.at_level(logging.INFO):
        for now, celsius in enumerate([50, 90, 91, 92, 50, 50]):
            public.owner_at(report(celsius), Jobs(), now=now)
    assert [one.message for one in caplog.records] == ["public_jobs_paused", "public_jobs_resumed"]
    assert public.state.pauses == ()
    public.owner_at(report(90), Jobs(), now=9)
    again: PublicJobsState = public.state
    assert [pause.limit for pause in again.pauses] == [Limit.TEMPERATURE]


def _settings(folder: Path, text: str) -> AgentSettings:
    path = folder / "agent.toml"
    path.write_text(text)
    return load({"registry_url": "ws://h"}, config=path)


def test_unchanged_limits_keep_their_readings_over_a_reload(tmp_path: Path) -> None:
    limits = "[public_jobs]\nmax_temperature_c = 80\nresume_after_seconds = 10"
    public = PublicJobs(_settings(tmp_path, f"accept_public_jobs = true\n{limits}"))
    assert not public.owner_at(report(90), Jobs(), now=0).accept_public_jobs
    public.apply(_settings(tmp_path, f"accept_public_jobs = true\nmax_concurrent_jobs = 3\n{limits}"))
    owner = public.owner_at(report(50), Jobs(), now=1)
    assert (owner.accept_public_jobs, owner.max_concurrent_jobs) == (False, 3)


def test_limits_that_a_reload_removes_pause_nothing(tmp_path: Path) -> None:
    public = pool(tmp_path, "max_temperature_c = 80\nresume_after_seconds = 10")
    assert not public.owner_at(report(90), Jobs(), now=0).accept_public_jobs
    public.apply(_settings(tmp_path, "accept_public_jobs = true"))
    assert public.owner_at(report(90), Jobs(), now=1).accept_public_jobs


def test_refusing_public_jobs_takes_effect_at_once(tmp_path: Path) -> None:
    public = pool(tmp_path)
    public.apply(_settings(tmp_path, "accept_public_jobs = false"))
    assert not public.owner_at(report(), Jobs(), now=0).accept_public_jobs
    assert public.state == PublicJobsState(wanted=False)


def test_accepting_public_jobs_again_logs_the_pausing_limits_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    public = pool(tmp_path, "max_temperature_c = 80")
    limits = "[public_jobs]\nmax_temperature_c = 80"
    with caplog.at_level(logging.INFO):
        public.owner_at(report(90), Jobs(), now=0)
        public.apply(_settings(tmp_path, f"accept_public_jobs = false\n{limits}"))
        public.owner_at(report(90), Jobs(), now=1)
        assert public.state == PublicJobsState(wanted=False)
        public.apply(_settings(tmp_path, f"accept_public_jobs = true\n{limits}"))
        public.owner_at(report(90), Jobs(), now=2)
    assert [one.message for one in caplog.records] == ["public_jobs_paused", "public_jobs_paused"]


def test_limits_on_gpus_that_are_not_polled_pause_public_jobs(tmp_path: Path) -> None:
    text = "accept_public_jobs = true\npoll_gpus = false\n[public_jobs]\npause_while_in_use = true"
    public = PublicJobs(_settings(tmp_path, text))
    assert not public.owner_at(report(), Jobs(), now=0).accept_public_jobs
    (pause,) = public.state.pauses
    assert (pause.limit, pause.detail) == (Limit.IN_USE, "the GPUs are not read: poll_gpus is false")


@pytest.mark.skipif(not hasattr(time, "tzset"), reason="the platform has no such call")
def test_a_change_of_the_machines_time_zone_takes_effect(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gpu_agent.runtime.schedule.time.time", lambda: 0.0)
    public = pool(tmp_path, 'schedule = ["14:00-15:00"]')
    accepted = []
    for zone in ("Etc/GMT+2", "Etc/GMT-14", "Etc/GMT+2"):
        monkeypatch.setenv("TZ", zone)
        accepted.append(public.owner_at(report(), Jobs(), now=0).accept_public_jobs)
    monkeypatch.undo()
    time.tzset()
    assert accepted == [False, True, False]


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


def test_without_limits_nothing_pauses_public_jobs() -> None:
    assert (
        PublicJobLimits(PublicJobsSettings()).check(at(0, hot(119), replace(GPU, processes=(FOREIGN,)))) == ()
    )


def test_outside_its_hours_a_schedule_pauses_public_jobs_and_says_until_when() -> None:
    limits = PublicJobLimits(PublicJobsSettings(schedule=("mon-fri 18:00-08:00",)))
    (pause,) = limits.check(at(0))
    assert pause == Pause(Limit.SCHEDULE, "public jobs start again on mon 18:00")
    assert limits.check(at(1, local=MONDAY_NOON.replace(hour=18))) == ()


def test_a_schedule_opens_at_once_and_closes_at_once() -> None:
    limits = PublicJobLimits(PublicJobsSettings(schedule=("mon 12:00-13:00",), resume_after_seconds=600))
    hours = [limits.check(at(n, local=MONDAY_NOON.replace(hour=11 + n))) == () for n in range(3)]
    assert hours == [False, True, False]


def test_the_hottest_gpu_counts_and_is_named_with_the_figures() -> None:
    limits = PublicJobLimits(PublicJobsSettings(max_temperature_c=80))
    warm = replace(hot(79.5), index=1, uuid="GPU-1")
    assert limits.check(at(0, GPU, warm)) == ()
    (pause,) = limits.check(at(1, GPU, replace(warm, temperature_c=80)))
    assert pause == Pause(Limit.TEMPERATURE, "GPU 1 has 80 °C, and the limit is 80 °C")


def test_a_temperature_must_fall_well_below_its_limit_and_stay_there() -> None:
    limits = PublicJobLimits(PublicJobsSettings(max_temperature_c=80, resume_after_seconds=60))
    just_cooler, cool = hot(80 - COOLER_C), hot(79 - COOLER_C)
    readings = [(0, hot(81)), (10, just_cooler), (100, cool), (150, just_cooler), (160, cool), (219, cool)]
    assert all(kept_out(limits.check(at(seconds, gpu))) for seconds, gpu in readings)
    assert limits.check(at(220, cool)) == ()
    assert limits.check(at(221, just_cooler)) == ()


def test_a_limit_that_is_over_says_for_how_long_it_is_still_waited() -> None:
    limits = PublicJobLimits(PublicJobsSettings(max_temperature_c=80, resume_after_seconds=60))
    limits.check(at(0, hot(90)))
    (pause,) = limits.check(at(1, hot(40)))
    assert pause.detail.endswith("start again after 60 s of that")


def test_without_patience_a_limit_ends_with_its_cause() -> None:
    limits = PublicJobLimits(PublicJobsSettings(max_temperature_c=80, resume_after_seconds=0))
    assert kept_out(limits.check(at(0, hot(90))))
    assert limits.check(at(1, hot(40))) == ()


def test_a_reading_that_is_missed_changes_nothing() -> None:
    limits = PublicJobLimits(PublicJobsSettings(max_temperature_c=80, resume_after_seconds=60))
    assert limits.check(at(0, hot(50))) == ()
    assert limits.check(at(1, hot(None))) == ()
    limits.check(at(2, hot(90)))
    assert kept_out(limits.check(at(3, hot(None))))


@pytest.mark.parametrize(
    ("settings", "gpu"),
    [
        (PublicJobsSettings(max_temperature_c=80), hot(None)),
        (PublicJobsSettings(min_free_memory_mb=1), replace(GPU, memory_used_mb=None)),
        (PublicJobsSettings(pause_while_in_use=True), replace(GPU, processes=None)),
    ],
)
def test_a_limit_pauses_public_jobs_until_its_first_reading(settings: PublicJobsSettings, gpu: Gpu) -> None:
    limits = PublicJobLimits(settings)
    (pause,) = limits.check(at(0, gpu))
    assert "no " in pause.detail
    assert limits.check(at(1, GPU)) == ()


def test_one_usable_gpu_with_enough_free_memory_is_enough() -> None:
    limits = PublicJobLimits(PublicJobsSettings(min_free_memory_mb=8000, resume_after_seconds=0))
    full = replace(GPU, memory_free_mb=7999)
    sick = replace(GPU, uuid="GPU-1", index=1, health=Health.LOST)
    assert limits.check(at(0, full, GPU)) == ()
    (pause,) = limits.check(at(1, full, sick))
    assert pause.detail == "7999 MB are free on GPU 0, the most of all, and the limit is 8000 MB"


@pytest.mark.parametrize(
    ("processes", "used"), [((), False), ((MINE,), False), ((MINE, FOREIGN), True), ((UNKNOWN,), True)]
)
def test_a_process_that_no_worker_announced_is_another_users(
    processes: tuple[GpuProcess, ...], *, used: bool
) -> None:
    limits = PublicJobLimits(PublicJobsSettings(pause_while_in_use=True))
    assert kept_out(limits.check(at(0, replace(GPU, processes=processes)))) == [Limit.IN_USE] * used


def test_a_game_is_another_users_use_once_it_has_lasted() -> None:
    limits = PublicJobLimits(PublicJobsSettings(pause_while_in_use=True, resume_after_seconds=5))
    game = replace(GPU, utilization_percent=95)
    assert limits.check(at(0, game)) == ()
    assert limits.check(at(BUSY_SECONDS - 1, game)) == ()
    (pause,) = limits.check(at(BUSY_SECONDS, game))
    assert pause.detail == "GPU 0 is in use at 95 %, and no job is in flight"
    idle = replace(GPU, utilization_percent=2)
    assert kept_out(limits.check(at(BUSY_SECONDS + 1, idle)))
    assert limits.check(at(BUSY_SECONDS + 6, idle)) == ()


def test_use_that_a_job_or_an_own_process_explains_is_no_other_users() -> None:
    limits = PublicJobLimits(PublicJobsSettings(pause_while_in_use=True))
    busy, ours = (replace(GPU, utilization_percent=95, processes=one) for one in ((), (MINE,)))
    for seconds in range(0, 100, 10):
        assert limits.check(at(seconds, busy, working=True)) == ()
    for seconds in range(100, 200, 10):
        assert limits.check(at(seconds, ours)) == ()


def test_without_a_process_list_use_beside_a_job_is_unknown_and_changes_nothing() -> None:
    limits = PublicJobLimits(PublicJobsSettings(pause_while_in_use=True))
    without_processes = replace(GPU, processes=None, utilization_percent=90)
    assert limits.check(at(0, replace(without_processes, utilization_percent=1))) == ()
    assert limits.check(at(10, without_processes, working=True)) == ()


def test_a_sleeping_gpu_is_not_in_use() -> None:
    asleep = replace(GPU, asleep=True, processes=None, utilization_percent=None)
    assert PublicJobLimits(PublicJobsSettings(pause_while_in_use=True)).check(at(0, asleep)) == ()


def test_all_pausing_limits_are_reported_together() -> None:
    limits = PublicJobLimits(
        PublicJobsSettings(schedule=("sun",), max_temperature_c=30, pause_while_in_use=True)
    )
    pauses = limits.check(at(0, replace(GPU, processes=(FOREIGN,))))
    assert kept_out(pauses) == [Limit.SCHEDULE, Limit.TEMPERATURE, Limit.IN_USE]


def test_a_gpu_that_sleeps_is_cool_and_free_though_it_is_not_asked() -> None:
    limits = PublicJobLimits(
        PublicJobsSettings(max_temperature_c=80, min_free_memory_mb=20000, pause_while_in_use=True)
    )
    sleeping = Gpu(uuid="GPU-0", name="X", index=0, memory_mb=24000, asleep=True)
    assert limits.check(at(0, sleeping)) == ()
    assert kept_out(limits.check(at(1, sleeping, replace(hot(90), uuid="GPU-1")))) == [Limit.TEMPERATURE]


def test_a_schedule_needs_no_gpu_reading() -> None:
    limits = PublicJobLimits(
        PublicJobsSettings(schedule=("mon",), max_temperature_c=80, min_free_memory_mb=1), polled=False
    )
    assert kept_out(limits.check(at(0))) == [Limit.TEMPERATURE, Limit.FREE_MEMORY]
    assert PublicJobLimits(PublicJobsSettings(schedule=("mon",)), polled=False).check(at(0)) == ()
