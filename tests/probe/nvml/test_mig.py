"""MIG devices beside their GPU."""

from pathlib import Path

import pytest

from gpu_agent.probe.nvml.report import parse_answer
from tests.nvml_fake.child import child_of, gpus_of
from tests.nvml_fake.control import H100_BYTES, FakeNvml, built_library


def mig_machine(tmp_path: Path, *slots: int, gpus: int = 1) -> FakeNvml:
    """A machine whose first GPU has MIG on and MIG devices in these slots."""
    fake = FakeNvml(tmp_path, gpus=gpus)
    fake.enable_mig(0, *slots)
    fake.set("error", "nvmlDeviceGetUtilizationRates", 0, "NOT_SUPPORTED")
    return fake


def test_mig_devices_are_listed_after_their_gpu_with_their_own_identity_and_memory(tmp_path: Path) -> None:
    fake = mig_machine(tmp_path, 0, 1, gpus=2)
    parent, first, second, whole = gpus_of(fake)
    assert (parent["uuid"], whole["uuid"]) == (fake.fact("uuid", 0), fake.fact("uuid", 1))
    assert parent["mig_enabled"] is True
    for mig_device, slot in ((first, "0/0"), (second, "0/1")):
        assert mig_device["uuid"] == fake.fact("uuid", slot)
        assert mig_device["name"] == "NVIDIA H100 80GB HBM3 MIG 1g.10gb"
        assert mig_device["parent_uuid"] == parent["uuid"]
        assert mig_device["memory_mb"] == H100_BYTES // 8 >> 20
        assert mig_device["memory_used_mb"] == 64
        assert (mig_device["index"], mig_device["pci_bus_id"]) == (0, parent["pci_bus_id"])
    assert "parent_uuid" not in whole


def test_an_empty_slot_is_passed_over_and_not_the_end(tmp_path: Path) -> None:
    fake = mig_machine(tmp_path, 0, 5, 6)
    assert [gpu["uuid"][-1] for gpu in gpus_of(fake)[1:]] == ["0", "5", "6"]


def test_use_and_temperature_are_the_gpus_and_not_its_mig_devices(tmp_path: Path) -> None:
    parent, mig_device = gpus_of(mig_machine(tmp_path, 2))
    assert parent["unknowns"]["utilization_percent"] == "not available for a GPU in MIG mode"
    assert parent["temperature_c"] == 40
    for name in ("utilization_percent", "temperature_c", "power_w", "ecc_uncorrected"):
        assert mig_device["unknowns"][name] == "reported for the whole GPU, not for one MIG device"
        assert name not in mig_device


def test_the_processes_of_a_mig_device_are_its_own(tmp_path: Path) -> None:
    fake = mig_machine(tmp_path, 0, 1)
    fake.set("process", "0/1", 77, 1 << 30)
    _, first, second = gpus_of(fake)
    assert (first["processes"], second["processes"]) == ([], [{"pid": 77, "memory_mb": 1024}])


def test_jobs_run_on_the_mig_devices_and_not_on_their_gpu(tmp_path: Path) -> None:
    fake = mig_machine(tmp_path, 0, 1, gpus=2)
    with child_of(fake.environment()) as child:
        child.send({"id": 1, "request": "read"})
        assert child.process.stdout is not None
        answer = parse_answer(child.process.stdout.readline())
    assert answer is not None
    assert [gpu.uuid for gpu in answer.report.usable] == [
        fake.fact("uuid", device) for device in ("0/0", "0/1", 1)
    ]


def test_a_gpu_in_mig_mode_without_mig_devices_serves_no_job_and_names_the_fix(tmp_path: Path) -> None:
    fake = mig_machine(tmp_path)
    with child_of(fake.environment()) as child:
        child.send({"id": 1, "request": "read"})
        assert child.process.stdout is not None
        answer = parse_answer(child.process.stdout.readline())
    assert answer is not None
    (gpu,) = answer.report.gpus
    assert [reason.code for reason in gpu.reasons] == ["mig_without_slices"]
    assert "nvidia-smi mig -cgi" in (gpu.reasons[0].action or "")
    assert answer.report.usable == ()


@pytest.mark.parametrize("code", ["NOT_SUPPORTED", "NO_PERMISSION", "TIMEOUT"])
def test_slots_that_cannot_be_counted_are_a_reason_and_no_claim_that_there_are_none(
    tmp_path: Path, code: str
) -> None:
    fake = mig_machine(tmp_path, 0)
    fake.set("error", "nvmlDeviceGetMaxMigDeviceCount", 0, code)
    (parent,) = gpus_of(fake)
    assert parent["unknowns"]["mig_devices"]
    assert parent["reasons"] == []


def test_one_mig_device_that_cannot_be_opened_never_hides_the_others(tmp_path: Path) -> None:
    fake = mig_machine(tmp_path, 0, 1, 2)
    fake.set("error", "nvmlDeviceGetMigDeviceHandleByIndex", "0/1", "NO_PERMISSION")
    parent, first, third = gpus_of(fake)
    assert [first["uuid"][-1], third["uuid"][-1]] == ["0", "2"]
    assert parent["unknowns"]["mig_devices"] == "slot 1: the agent's user may not read it"


