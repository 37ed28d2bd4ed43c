import logging
import time
from pathlib import Path

import pytest

from gpu_agent.node.jobs import Jobs, Worker
from gpu_agent.node.limits import Limit
from gpu_agent.node.public_pool import PublicPool, Standing
from gpu_agent.node.settings import AgentSettings, load
from gpu_agent.wire.inventory import Gpu, GpuReport, Outcome


def pool(folder: Path, text: str = "", *, wanted: bool = True) -> PublicPool:
    path = folder / "agent.toml"
    path.write_text(
        f"accept_public_jobs = {str(wanted).lower()}\n[labels]\nzone = 'a'\n[public_jobs]\n{text}"
    )
    return PublicPool(load({"registry_url": "ws://h"}, config=path))


def report(celsius: float = 50, percent: float = 0) -> GpuReport:
    gpu = Gpu(uuid="G", name="X", temperature_c=celsius, utilization_percent=percent, processes=())
    return GpuReport(outcome=Outcome.OK, gpus=(gpu,))


def test_a_limit_turns_the_owners_word_off_and_on_again(tmp_path: Path) -> None:
    public = pool(tmp_path, "max_temperature_c = 80\nresume_after_seconds = 10")
    told = [
        public.owner_at(report(celsius), Jobs(), now=now).accept_public_jobs
        for now, celsius in [(0, 50), (1, 90), (2, 50), (12, 50)]
    ]
    assert told == [True, False, False, True]


def test_the_rest_of_what_the_owner_states_stays(tmp_path: Path) -> None:
    public = pool(tmp_path, "max_temperature_c = 40")
    assert public.owner_at(report(), Jobs(), now=0).labels == {"zone": "a"}


def test_who_wants_no_public_jobs_is_asked_no_limits(tmp_path: Path) -> None:
    public = pool(tmp_path, "max_temperature_c = 40", wanted=False)
    assert not public.owner_at(report(), Jobs(), now=0).accept_public_jobs
    assert public.standing == Standing(wanted=False)
    assert not public.standing.accepted


def test_jobs_in_flight_explain_the_use_of_a_gpu(tmp_path: Path) -> None:
    public, jobs = pool(tmp_path, "pause_while_in_use = true"), Jobs()
    assert jobs.announced("job", Worker("w")) is None
    for now in (0, 30, 60):
        assert public.owner_at(report(percent=99), jobs, now=now).accept_public_jobs
    jobs.finished("job")
    told = [public.owner_at(report(percent=99), jobs, now=now).accept_public_jobs for now in (61, 81)]
    assert told == [True, False]


@pytest.mark.parametrize(("zone", "open_hour"), [("Etc/GMT-14", 14), ("Etc/GMT+10", 14)])
def test_the_hours_are_those_of_the_owners_time_zone(
    tmp_path: Path, zone: str, open_hour: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    midnight = {"Etc/GMT-14": 0, "Etc/GMT+10": 86400}[zone]  # UTC at which it is 14:00 there
    monkeypatch.setattr("gpu_agent.node.public_pool.time.time", lambda: float(midnight))
    public = pool(tmp_path, f'schedule = ["{open_hour}:00-{open_hour + 1}:00"]\ntime_zone = "{zone}"')
    assert public.owner_at(report(), Jobs(), now=0).accept_public_jobs


def test_each_change_of_what_keeps_them_out_is_logged_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    public = pool(tmp_path, "max_temperature_c = 80\nresume_after_seconds = 0")
    with caplog.at_level(logging.INFO):
        for now, celsius in enumerate([50, 90, 91, 92, 50, 50]):
            public.owner_at(report(celsius), Jobs(), now=now)
    assert [one.message for one in caplog.records] == ["public_jobs_paused", "public_jobs_resumed"]
    assert public.standing.pauses == ()
    public.owner_at(report(90), Jobs(), now=9)
    again: Standing = public.standing
    assert [pause.limit for pause in again.pauses] == [Limit.TEMPERATURE]


def _settings(folder: Path, text: str) -> AgentSettings:
    path = folder / "agent.toml"
    path.write_text(text)
    return load({"registry_url": "ws://h"}, config=path)


def test_limits_that_a_reload_leaves_as_they_are_remember_what_they_saw(tmp_path: Path) -> None:
    limits = "[public_jobs]\nmax_temperature_c = 80\nresume_after_seconds = 10"
    public = PublicPool(_settings(tmp_path, f"accept_public_jobs = true\n{limits}"))
    assert not public.owner_at(report(90), Jobs(), now=0).accept_public_jobs
    public.take_over(_settings(tmp_path, f"accept_public_jobs = true\nmax_concurrent_jobs = 3\n{limits}"))
    owner = public.owner_at(report(50), Jobs(), now=1)
    assert (owner.accept_public_jobs, owner.max_concurrent_jobs) == (False, 3)


def test_limits_that_a_reload_lifts_keep_nobody_out(tmp_path: Path) -> None:
    public = pool(tmp_path, "max_temperature_c = 80\nresume_after_seconds = 10")
    assert not public.owner_at(report(90), Jobs(), now=0).accept_public_jobs
    public.take_over(_settings(tmp_path, "accept_public_jobs = true"))
    assert public.owner_at(report(90), Jobs(), now=1).accept_public_jobs


def test_an_owner_who_wants_no_public_jobs_any_more_gets_none(tmp_path: Path) -> None:
    public = pool(tmp_path)
    public.take_over(_settings(tmp_path, "accept_public_jobs = false"))
    assert not public.owner_at(report(), Jobs(), now=0).accept_public_jobs
    assert public.standing == Standing(wanted=False)


def test_who_wanted_no_public_jobs_for_a_while_is_told_anew_what_keeps_them_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    public = pool(tmp_path, "max_temperature_c = 80")
    limits = "[public_jobs]\nmax_temperature_c = 80"
    with caplog.at_level(logging.INFO):
        public.owner_at(report(90), Jobs(), now=0)
        public.take_over(_settings(tmp_path, f"accept_public_jobs = false\n{limits}"))
        public.owner_at(report(90), Jobs(), now=1)
        assert public.standing == Standing(wanted=False)
        public.take_over(_settings(tmp_path, f"accept_public_jobs = true\n{limits}"))
        public.owner_at(report(90), Jobs(), now=2)
    assert [one.message for one in caplog.records] == ["public_jobs_paused", "public_jobs_paused"]


def test_limits_that_nobody_watches_since_gpus_are_not_polled_keep_public_jobs_out(tmp_path: Path) -> None:
    text = "accept_public_jobs = true\npoll_gpus = false\n[public_jobs]\npause_while_in_use = true"
    public = PublicPool(_settings(tmp_path, text))
    assert not public.owner_at(report(), Jobs(), now=0).accept_public_jobs
    (pause,) = public.standing.pauses
    assert (pause.limit, pause.detail) == (Limit.IN_USE, "nobody watches the GPUs: poll_gpus is false")


@pytest.mark.skipif(not hasattr(time, "tzset"), reason="the platform has no such call")
def test_the_machines_time_zone_is_followed_when_it_is_set_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gpu_agent.node.public_pool.time.time", lambda: 0.0)
    public = pool(tmp_path, 'schedule = ["14:00-15:00"]')
    told = []
    for zone in ("Etc/GMT+2", "Etc/GMT-14", "Etc/GMT+2"):
        monkeypatch.setenv("TZ", zone)
        told.append(public.owner_at(report(), Jobs(), now=0).accept_public_jobs)
    monkeypatch.undo()
    time.tzset()
    assert told == [False, True, False]
