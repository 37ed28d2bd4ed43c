"""The child that checks one GPU, as a real process over a fake libcuda and a made-up sysfs."""

import os
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest

from gpu_agent.probe.checks.judgement import Expected, Result, judge_child
from gpu_agent.probe.checks.machine import check_gpu, real_child
from gpu_agent.probe.checks.process import CheckProcesses, Ended
from gpu_agent.probe.nvml.errors import NOT_SUPPORTED
from gpu_agent.wire.inventory import Gpu, Health, HealthReason
from tests.cuda_fake.control import FakeCuda
from tests.waiting import patience

NAME = f"check-{os.getpid()}"
"""Tests beside this one look for stuck processes by their name."""
BUS = "00000000:1A:00.0"
GPU = Gpu(uuid="GPU-1", name="NVIDIA H100", index=0, memory_mb=81920, pci_bus_id=BUS, processes=())


class Machine:
    """What the child finds: a library, a link, and the processes that were left behind before."""

    def __init__(self, folder: Path) -> None:
        self.cuda = FakeCuda(folder)
        self.sys_dir = folder / "sys"
        self.processes = CheckProcesses(self.cuda.environ(), name=NAME)
        self.link()

    def link(self, *, width: str = "16", speed: str = "32.0 GT/s PCIe") -> None:
        folder = self.sys_dir / "bus" / "pci" / "devices" / "0000:1a:00.0"
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in {
            "current_link_width": width,
            "max_link_width": "16",
            "current_link_speed": speed,
            "max_link_speed": "32.0 GT/s PCIe",
        }.items():
            (folder / name).write_text(f"{text}\n")

    def check(
        self, gpu: Gpu = GPU, *, seconds: float | None = None, copies: bool = True, **expected: float
    ) -> dict[str, Result]:
        wanted = Expected(**expected)  # type: ignore[arg-type]  # numbers, as tests here expect
        run = real_child(self.processes, seconds=seconds or patience(20), sys_dir=self.sys_dir)
        results = check_gpu(
            gpu,
            run=run,
            expected=wanted,
            why_no_copies=None if copies else "not requested",
            stop=threading.Event(),
        )
        return {one.name: one for one in results}


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def test_memory_is_copied_both_ways_and_the_speed_is_reported(machine: Machine) -> None:
    result = machine.check()["memory_bandwidth"]
    assert result.ok
    assert result.scope == "GPU-1"
    assert "GB/s to the GPU" in result.detail


def test_a_slow_copy_fails_only_where_a_least_speed_is_expected(machine: Machine) -> None:
    machine.cuda.state("delay cuMemcpyDtoH_v2 * 100")
    assert machine.check()["memory_bandwidth"].ok
    slow = machine.check(min_bandwidth_gb_s=2.0)["memory_bandwidth"]
    assert not slow.ok
    assert slow.ok is not None
    assert "at least 2 expected" in slow.detail


def test_memory_that_comes_back_changed_fails(machine: Machine) -> None:
    machine.cuda.state("corrupt cuMemcpyHtoD_v2 GPU-1")
    result = machine.check()["memory_bandwidth"]
    assert (result.ok, result.detail) == (False, "the GPU's memory does not hold what was copied to it")


@pytest.mark.parametrize("call", ["cuInit", "cuDeviceGet", "cuDevicePrimaryCtxRetain", "cuMemcpyHtoD_v2"])
def test_a_call_that_fails_fails_the_check_with_the_name_of_the_error(machine: Machine, call: str) -> None:
    machine.cuda.state(f"error {call} * 999")
    result = machine.check()["memory_bandwidth"]
    assert (result.ok, result.detail) == (False, f"{call} failed: CUDA_ERROR_UNKNOWN")


@pytest.mark.parametrize("code", [2, 46])
def test_a_gpu_that_another_process_has_taken_is_no_failed_one(machine: Machine, code: int) -> None:
    machine.cuda.state(f"error cuMemAlloc_v2 * {code}")
    result = machine.check()["memory_bandwidth"]
    assert result.ok is None
    assert "another process has the GPU" in result.detail


def test_words_of_the_library_are_no_part_of_the_answer(machine: Machine) -> None:
    machine.cuda.state("complain cuMemFree_v2 GPU-1")
    assert machine.check()["memory_bandwidth"].ok


