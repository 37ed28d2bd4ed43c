from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from gpu_agent.cli.agent.doctor_machine import (
    cache_check,
    collector_check,
    container_check,
    driver_checks,
    gpu_check,
    model_checks,
)
from gpu_agent.probe.nvml.driver_files import DriverFiles
from gpu_agent.runtime.check_results import CheckResult, CheckStatus
from gpu_agent.wire.inventory import (
    Gpu,
    GpuReport,
    Health,
    HealthReason,
    Inventory,
    Model,
    ModelStatus,
    Outcome,
)
from tests.cli.hosts import HOST

L4 = Gpu(index=0, uuid="GPU-1", name="NVIDIA L4", memory_mb=23034)
GOOD = GpuReport(outcome=Outcome.OK, gpus=(L4,), driver_version="570.1", cuda_version="12.8", took_ms=41.6)
ABSENT = GpuReport(outcome=Outcome.NO_DRIVER, detail="No NVIDIA driver was found: install it.")
BROKEN = GpuReport(outcome=Outcome.DRIVER_BROKEN, detail="The module is not loaded: run `modprobe nvidia`.")
FILES = DriverFiles(
    nvml_library=Path("/usr/lib64/libnvidia-ml.so.1"),
    nvml_library_version="570.1",
    module_version="570.1",
    nodes=("nvidia0", "nvidiactl"),
    wsl=False,
)
NOTHING = DriverFiles(nvml_library=None, nvml_library_version=None, module_version=None, nodes=(), wsl=False)


def driver(
    files: DriverFiles, report: GpuReport, troubles: Sequence[str] = (), *, simulated: bool = False
) -> dict[str, CheckResult]:
    inventory = Inventory(host=HOST, gpu=report, simulated=simulated)
    findings = list(driver_checks(files, inventory, troubles))
    assert [one.check for one in findings] == ["driver library", "kernel module", "device nodes", "NVML"]
    assert all(one.fix for one in findings if one.verdict in (CheckStatus.WARN, CheckStatus.FAIL))
    return {one.check: one for one in findings}


def results(found: dict[str, CheckResult]) -> list[CheckStatus]:
    return [one.verdict for one in found.values()]


def test_a_driver_that_works_is_well_at_every_step() -> None:
    found = driver(FILES, GOOD)
    assert results(found) == [CheckStatus.OK] * 4
    assert found["driver library"].detail == "/usr/lib64/libnvidia-ml.so.1, version 570.1"
    assert found["NVML"].detail == "answers in 42 ms: 1 GPU, driver 570.1, CUDA 12.8"


def test_a_machine_without_a_driver_fails_once_and_not_at_every_step() -> None:
    found = driver(NOTHING, ABSENT)
    assert results(found) == [CheckStatus.FAIL, CheckStatus.SKIPPED, CheckStatus.SKIPPED, CheckStatus.FAIL]
    assert found["NVML"] == CheckResult("NVML", CheckStatus.FAIL, "No NVIDIA driver was found", "install it")


def test_where_all_gpus_are_of_another_vendor_nothing_of_nvidias_is_missed() -> None:
    radeon = replace(L4, uuid="AMD-1", name="Radeon", vendor="amd")
    found = driver(NOTHING, GpuReport(outcome=Outcome.OK, gpus=(radeon,)))
    assert results(found) == [CheckStatus.SKIPPED] * 4
    assert "the GPUs are of other vendors" in found["NVML"].detail


def test_a_broken_nvidia_driver_fails_also_beside_gpus_of_another_vendor() -> None:
    radeon = replace(L4, uuid="AMD-1", name="Radeon", vendor="amd")
    found = driver(FILES, replace(BROKEN, outcome=Outcome.OK, gpus=(radeon,)))
    assert found["NVML"] == CheckResult(
        "NVML", CheckStatus.FAIL, "The module is not loaded", "run `modprobe nvidia`"
    )


def test_a_collector_that_failed_is_a_warning_with_its_fix() -> None:
    report = replace(
        GOOD, detail="The collector 'x' failed (OSError: no): remove the package that brings it."
    )
    assert collector_check(Inventory(host=HOST, gpu=report)) == CheckResult(
        "collectors",
        CheckStatus.WARN,
        "The collector 'x' failed (OSError: no)",
        "remove the package that brings it",
    )
    assert collector_check(Inventory(host=HOST, gpu=GOOD)).verdict is CheckStatus.OK


def test_a_library_that_only_the_loader_finds_is_well() -> None:
    assert results(driver(NOTHING, GOOD))[:3] == [CheckStatus.OK, CheckStatus.SKIPPED, CheckStatus.SKIPPED]


def test_a_driver_that_was_updated_under_its_module_says_reboot() -> None:
    finding = driver(replace(FILES, nvml_library_version="575.2"), BROKEN)["kernel module"]
    assert finding.detail == "version 570.1, and the library's is 575.2"
    assert "reboot" in (finding.fix or "")


def test_a_module_that_is_not_loaded_is_loaded_by_modprobe() -> None:
    finding = driver(replace(FILES, module_version=None, nodes=()), BROKEN)["kernel module"]
    assert finding.verdict is CheckStatus.FAIL
    assert "modprobe nvidia" in (finding.fix or "")


def test_wsl_has_neither_module_nor_nodes() -> None:
    found = driver(replace(FILES, module_version=None, nodes=(), wsl=True), GOOD)
    assert found["kernel module"] == CheckResult("kernel module", CheckStatus.SKIPPED, "it is the host's")
    assert found["device nodes"].detail == "/dev/dxg stands for them"


