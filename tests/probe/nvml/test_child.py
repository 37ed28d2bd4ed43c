"""The NVML child, run as the process it is, against the fake library."""

import ctypes.util
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from gpu_agent.probe.nvml.child import quarantined_positions
from gpu_agent.probe.nvml.process import CHILD_COMMAND
from tests.nvml_fake.build import build
from tests.nvml_fake.child import child_of
from tests.nvml_fake.control import FakeNvml, built_library
from tests.waiting import patience

HEAVY = ("asyncio", "dataclasses", "pydantic", "psutil", "gpu_agent.wire")
without_real_driver = pytest.mark.skipif(
    ctypes.util.find_library("nvidia-ml") is not None, reason="this machine has a real NVIDIA driver"
)


def test_eight_gpus_read_as_the_driver_states_them(tmp_path: Path) -> None:
    fake = FakeNvml(tmp_path, gpus=8)
    with child_of(fake.environment()) as child:
        answer = child.read()
    assert answer["outcome"] == "ok"
    assert (answer["driver_version"], answer["cuda_version"]) == ("570.124.06", "12.8")
    assert answer["took_ms"] > 0
    assert len(answer["gpus"]) == 8
    for index, gpu in enumerate(answer["gpus"]):
        for name, key in (("uuid",) * 2, ("name",) * 2, ("compute_capability",) * 2, ("pci_bus_id",) * 2):
            assert gpu[name] == fake.fact(key, index)
        for name, key, scale in (
            ("memory_mb", "memory_total", 1 << 20),
            ("memory_used_mb", "memory_used", 1 << 20),
            ("utilization_percent", "utilization", 1),
            ("memory_utilization_percent", "memory_utilization", 1),
            ("temperature_c", "temperature", 1),
            ("clock_sm_mhz", "clock_sm_mhz", 1),
            ("clock_memory_mhz", "clock_memory_mhz", 1),
            ("ecc_uncorrected", "ecc_uncorrected", 1),
        ):
            assert gpu[name] == int(fake.fact(key, index)) // scale, name
        assert gpu["power_w"] == int(fake.fact("power_mw", index)) / 1000
        assert gpu["power_limit_w"] == int(fake.fact("power_limit_mw", index)) / 1000
        assert (gpu["index"], gpu["reasons"], gpu["unknowns"]) == (index, [], {})


def test_the_library_is_opened_once_not_at_every_reading(tmp_path: Path) -> None:
    fake = FakeNvml(tmp_path, gpus=2)
    with child_of(fake.environment()) as child:
        for _ in range(3):
            child.read()
    assert fake.calls().count("nvmlInitWithFlags") == 1
    assert fake.calls().count("nvmlDeviceGetHandleByIndex_v2 1") == 1
    assert fake.calls().count("nvmlDeviceGetTemperature 1") == 3


def test_a_reading_with_reopen_opens_the_library_again(tmp_path: Path) -> None:
    fake = FakeNvml(tmp_path)
    with child_of(fake.environment()) as child:
        child.read()
        assert child.read(reopen=True)["outcome"] == "ok"
    assert fake.calls().count("nvmlShutdown") == 1
    assert fake.calls().count("nvmlInitWithFlags") == 2


@without_real_driver
def test_no_library_is_no_driver_and_one_that_arrives_later_is_found(tmp_path: Path) -> None:
    fake = FakeNvml(tmp_path, library=tmp_path / "driver")
    (tmp_path / "driver").mkdir()
    with child_of(fake.environment()) as child:
        absent = child.read()
        build(tmp_path / "driver")
        arrived = child.read()
    assert absent["outcome"] == "no_driver"
    assert "libnvidia-ml.so.1" in absent["detail"]
    assert (arrived["outcome"], len(arrived["gpus"])) == ("ok", 1)


