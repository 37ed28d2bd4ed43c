"""The NVML child, run as the process it is, against the fake library."""

import ctypes.util
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from gpu_agent.probe.nvml_process import CHILD_COMMAND
from tests.nvml_fake.build import build
from tests.nvml_fake.child import child_of
from tests.nvml_fake.control import FakeNvml, built_library

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


def test_a_fresh_reading_opens_the_library_anew(tmp_path: Path) -> None:
    fake = FakeNvml(tmp_path)
    with child_of(fake.environment()) as child:
        child.read()
        assert child.read(fresh=True)["outcome"] == "ok"
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
    assert "install" in absent["detail"]
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
def test_a_driver_that_will_not_start_is_broken_and_says_the_next_step(
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
        none_found = child.read(fresh=True)
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


@pytest.mark.parametrize("code", ["GPU_IS_LOST", "UNKNOWN"])
@pytest.mark.parametrize(
    "call", ["nvmlDeviceGetMemoryInfo_v2", "nvmlDeviceGetMigMode", "nvmlDeviceGetTemperature"]
)
def test_a_lost_gpu_keeps_its_identity_and_its_handle_is_never_used_again(
    tmp_path: Path, call: str, code: str
) -> None:
    fake = FakeNvml(tmp_path, gpus=3)
    with child_of(fake.environment()) as child:
        before = child.read()["gpus"]
        fake.set("error", call, 1, code)
        first = child.read()["gpus"]
        calls_at_loss = len(fake.calls())
        second = child.read()["gpus"]
    lost = first[1]
    assert [reason["code"] for reason in lost["reasons"]] == ["gpu_lost"]
    for name in ("uuid", "name", "index", "memory_mb", "pci_bus_id", "compute_capability"):
        assert lost[name] == before[1][name], name
    assert "temperature_c" not in lost
    assert second[1] == lost
    assert not [call for call in fake.calls()[calls_at_loss:] if call.endswith(" 1")]
    assert [gpu["reasons"] for gpu in (first[0], first[2], second[0], second[2])] == [[], [], [], []]
    assert second[2]["temperature_c"] == before[2]["temperature_c"]


@pytest.mark.parametrize(
    ("call", "told"),
    [
        ("nvmlDeviceGetName", ["uuid"]),
        ("nvmlDeviceGetPciInfo_v3", ["uuid", "name", "compute_capability"]),
        ("nvmlDeviceGetTemperature", ["uuid", "name", "compute_capability", "pci_bus_id", "memory_mb"]),
    ],
)
def test_a_gpu_lost_while_it_is_first_read_is_known_by_what_it_told_before(
    tmp_path: Path, call: str, told: list[str]
) -> None:
    fake = FakeNvml(tmp_path)
    fake.set("error", call, 0, "GPU_IS_LOST")
    with child_of(fake.environment()) as child:
        (lost,) = child.read()["gpus"]
        (still,) = child.read()["gpus"]
    assert lost == still
    assert lost["reasons"][0]["code"] == "gpu_lost"
    known = ["uuid", "name", "compute_capability", "pci_bus_id", "memory_mb"]
    assert [name for name in known if name in lost] == told
    assert "memory_used_mb" not in lost


def test_a_gpu_lost_at_its_first_sight_is_listed_by_its_place(tmp_path: Path) -> None:
    fake = FakeNvml(tmp_path, gpus=2)
    fake.set("error", "nvmlDeviceGetHandleByIndex_v2", 0, "GPU_IS_LOST")
    with child_of(fake.environment()) as child:
        lost, well = child.read()["gpus"]
    assert (lost["index"], lost["reasons"][0]["code"]) == (0, "gpu_lost")
    assert "uuid" not in lost
    assert well["uuid"] == fake.fact("uuid", 1)


def test_a_lost_gpu_comes_back_when_the_library_is_opened_anew(tmp_path: Path) -> None:
    fake = FakeNvml(tmp_path)
    fake.set("error", "nvmlDeviceGetName", 0, "GPU_IS_LOST")
    with child_of(fake.environment()) as child:
        child.read()
        fake.unset("error")
        assert child.read()["gpus"][0]["reasons"]
        assert child.read(fresh=True)["gpus"][0]["reasons"] == []


def test_a_gpu_that_needs_a_reset_says_so(tmp_path: Path) -> None:
    fake = FakeNvml(tmp_path)
    fake.set("error", "nvmlDeviceGetUtilizationRates", 0, "RESET_REQUIRED")
    with child_of(fake.environment()) as child:
        assert child.read()["gpus"][0]["reasons"][0]["code"] == "gpu_reset_required"


def test_a_gpu_that_may_not_be_opened_is_inaccessible_until_it_may(tmp_path: Path) -> None:
    fake = FakeNvml(tmp_path, gpus=2)
    fake.set("error", "nvmlDeviceGetHandleByIndex_v2", 1, "NO_PERMISSION")
    with child_of(fake.environment()) as child:
        refused = child.read()["gpus"]
        fake.unset("error")
        allowed = child.read()["gpus"]
    assert [gpu["reasons"] and gpu["reasons"][0]["code"] for gpu in refused] == [[], "gpu_inaccessible"]
    assert allowed[1]["uuid"] == fake.fact("uuid", 1)


@pytest.mark.parametrize("code", ["GPU_IS_LOST", "UNKNOWN", "TIMEOUT"])
def test_a_gpu_that_fails_the_count_of_all_takes_no_other_down(tmp_path: Path, code: str) -> None:
    fake = FakeNvml(tmp_path, gpus=2)
    with child_of(fake.environment()) as child:
        before = child.read()["gpus"]
        fake.set("error", "nvmlDeviceGetCount_v2", "*", code)
        assert child.read()["gpus"] == before


def test_a_gpu_that_comes_to_a_machine_without_any_is_found_by_the_same_child(tmp_path: Path) -> None:
    fake = FakeNvml(tmp_path, gpus=1)
    fake.set("count", 0)
    with child_of(fake.environment()) as child:
        assert child.read()["gpus"] == []
        fake.set("count", 1)
        assert len(child.read()["gpus"]) == 1
    assert fake.calls().count("nvmlInitWithFlags") == 2


def test_gpus_that_come_and_go_are_listed_as_they_are(tmp_path: Path) -> None:
    fake = FakeNvml(tmp_path, gpus=3)
    with child_of(fake.environment()) as child:
        assert len(child.read()["gpus"]) == 3
        fake.set("count", 2)
        assert len(child.read()["gpus"]) == 2


def test_a_count_of_gpus_that_no_machine_has_is_not_believed(tmp_path: Path) -> None:
    fake = FakeNvml(tmp_path, gpus=2)
    fake.set("count", 2**32 - 1)
    with child_of(fake.environment()) as child:
        gpus = child.read()["gpus"]
    assert len(gpus) == 256
    assert gpus[1]["uuid"] == fake.fact("uuid", 1)


def test_two_gpus_with_one_uuid_are_told_apart(tmp_path: Path) -> None:
    fake = FakeNvml(tmp_path, gpus=3)
    fake.set("uuid", 2, fake.fact("uuid", 0))
    with child_of(fake.environment()) as child:
        gpus = child.read()["gpus"]
    assert [gpu.get("uuid") for gpu in gpus] == [fake.fact("uuid", 0), fake.fact("uuid", 1), None]


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


def test_the_child_ends_when_asked_and_when_its_stdin_ends(tmp_path: Path) -> None:
    fake = FakeNvml(tmp_path)
    with child_of(fake.environment()) as asked:
        asked.read()
        asked.say({"ask": "end"})
        assert asked.process.wait(10) == 0
    with child_of(fake.environment()) as left:
        left.read()
    assert left.process.returncode == 0


def test_sigterm_ends_a_child_that_is_not_in_the_kernel(tmp_path: Path) -> None:
    with child_of(FakeNvml(tmp_path).environment()) as child:
        child.read()
        child.process.terminate()
        assert child.process.wait(10) == -signal.SIGTERM


def test_the_child_loads_nothing_heavy() -> None:
    code = f"import gpu_agent.probe.nvml_child, sys; print([m for m in {HEAVY} if m in sys.modules])"
    seen = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=True
    )
    assert seen.stdout.strip() == "[]"


def test_a_file_in_the_working_directory_never_passes_for_a_module_of_the_child(tmp_path: Path) -> None:
    (tmp_path / "pynvml.py").write_text("raise SystemExit('hijacked')")
    fake = FakeNvml(tmp_path)
    ran = subprocess.run(
        CHILD_COMMAND,
        input=b'{"id": 1, "ask": "read"}\n',
        capture_output=True,
        cwd=tmp_path,
        env=fake.environment(),
        timeout=30,
        check=True,
    )
    assert b'"outcome":"ok"' in ran.stdout
