import os
from dataclasses import replace

import pytest

from gpu_agent.node.report import FaultDetector, count_compute_processes, measure
from gpu_agent.probe.health.reasons import REASONS, health_from, reason
from gpu_agent.session.types import FaultFound
from gpu_agent.wire.inventory import Gpu, GpuProcess, GpuReport, Host, Inventory, Outcome
from gpu_agent.wire.messages import NodeError


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


def test_the_hosts_load_and_memory_are_reported() -> None:
    moment = measure(_inventory(), job_ids=None, timestamp_ms=1, probe_age_seconds=0.12345)
    assert (moment.cpu_percent, moment.mem_percent) == (12.5, 25.0)
    assert (moment.timestamp_ms, moment.probe_age_seconds, moment.running_job_ids) == (1, 0.123, None)


@pytest.mark.parametrize(("load", "percent"), [(2.0, 25.0), (80.0, 100.0), (0.0, 0.0)])
def test_without_a_measured_cpu_load_the_load_average_is_used(load: float | None, percent: float) -> None:
    inventory = _inventory(cpu_percent=None, load_1m=load)
    assert measure(inventory, job_ids=None, timestamp_ms=1, probe_age_seconds=None).cpu_percent == percent


def test_memory_use_follows_from_the_available_memory_where_it_is_unknown() -> None:
    inventory = _inventory(memory_used_mb=None)
    assert measure(inventory, job_ids=None, timestamp_ms=1, probe_age_seconds=None).mem_percent == 30.0