def test_a_library_that_does_not_load_is_a_broken_driver_not_a_missing_one(tmp_path: Path) -> None:
    fake = FakeNvml(tmp_path, library=tmp_path / "driver")
    (tmp_path / "driver").mkdir()
    (tmp_path / "driver" / "libnvidia-ml.so.1").write_text(
        "no ELF file at all, though long enough to be one\n" * 9
    )
    with child_of(fake.environment()) as child:
        answer = child.read()
    assert answer["outcome"] == "driver_broken"
    assert "ELF" in answer["detail"]
    assert "reinstall" in answer["detail"]


@pytest.mark.parametrize(
    ("code", "next_step"),
    [
        ("LIB_RM_VERSION_MISMATCH", "reboot, or reload the nvidia kernel module"),
        ("DRIVER_NOT_LOADED", "modprobe nvidia"),
        ("NO_PERMISSION", "/dev/nvidia*"),
        ("FUNCTION_NOT_FOUND", "update it"),
        ("UNKNOWN", "nvidia-smi"),
        ("IRQ_ISSUE", "nvidia-smi"),
    ],
)
def test_a_driver_that_does_not_initialize_is_broken_with_the_next_step(
    tmp_path: Path, code: str, next_step: str
) -> None:
    fake = FakeNvml(tmp_path)
    fake.set("error", "nvmlInitWithFlags", "*", code)
    with child_of(fake.environment()) as child:
        answer = child.read()
    assert answer["outcome"] == "driver_broken"
    assert next_step in answer["detail"]
    assert "gpus" not in answer


def test_a_driver_that_starts_to_work_is_found_by_the_same_child(tmp_path: Path) -> None:
    fake = FakeNvml(tmp_path)
    fake.set("error", "nvmlInitWithFlags", "*", "DRIVER_NOT_LOADED")
    with child_of(fake.environment()) as child:
        assert child.read()["outcome"] == "driver_broken"
        fake.unset("error")
        assert child.read()["outcome"] == "ok"


def test_a_driver_without_gpus_is_ok_with_none(tmp_path: Path) -> None:
    fake = FakeNvml(tmp_path, gpus=0)
    with child_of(fake.environment()) as child:
        assert child.read()["gpus"] == []
        fake.set("error", "nvmlInitWithFlags", "*", "GPU_NOT_FOUND")
        none_found = child.read(reopen=True)
    assert (none_found["outcome"], none_found["gpus"]) == ("ok", [])
    assert "no GPU" in none_found["detail"]


@pytest.mark.parametrize("code", ["UNINITIALIZED", "DRIVER_NOT_LOADED", "LIB_RM_VERSION_MISMATCH"])
@pytest.mark.parametrize("call", ["nvmlDeviceGetCount_v2", "nvmlDeviceGetPowerUsage"])
def test_a_driver_that_goes_away_in_use_is_broken_as_a_whole(tmp_path: Path, code: str, call: str) -> None:
    fake = FakeNvml(tmp_path, gpus=2)
    with child_of(fake.environment()) as child:
        child.read()
        fake.set("error", call, "*", code)
        assert child.read()["outcome"] == "driver_broken"
        fake.unset("error")
        assert len(child.read()["gpus"]) == 2


def test_the_cuda_version_of_an_older_driver_is_read_by_its_older_call(tmp_path: Path) -> None:
    fake = FakeNvml(tmp_path, library=built_library("nvmlSystemGetCudaDriverVersion_v2"))
    with child_of(fake.environment()) as child:
        assert child.read()["cuda_version"] == "12.8"


@pytest.mark.parametrize("version", [0, 4294967295, 100000])
def test_a_cuda_version_that_cannot_be_is_unknown(tmp_path: Path, version: int) -> None:
    fake = FakeNvml(tmp_path)
    fake.set("cuda_version", version)
    with child_of(fake.environment()) as child:
        assert child.read()["cuda_version"] is None


def test_what_a_library_prints_never_meets_the_answers(tmp_path: Path) -> None:
    fake = FakeNvml(tmp_path, gpus=2)
    fake.set("print", "*", "*", '{"id": 1, "outcome": "ok", "gpus": []}')
    with child_of(fake.environment()) as child:
        assert len(child.read()["gpus"]) == 2
        assert len(child.read()["gpus"]) == 2