def test_a_mig_device_without_a_uuid_is_named_by_its_instances(tmp_path: Path) -> None:
    fake = mig_machine(tmp_path, 3)
    fake.set("error", "nvmlDeviceGetUUID", "0/3", "NOT_SUPPORTED")
    parent, mig_device = gpus_of(fake)
    assert mig_device["uuid"] == f"MIG-{parent['uuid']}/10/0"
    fake.set("error", "nvmlDeviceGetGpuInstanceId", "0/3", "NOT_SUPPORTED")
    fake.set("error", "nvmlDeviceGetName", "0/3", "NOT_SUPPORTED")
    parent, mig_device = gpus_of(fake)
    assert mig_device["uuid"] == f"MIG-{parent['uuid']}/slot-3"
    assert mig_device["name"] == "MIG device of NVIDIA H100 80GB HBM3"


@pytest.mark.parametrize(
    ("call", "device"),
    [
        ("nvmlDeviceGetMaxMigDeviceCount", "0"),
        ("nvmlDeviceGetMigDeviceHandleByIndex", "0/1"),
        ("nvmlDeviceGetMemoryInfo_v2", "0/0"),
    ],
)
def test_a_gpu_lost_while_its_mig_devices_are_read_is_lost_with_them(
    tmp_path: Path, *, call: str, device: str
) -> None:
    fake = mig_machine(tmp_path, 0, 1, gpus=2)
    with child_of(fake.environment()) as child:
        before = child.read()["gpus"]
        fake.set("error", call, device, "GPU_IS_LOST")
        after = child.read()["gpus"]
    assert [gpu["uuid"] for gpu in after] == [gpu["uuid"] for gpu in before]
    assert [[reason["code"] for reason in gpu["reasons"]] for gpu in after] == [["gpu_lost"]] * 3 + [[]]
    assert [gpu.get("parent_uuid") for gpu in after] == [gpu.get("parent_uuid") for gpu in before]
    assert "memory_used_mb" not in after[1]


def test_a_driver_that_goes_away_while_mig_devices_are_counted_is_broken_as_a_whole(tmp_path: Path) -> None:
    fake = mig_machine(tmp_path, 0)
    fake.set("error", "nvmlDeviceGetMaxMigDeviceCount", 0, "UNINITIALIZED")
    with child_of(fake.environment()) as child:
        assert child.read()["outcome"] == "driver_broken"


def test_a_driver_that_is_older_than_mig_lists_whole_gpus(tmp_path: Path) -> None:
    symbols = (
        "nvmlDeviceGetMigMode",
        "nvmlDeviceGetMaxMigDeviceCount",
        "nvmlDeviceGetMigDeviceHandleByIndex",
    )
    (gpu,) = gpus_of(FakeNvml(tmp_path, library=built_library(*symbols)))
    assert (gpu["reasons"], list(gpu["unknowns"])) == ([], ["mig_enabled"])


def test_a_new_layout_is_seen_at_the_next_reading(tmp_path: Path) -> None:
    fake = mig_machine(tmp_path, 0, 1)
    with child_of(fake.environment()) as child:
        assert len(child.read()["gpus"]) == 3
        fake.unset("mig_device", "0/0")
        fake.set("mig_device", "0/4", 11, 0)
        fake.set("uuid", "0/4", "MIG-00000000-fa4e-4000-8000-000000000004")
        assert [gpu["uuid"][-1] for gpu in child.read()["gpus"][1:]] == ["1", "4"]
        fake.set("mig", 0, 0)
        assert len(child.read()["gpus"]) == 1


def test_an_unknown_mig_mode_removes_no_mig_device(tmp_path: Path) -> None:
    fake = mig_machine(tmp_path, 0, 1)
    with child_of(fake.environment()) as child:
        before = child.read()["gpus"]
        fake.set("error", "nvmlDeviceGetMigMode", 0, "TIMEOUT")
        after = child.read()["gpus"]
    assert [gpu["uuid"] for gpu in after] == [gpu["uuid"] for gpu in before]
    assert "mig_enabled" in after[0]["unknowns"]


@pytest.mark.parametrize(
    ("call", "device", "unread"),
    [("nvmlDeviceGetMigDeviceHandleByIndex", "0/1", 1), ("nvmlDeviceGetMaxMigDeviceCount", "0", 2)],
)
def test_a_mig_device_that_cannot_be_opened_any_more_is_unknown_and_not_gone(
    tmp_path: Path, *, call: str, device: str, unread: int
) -> None:
    fake = mig_machine(tmp_path, 0, 1)
    with child_of(fake.environment()) as child:
        before = child.read()["gpus"]
        fake.set("error", call, device, "TIMEOUT")
        during = child.read()["gpus"]
        still = child.read()["gpus"]
        fake.unset("error", call)
        after = child.read()["gpus"]
    assert {gpu["uuid"] for gpu in during} == {gpu["uuid"] for gpu in before}
    codes = [reason["code"] for gpu in during for reason in gpu["reasons"]]
    assert codes == ["gpu_inaccessible"] * unread
    assert still == during
    assert after == before