def test_of_an_unknown_memory_the_kernel_is_asked_for_the_share(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = {"SC_PHYS_PAGES": 1000, "SC_AVPHYS_PAGES": 400}
    monkeypatch.setattr(os, "sysconf", answers.__getitem__, raising=False)
    inventory = _inventory(memory_total_mb=None, memory_used_mb=10, machine_memory_total_mb=None)
    assert measure(inventory, job_ids=None, timestamp_ms=1, probe_age_seconds=None).mem_percent == 60.0


def test_an_unknown_load_counts_as_full() -> None:
    inventory = _inventory(cpu_percent=None, load_1m=None)
    assert measure(inventory, job_ids=None, timestamp_ms=1, probe_age_seconds=None).cpu_percent == 100.0


def test_the_machine_s_available_memory_is_no_share_of_a_smaller_control_group() -> None:
    inventory = _inventory(memory_used_mb=None, memory_available_mb=6000, machine_memory_total_mb=8000)
    assert measure(inventory, job_ids=None, timestamp_ms=1, probe_age_seconds=None).mem_percent == 25.0


def _percent_without_an_answer_of_the_host() -> float:
    inventory = _inventory(memory_used_mb=None, memory_available_mb=None)
    return measure(inventory, job_ids=None, timestamp_ms=1, probe_age_seconds=None).mem_percent


@pytest.mark.skipif("SC_AVPHYS_PAGES" not in getattr(os, "sysconf_names", {}), reason="no such system call")
def test_memory_that_the_host_does_not_tell_is_asked_of_the_kernel() -> None:
    assert 0 < _percent_without_an_answer_of_the_host() < 100


@pytest.mark.parametrize("free", [-1, 1001])
def test_unknown_memory_counts_as_full(monkeypatch: pytest.MonkeyPatch, free: int) -> None:
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
    assert count_compute_processes(_inventory(*gpus).gpu) == 2


def test_without_process_lists_the_number_of_jobs_is_unknown() -> None:
    silent = _inventory(Gpu(uuid="a", name="A", processes=None), Gpu(uuid="b", name="B", processes=None))
    assert count_compute_processes(silent.gpu) is None
    assert measure(silent, job_ids=None, timestamp_ms=1, probe_age_seconds=None).running_jobs is None
    figures = measure(silent, job_ids=("x",), timestamp_ms=1, probe_age_seconds=None)
    assert figures.running_jobs == 1
    assert count_compute_processes(_inventory(Gpu(uuid="a", name="A", processes=())).gpu) == 0


def test_announced_jobs_are_counted_and_named_and_gpu_processes_are_a_guess_without_ids() -> None:
    busy = _inventory(Gpu(uuid="a", name="A", processes=(GpuProcess(pid=1), GpuProcess(pid=2))))
    figures = measure(busy, job_ids=("x",), timestamp_ms=1, probe_age_seconds=None)
    assert (figures.running_jobs, figures.running_job_ids) == (1, ("x",))
    idle = measure(busy, job_ids=(), timestamp_ms=1, probe_age_seconds=None)
    assert (idle.running_jobs, idle.running_job_ids) == (0, ())
    guessed = measure(busy, job_ids=None, timestamp_ms=1, probe_age_seconds=None)
    assert (guessed.running_jobs, guessed.running_job_ids) == (2, None)


def gpu(index: int, *codes: str, parent_uuid: str | None = None) -> Gpu:
    reasons = tuple(reason(code) for code in codes)
    return Gpu(
        uuid=f"GPU-{index}",
        name="H100",
        index=index,
        parent_uuid=parent_uuid,
        health=health_from(reasons),
        reasons=reasons,
    )


def report(*gpus: Gpu, outcome: Outcome = Outcome.OK) -> GpuReport:
    return GpuReport(outcome=outcome, gpus=gpus)


def test_a_machine_that_is_well_has_no_faults() -> None:
    assert FaultDetector().found_in(report(gpu(0), gpu(1, "row_remap_pending"))) == ()


def test_a_lost_gpu_is_one_fault_that_says_which_why_and_what_to_do() -> None:
    faults = FaultDetector()
    (fault,) = faults.found_in(report(gpu(0), gpu(1, "gpu_lost", "xid_79")))
    assert fault.code == "GPU_LOST"
    for words in ("GPU 1 (GPU-1)", "fallen off the bus", "Next: drain the node, then reboot it; if"):
        assert words in fault.message
    assert faults.found_in(report(gpu(0), gpu(1, "xid_79"))) == ()


def test_a_gpu_that_is_lost_again_is_a_fault_again() -> None:
    faults = FaultDetector()
    faults.found_in(report(gpu(0, "gpu_lost")))
    assert faults.found_in(report(gpu(0))) == ()
    assert len(faults.found_in(report(gpu(0, "gpu_lost")))) == 1


def test_gpus_lost_together_are_one_fault_of_bounded_length() -> None:
    (fault,) = FaultDetector().found_in(report(*[gpu(index, "gpu_lost") for index in range(64)]))
    assert "GPU 3 (GPU-3)" in fault.message
    assert "And 60 more." in fault.message
    assert len(fault.message) < 1024


def test_a_fault_fits_into_its_message_however_much_is_wrong_and_however_long_the_driver_speaks() -> None:
    everything = [gpu(index, *REASONS) for index in range(4)]
    (lost, _) = FaultDetector().found_in(report(*everything))
    broken = reason("driver_broken", detail="word " * 2000)
    (unread,) = FaultDetector().found_in(
        report(replace(gpu(0), reasons=(broken,)), outcome=Outcome.DRIVER_BROKEN)
    )
    for fault in (lost, unread):
        assert NodeError(code=fault.code, message=fault.message).message.endswith("…")


def test_the_slices_of_a_lost_gpu_are_no_faults_of_their_own() -> None:
    (fault,) = FaultDetector().found_in(report(gpu(0, "gpu_lost"), gpu(9, "gpu_lost", parent_uuid="GPU-0")))
    assert "GPU-9" not in fault.message


def test_an_unreadable_driver_is_one_fault_while_it_lasts() -> None:
    faults = FaultDetector()
    hung = report(gpu(0, "nvml_hung"), gpu(1, "nvml_hung"), outcome=Outcome.DRIVER_BROKEN)
    assert faults.found_in(hung) == (FaultFound("NVML_HUNG", reason("nvml_hung").detail),)
    assert faults.found_in(hung) == ()
    assert faults.found_in(report(gpu(0), gpu(1))) == ()
    assert len(faults.found_in(hung)) == 1