def test_without_libcuda_the_link_is_checked_and_the_copies_are_not(machine: Machine) -> None:
    machine.processes = CheckProcesses({**os.environ, "LD_LIBRARY_PATH": "/nowhere"})
    results = machine.check()
    assert results["pcie_link"].ok
    if Path("/usr/lib/x86_64-linux-gnu/libcuda.so.1").exists():
        pytest.skip("this machine has a libcuda of its own")
    assert results["memory_bandwidth"].ok is None
    assert "there is no libcuda.so.1" in results["memory_bandwidth"].detail


@pytest.mark.parametrize(
    ("line", "words"), [("crash cuInit *", "signal 11"), ("exit cuInit * 7", "exit status 7")]
)
def test_a_library_that_ends_its_process_fails_that_gpu_alone(
    machine: Machine, line: str, words: str
) -> None:
    machine.cuda.state(line.replace("*", "GPU-1"))
    results = machine.check()
    link, result = results["pcie_link"], results["memory_bandwidth"]
    assert result.ok is False
    assert words in result.detail
    assert (link.ok, link.detail) == (result.ok, result.detail)
    other = Gpu(uuid="GPU-2", name="NVIDIA H100", index=1, memory_mb=81920, processes=())
    assert machine.check(other)["memory_bandwidth"].ok


def test_a_process_that_is_killed_for_want_of_memory_says_nothing_about_the_gpu() -> None:
    killed = Ended(returncode=-9, output="")
    results = list(judge_child(GPU, killed, Expected()))
    assert [one.name for one in results] == ["pcie_link", "memory_bandwidth"]
    assert all((one.ok, "signal 9" in one.detail) == (None, True) for one in results)


def test_a_call_that_hangs_fails_the_check_is_left_behind_and_keeps_others_from_starting(
    machine: Machine,
) -> None:
    machine.cuda.state("hang cuInit GPU-1")
    began = time.monotonic()
    first = machine.check(seconds=0.5)
    result = first["memory_bandwidth"]
    assert (first["pcie_link"].ok, first["pcie_link"].detail) == (result.ok, result.detail)
    assert time.monotonic() - began < patience(10)
    assert result.ok is False
    assert "no end within 0.5 s" in result.detail
    stuck = machine.processes.left_behind_pid
    assert stuck is not None
    assert Path(f"/proc/{stuck}/comm").read_text().strip() == NAME
    second = machine.check()["memory_bandwidth"]
    assert second.ok is None
    assert f"an earlier check, process {stuck}, was asked to end" in second.detail
    elsewhere = CheckProcesses(machine.cuda.environ(), name=NAME)
    refused = elsewhere.run(("true",), deadline_seconds=5, stop=threading.Event())
    assert f"process {stuck}" in getattr(refused, "why", "")
    machine.cuda.state()
    deadline = time.monotonic() + patience(10)
    while machine.processes.left_behind_pid is not None:
        assert time.monotonic() < deadline
        threading.Event().wait(0.02)
    assert machine.check()["memory_bandwidth"].ok


def test_a_narrow_link_fails_and_a_slow_one_fails_only_under_load(machine: Machine) -> None:
    machine.link(width="4")
    assert machine.check(copies=False)["pcie_link"].ok is False
    machine.link(speed="2.5 GT/s PCIe")
    idle = machine.check(copies=False)["pcie_link"]
    assert idle.ok
    assert "counts for nothing" in idle.detail
    loaded = machine.check()["pcie_link"]
    assert (loaded.ok, loaded.detail) == (False, "x16 of x16, 2.5 of 32 GT/s")
    assert machine.check(pcie_speed_gts=2.5)["pcie_link"].ok
    machine.link(width="8")
    assert machine.check(pcie_width=8)["pcie_link"].ok


