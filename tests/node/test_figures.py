import os

import pytest

from gpu_agent.node.figures import compute_processes, moment_of
from gpu_agent.wire.inventory import Gpu, GpuProcess, GpuReport, Host, Inventory, Outcome


def _inventory(*gpus: Gpu, **host: object) -> Inventory:
    facts: dict[str, object] = {
        "cpu_logical_cores": 8,
        "cpu_physical_cores": 4,
        "memory_total_mb": 1000,
        "memory_used_mb": 250,
        "memory_available_mb": 700,
        "platform": "linux",
        "cpu_percent": 12.5,
    }
    return Inventory(
        host=Host(**(facts | host)),  # type: ignore[arg-type]  # facts by name
        gpu=GpuReport(outcome=Outcome.OK, gpus=gpus),
    )


def test_the_host_s_load_and_memory_are_told() -> None:
    moment = moment_of(_inventory(), job_ids=None, timestamp_ms=1, probe_age_seconds=0.12345)
    assert (moment.cpu_percent, moment.mem_percent) == (12.5, 25.0)
    assert (moment.timestamp_ms, moment.probe_age_seconds, moment.running_job_ids) == (1, 0.123, None)


@pytest.mark.parametrize(("load", "percent"), [(2.0, 25.0), (80.0, 100.0), (0.0, 0.0)])
def test_without_a_measured_cpu_load_the_load_average_stands_in(load: float | None, percent: float) -> None:
    inventory = _inventory(cpu_percent=None, load_1m=load)
    assert moment_of(inventory, job_ids=None, timestamp_ms=1, probe_age_seconds=None).cpu_percent == percent


def test_memory_in_use_follows_from_what_is_available_when_it_is_not_told() -> None:
    inventory = _inventory(memory_used_mb=None)
    assert moment_of(inventory, job_ids=None, timestamp_ms=1, probe_age_seconds=None).mem_percent == 30.0


def test_a_load_that_nobody_can_tell_is_no_idleness() -> None:
    inventory = _inventory(cpu_percent=None, load_1m=None)
    assert moment_of(inventory, job_ids=None, timestamp_ms=1, probe_age_seconds=None).cpu_percent == 100.0


def test_the_machine_s_available_memory_is_no_share_of_a_smaller_control_group() -> None:
    inventory = _inventory(memory_used_mb=None, memory_available_mb=6000, machine_memory_total_mb=8000)
    assert moment_of(inventory, job_ids=None, timestamp_ms=1, probe_age_seconds=None).mem_percent == 25.0


def _percent_without_an_answer_of_the_host() -> float:
    inventory = _inventory(memory_used_mb=None, memory_available_mb=None)
    return moment_of(inventory, job_ids=None, timestamp_ms=1, probe_age_seconds=None).mem_percent


@pytest.mark.skipif("SC_AVPHYS_PAGES" not in getattr(os, "sysconf_names", {}), reason="no such system call")
def test_memory_that_the_host_does_not_tell_is_asked_of_the_kernel() -> None:
    assert 0 < _percent_without_an_answer_of_the_host() < 100


@pytest.mark.parametrize("free", [-1, 1001])
def test_memory_that_nobody_can_tell_counts_as_full(monkeypatch: pytest.MonkeyPatch, free: int) -> None:
    answers = {"SC_PHYS_PAGES": 1000, "SC_AVPHYS_PAGES": free}
    monkeypatch.setattr(os, "sysconf", answers.__getitem__, raising=False)
    assert _percent_without_an_answer_of_the_host() == 100.0


def test_memory_counts_as_full_where_the_kernel_cannot_be_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "sysconf", raising=False)
    assert _percent_without_an_answer_of_the_host() == 100.0


def test_a_process_on_several_gpus_is_one_job() -> None:
    both = GpuProcess(pid=1)
    gpus = (
        Gpu(uuid="a", name="A", processes=(both, GpuProcess(pid=2))),
        Gpu(uuid="b", name="B", processes=(both,)),
        Gpu(uuid="c", name="C", processes=None),
    )
    assert compute_processes(_inventory(*gpus).gpu) == 2


def test_where_no_gpu_tells_its_processes_the_number_of_jobs_is_unknown() -> None:
    silent = _inventory(Gpu(uuid="a", name="A", processes=None), Gpu(uuid="b", name="B", processes=None))
    assert compute_processes(silent.gpu) is None
    assert moment_of(silent, job_ids=None, timestamp_ms=1, probe_age_seconds=None).running_jobs is None
    told = moment_of(silent, job_ids=("x",), timestamp_ms=1, probe_age_seconds=None)
    assert told.running_jobs == 1
    assert compute_processes(_inventory(Gpu(uuid="a", name="A", processes=())).gpu) == 0


def test_announced_jobs_are_counted_and_named_and_gpu_processes_are_a_guess_without_ids() -> None:
    busy = _inventory(Gpu(uuid="a", name="A", processes=(GpuProcess(pid=1), GpuProcess(pid=2))))
    told = moment_of(busy, job_ids=("x",), timestamp_ms=1, probe_age_seconds=None)
    assert (told.running_jobs, told.running_job_ids) == (1, ("x",))
    idle = moment_of(busy, job_ids=(), timestamp_ms=1, probe_age_seconds=None)
    assert (idle.running_jobs, idle.running_job_ids) == (0, ())
    guessed = moment_of(busy, job_ids=None, timestamp_ms=1, probe_age_seconds=None)
    assert (guessed.running_jobs, guessed.running_job_ids) == (2, None)