def test_the_child_ends_on_request_and_when_its_stdin_ends(tmp_path: Path) -> None:
    fake = FakeNvml(tmp_path)
    with child_of(fake.environment()) as ended_by_request:
        ended_by_request.read()
        ended_by_request.send({"request": "end"})
        assert ended_by_request.process.wait(patience(10)) == 0
    with child_of(fake.environment()) as left:
        left.read()
    assert left.process.returncode == 0


def test_sigterm_ends_a_child_that_is_not_in_the_kernel(tmp_path: Path) -> None:
    with child_of(FakeNvml(tmp_path).environment()) as child:
        child.read()
        child.process.terminate()
        assert child.process.wait(patience(10)) == -signal.SIGTERM


def test_the_child_loads_nothing_heavy() -> None:
    code = f"import gpu_agent.probe.nvml.child, sys; print([m for m in {HEAVY} if m in sys.modules])"
    seen = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=patience(30), check=True
    )
    assert seen.stdout.strip() == "[]"


def test_a_file_in_the_working_directory_never_passes_for_a_module_of_the_child(tmp_path: Path) -> None:
    (tmp_path / "pynvml.py").write_text("raise SystemExit('hijacked')")
    fake = FakeNvml(tmp_path)
    ran = subprocess.run(
        CHILD_COMMAND,
        input=b'{"id": 1, "request": "read"}\n',
        capture_output=True,
        cwd=tmp_path,
        env=fake.environment(),
        timeout=patience(30),
        check=True,
    )
    assert b'"outcome":"ok"' in ran.stdout


# Where quarantined GPUs are in the driver's list, with a tree like the kernel's.


QUARANTINED: dict[str, dict[str, object]] = {
    "GPU-b": {"uuid": "GPU-b", "index": 1, "pci_bus_id": "00000000:1B:00.0", "why": "xid_119"}
}
IDENTITY = QUARANTINED["GPU-b"]


def tree(root: Path, *addresses: str) -> str:
    for address in addresses:
        (root / "proc/driver/nvidia/gpus" / address).mkdir(parents=True)
    return str(root)


def test_without_quarantined_gpus_no_position_is_left_out(tmp_path: Path) -> None:
    assert quarantined_positions({}, 2, root=tree(tmp_path, "0000:1a:00.0", "0000:1b:00.0")) == {}


def test_a_quarantined_gpu_is_where_the_kernel_lists_it(tmp_path: Path) -> None:
    assert quarantined_positions(QUARANTINED, 2, root=tree(tmp_path, "0000:1b:00.0", "0000:1c:00.0")) == {
        0: IDENTITY
    }


def test_addresses_are_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    root = tree(tmp_path, "10000:01:00.0", "0000:1b:00.0", "0000:0a:00.0", "no address")
    assert quarantined_positions(QUARANTINED, 3, root=root) == {1: IDENTITY}


def test_a_quarantined_gpu_that_the_kernel_no_longer_lists_hides_no_other(tmp_path: Path) -> None:
    assert quarantined_positions(QUARANTINED, 2, root=tree(tmp_path, "0000:1a:00.0", "0000:1c:00.0")) == {}


def test_where_the_kernels_list_does_not_fit_the_gpu_is_where_it_was(tmp_path: Path) -> None:
    assert quarantined_positions(QUARANTINED, 2, root=str(tmp_path)) == {1: IDENTITY}
    assert quarantined_positions(QUARANTINED, 3, root=tree(tmp_path, "0000:1b:00.0")) == {1: IDENTITY}
    assert quarantined_positions(QUARANTINED, 1, root=str(tmp_path / "none")) == {}


def test_a_quarantined_gpu_without_an_address_is_at_its_last_index(tmp_path: Path) -> None:
    quarantined: dict[str, dict[str, object]] = {"unidentified-0": {"index": 0, "why": "xid_120"}}
    assert quarantined_positions(quarantined, 1, root=tree(tmp_path, "0000:1b:00.0")) == {
        0: {"index": 0, "why": "xid_120"}
    }