def test_what_is_wrong_with_the_nodes_is_shown_with_each_fix_once() -> None:
    troubles = [
        "/dev/nvidiactl is missing: make it",
        "/dev/nvidia0 (crw-rw---- root:video) is shut: make it",
    ]
    finding = driver(FILES, BROKEN, troubles)["device nodes"]
    assert finding.detail == "/dev/nvidiactl is missing; /dev/nvidia0 (crw-rw---- root:video) is shut"
    assert finding.fix == "make it"


def test_simulated_gpus_need_no_driver() -> None:
    assert results(driver(NOTHING, GOOD, simulated=True)) == [CheckStatus.SKIPPED] * 4
    assert gpu_check(Inventory(host=HOST, gpu=GOOD, simulated=True)).verdict is CheckStatus.WARN


def test_gpus_that_are_well_are_counted() -> None:
    assert gpu_check(Inventory(host=HOST, gpu=GOOD)).detail == "1, and it is healthy"
    two = replace(GOOD, gpus=(L4, replace(L4, uuid="GPU-2", index=1)))
    assert gpu_check(Inventory(host=HOST, gpu=two)).detail == "2, all healthy"


def test_one_lost_gpu_is_a_warning_and_all_lost_a_failure() -> None:
    reason = HealthReason(code="gpu_lost", detail="it fell off the bus", action="reboot")
    lost = replace(L4, uuid="GPU-2", index=1, health=Health.LOST, reasons=(reason,))
    some = gpu_check(Inventory(host=HOST, gpu=replace(GOOD, gpus=(L4, lost))))
    assert some == CheckResult(
        "GPUs", CheckStatus.WARN, "GPU 1 is lost, gpu_lost", "drain the node, then reboot it"
    )
    assert gpu_check(Inventory(host=HOST, gpu=replace(GOOD, gpus=(lost,)))).verdict is CheckStatus.FAIL


def test_a_gpu_of_unknown_memory_is_a_warning_since_it_cannot_serve() -> None:
    unsized = replace(L4, uuid="GPU-2", index=1, memory_mb=None, unknowns={"memory_mb": "not supported"})
    some = gpu_check(Inventory(host=HOST, gpu=replace(GOOD, gpus=(L4, unsized))))
    assert (some.verdict, some.detail) == (CheckStatus.WARN, "the memory of GPU 1 is unknown (not supported)")
    assert "nvidia-smi" in (some.fix or "")
    none = gpu_check(Inventory(host=HOST, gpu=replace(GOOD, gpus=(unsized,))))
    assert none.verdict is CheckStatus.FAIL


def test_the_parent_of_slices_is_not_missed_among_gpus_that_serve() -> None:
    parent = replace(L4, memory_mb=None)
    slice_ = replace(L4, uuid="MIG-1", parent_uuid=parent.uuid)
    sliced = gpu_check(Inventory(host=HOST, gpu=replace(GOOD, gpus=(parent, slice_))))
    assert sliced.verdict is CheckStatus.OK


def test_without_a_driver_nothing_is_shown_of_gpus() -> None:
    assert gpu_check(Inventory(host=HOST, gpu=ABSENT)).verdict is CheckStatus.SKIPPED
    seen = gpu_check(Inventory(host=HOST, gpu=GpuReport(outcome=Outcome.OK)))
    assert seen.verdict is CheckStatus.FAIL


@pytest.mark.parametrize(
    ("inside", "words"),
    [
        ("docker", "in one (docker)"),
        ("none", "none, and no virtual machine"),
        (None, "none seen"),
        ("kvm", "none seen; this is a virtual machine (kvm)"),
    ],
)
def test_what_stands_around_us_is_reported(inside: str | None, words: str) -> None:
    assert container_check(replace(HOST, virtualization=inside), {}).detail == words


def test_what_a_cgroup_leaves_is_reported() -> None:
    host = replace(HOST, virtualization="docker", machine_logical_cores=64, machine_memory_total_mb=262144)
    finding = container_check(host, {})
    assert finding.detail == "in one (docker); the cgroup leaves 4 of 64 cores, 8 of 256 GiB"


def test_a_container_that_was_given_no_gpu_fails() -> None:
    assert container_check(HOST, {"NVIDIA_VISIBLE_DEVICES": "void"}).verdict is CheckStatus.FAIL
    assert container_check(HOST, {"NVIDIA_VISIBLE_DEVICES": "all"}).verdict is CheckStatus.OK


def test_each_cache_says_whether_it_can_be_read(tmp_path: Path) -> None:
    assert [cache_check(place).detail for place in (tmp_path, tmp_path / "nowhere")] == [
        f"{tmp_path} can be read",
        f"{tmp_path / 'nowhere'} is not there: it counts as empty",
    ]


def test_only_models_that_failed_are_counted_as_those_that_cannot_serve() -> None:
    whole = Model(model_id="w", version="1")
    failed = replace(whole, model_id="f", status=ModelStatus.ERROR, detail="a shard is missing")
    coming = replace(whole, model_id="c", status=ModelStatus.DOWNLOADING, detail="a part is still loading")
    declined = replace(failed, model_id="d", enabled=False)
    inventory = Inventory(host=HOST, gpu=GOOD, models=(whole, failed, coming, declined))
    assert [one.detail for one in model_checks(inventory)] == ["1 of 4 cannot serve"]
    assert list(model_checks(Inventory(host=HOST, gpu=GOOD))) == []


def test_a_cache_that_we_may_not_read_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.access", lambda *_: False)  # root may read everything
    finding = cache_check(tmp_path)
    assert finding.verdict is CheckStatus.FAIL
    assert "and we may not read it" in finding.detail