def test_the_check_of_a_link_passes_where_the_kernel_knows_none_and_the_owner_expects_none(
    machine: Machine,
) -> None:
    unknown = Gpu(uuid="GPU-9", name="NVIDIA H100", index=0, pci_bus_id="00000000:FF:00.0", processes=())
    nameless = Gpu(uuid="GPU-9", name="NVIDIA H100", index=0, pci_bus_id="../../etc", processes=())
    for gpu in (unknown, nameless):
        result = machine.check(gpu)["pcie_link"]
        assert (result.ok, result.detail.startswith("does not apply: ")) == (True, True)
        assert machine.check(gpu, pcie_width=16)["pcie_link"].ok is None
    machine.link(width="0")
    assert machine.check()["pcie_link"].ok is None


@pytest.mark.parametrize(
    "why", ["not supported by this GPU and driver", "the installed driver is too old to say"]
)
def test_a_reading_that_the_driver_never_gives_passes_and_one_that_failed_has_no_result(
    machine: Machine, why: str
) -> None:
    fields = ("recovery_action", "compute_mode", "fabric_faults")
    results = machine.check(replace(GPU, unknowns=dict.fromkeys(fields, why)), copies=False)
    for name in ("recovery_action", "compute_mode", "fabric"):
        assert (results[name].ok, results[name].detail) == (True, f"does not apply: {why}")
    late = machine.check(replace(GPU, unknowns=dict.fromkeys(fields, "NVML answered: Timeout")), copies=False)
    for name in ("recovery_action", "compute_mode", "fabric"):
        assert (late[name].ok, late[name].detail) == (None, "NVML answered: Timeout")


def test_checks_of_what_nvidias_driver_says_do_not_apply_to_other_gpus(machine: Machine) -> None:
    amd = replace(GPU, name="Instinct", vendor="amd", unknowns={"compute_mode": "a mode of NVIDIA's"})
    results = machine.check(amd)
    assert results["compute_mode"].detail == "does not apply: a mode of NVIDIA's"
    assert all(one.ok for one in results.values())


def test_a_gpu_that_sleeps_is_woken_by_the_copies_alone(machine: Machine) -> None:
    asleep = replace(GPU, asleep=True, processes=None)
    machine.cuda.state("error cuInit * 999")
    results = machine.check(asleep, copies=False)
    for name in ("pcie_link", "memory_bandwidth"):
        assert (results[name].ok, results[name].detail) == (None, "the GPU sleeps, and not requested")
    assert machine.check(asleep)["memory_bandwidth"].ok is False
    machine.cuda.state()
    results = machine.check(asleep)
    assert (results["pcie_link"].ok, results["memory_bandwidth"].ok) == (True, True)
    assert results["recovery_action"].detail == "does not apply while the GPU sleeps"
    amd = machine.check(replace(asleep, vendor="amd"))
    assert {one.detail for one in amd.values()} == {"does not apply while the GPU sleeps"}


def test_a_lost_gpu_fails_without_a_process_and_its_fault_is_named(machine: Machine) -> None:
    machine.cuda.state("hang cuInit *")
    lost = Gpu(
        uuid="GPU-1",
        name="NVIDIA H100",
        index=0,
        health=Health.LOST,
        reasons=(HealthReason(code="xid_79", detail="it fell off the bus"),),
    )
    results = machine.check(lost)
    for name in ("pcie_link", "memory_bandwidth"):
        assert (results[name].ok, results[name].detail) == (False, "the GPU is lost: xid_79")


@pytest.mark.parametrize(
    ("gpu", "ok", "why"),
    [
        (
            Gpu(uuid="GPU-1", name="Instinct", vendor="amd", processes=()),
            True,
            "does not apply: only GPUs of",
        ),
        (Gpu(uuid="GPU-1", name="H100", mig_enabled=True, processes=()), True, "does not apply: its MIG dev"),
        (Gpu(uuid="GPU-1", name="H100", processes=None), None, "it is not known"),
        (
            Gpu(uuid="GPU-1", name="H100", processes=None, unknowns={"processes": NOT_SUPPORTED}),
            True,
            "does not apply: the driver does not list its processes",
        ),
    ],
)
def test_memory_is_not_copied_where_that_says_nothing_or_could_disturb(
    machine: Machine, gpu: Gpu, *, ok: bool | None, why: str
) -> None:
    machine.cuda.state("error cuInit * 999")
    result = machine.check(gpu)["memory_bandwidth"]
    assert (result.ok, result.detail.startswith(why)) == (ok, True)
