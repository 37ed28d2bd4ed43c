"""The GPUs of one machine as the child lists them: lost, come, gone, alike."""

from pathlib import Path

import pytest

from tests.nvml_fake.child import child_of
from tests.nvml_fake.control import FakeNvml


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
    ("call", "identity"),
    [
        ("nvmlDeviceGetName", ["uuid"]),
        ("nvmlDeviceGetPciInfo_v3", ["uuid", "name", "compute_capability"]),
        ("nvmlDeviceGetTemperature", ["uuid", "name", "compute_capability", "pci_bus_id", "memory_mb"]),
    ],
)
def test_a_gpu_lost_during_its_first_reading_has_the_identity_read_before(
    tmp_path: Path, call: str, identity: list[str]
) -> None:
    fake = FakeNvml(tmp_path)
    fake.set("error", call, 0, "GPU_IS_LOST")
    with child_of(fake.environment()) as child:
        (lost,) = child.read()["gpus"]
        (still,) = child.read()["gpus"]
    assert lost == still
    assert lost["reasons"][0]["code"] == "gpu_lost"
    known = ["uuid", "name", "compute_capability", "pci_bus_id", "memory_mb"]
    assert [name for name in known if name in lost] == identity
    assert "memory_used_mb" not in lost


def test_a_gpu_lost_at_its_first_reading_is_listed_by_its_index(tmp_path: Path) -> None:
    fake = FakeNvml(tmp_path, gpus=2)
    fake.set("error", "nvmlDeviceGetHandleByIndex_v2", 0, "GPU_IS_LOST")
    with child_of(fake.environment()) as child:
        lost, well = child.read()["gpus"]
    assert (lost["index"], lost["reasons"][0]["code"]) == (0, "gpu_lost")
    assert "uuid" not in lost
    assert well["uuid"] == fake.fact("uuid", 1)


def test_a_lost_gpu_comes_back_when_the_library_is_opened_again(tmp_path: Path) -> None:
    fake = FakeNvml(tmp_path)
    fake.set("error", "nvmlDeviceGetName", 0, "GPU_IS_LOST")
    with child_of(fake.environment()) as child:
        child.read()
        fake.unset("error")
        assert child.read()["gpus"][0]["reasons"]
        assert child.read(reopen=True)["gpus"][0]["reasons"] == []


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


def test_of_two_gpus_with_one_uuid_the_second_is_unidentified(tmp_path: Path) -> None:
    fake = FakeNvml(tmp_path, gpus=3)
    fake.set("uuid", 2, fake.fact("uuid", 0))
    with child_of(fake.environment()) as child:
        gpus = child.read()["gpus"]
    assert [gpu.get("uuid") for gpu in gpus] == [fake.fact("uuid", 0), fake.fact("uuid", 1), None]
