"""Why a driver will not start, through the child: with the next step, and with what stands in the way."""

import ctypes.util
from pathlib import Path
from typing import Any

import pytest

from tests.nvml_fake.child import child_of
from tests.nvml_fake.control import FakeNvml, built_library

without_real_driver = pytest.mark.skipif(
    ctypes.util.find_library("nvidia-ml") is not None, reason="this machine has a real NVIDIA driver"
)


def loaded(root: Path, *nodes: str) -> Path:
    """A machine with the module, one GPU, and these nodes in /dev."""
    gpu = root / "proc/driver/nvidia/gpus/0000:1a:00.0"
    gpu.mkdir(parents=True)
    (gpu / "information").write_text("Device Minor: \t 0\n")
    (root / "proc/driver/nvidia/version").touch()
    (root / "dev").mkdir()
    for node in nodes:
        (root / "dev" / node).touch()
    return root


def answer_of(fake: FakeNvml, root: Path, **environ: str) -> dict[str, Any]:
    with child_of({**fake.environment(), **environ}, root=root) as child:
        return child.read()


def refused(tmp_path: Path, code: str) -> FakeNvml:
    fake = FakeNvml(tmp_path)
    fake.set("error", "nvmlInitWithFlags", "*", code)
    return fake


@pytest.mark.parametrize("code", ["NO_PERMISSION", "UNKNOWN", "DRIVER_NOT_LOADED"])
def test_a_missing_device_node_is_named_where_the_driver_only_refuses(tmp_path: Path, code: str) -> None:
    answer = answer_of(refused(tmp_path, code), loaded(tmp_path, "nvidia0", "nvidia-uvm"))
    assert answer["outcome"] == "driver_broken"
    assert "/dev/nvidiactl is missing" in answer["detail"]
    assert "modprobe nvidia`" not in answer["detail"]


@pytest.mark.parametrize("code", ["NO_PERMISSION", "UNKNOWN", "DRIVER_NOT_LOADED"])
def test_nodes_that_are_well_leave_the_drivers_own_reason(tmp_path: Path, code: str) -> None:
    answer = answer_of(refused(tmp_path, code), loaded(tmp_path, "nvidiactl", "nvidia0", "nvidia-uvm"))
    assert answer["outcome"] == "driver_broken"
    assert "/dev/nvidiactl" not in answer["detail"]


def test_a_driver_older_than_the_binding_can_open_says_to_update_it(tmp_path: Path) -> None:
    fake = FakeNvml(tmp_path, library=built_library("nvmlInitWithFlags"))
    answer = answer_of(fake, tmp_path)
    assert (answer["outcome"], answer["detail"]) == (
        "driver_broken",
        "The NVIDIA driver is too old for this agent: update it.",
    )


def test_a_version_mismatch_is_no_matter_of_nodes(tmp_path: Path) -> None:
    answer = answer_of(refused(tmp_path, "LIB_RM_VERSION_MISMATCH"), loaded(tmp_path))
    assert "reboot, or reload the nvidia kernel module" in answer["detail"]
    assert "missing" not in answer["detail"]


@pytest.mark.parametrize("said_by", ["count", "init"])
def test_a_driver_without_gpus_names_the_node_that_hides_them(tmp_path: Path, said_by: str) -> None:
    fake = FakeNvml(tmp_path, gpus=0) if said_by == "count" else refused(tmp_path, "GPU_NOT_FOUND")
    answer = answer_of(fake, loaded(tmp_path, "nvidiactl", "nvidia-uvm"))
    assert (answer["outcome"], answer["gpus"]) == ("ok", [])
    assert answer["detail"].startswith("The NVIDIA driver works and found no GPU. /dev/nvidia0 is missing")


@pytest.mark.parametrize("value", ["void", "none", "", " VOID "])
def test_a_container_without_gpus_gets_the_variable_that_hides_them(tmp_path: Path, value: str) -> None:
    answer = answer_of(FakeNvml(tmp_path, gpus=0), tmp_path, NVIDIA_VISIBLE_DEVICES=value)
    assert f"NVIDIA_VISIBLE_DEVICES={value.strip()} keeps every GPU out of this container" in answer["detail"]


@without_real_driver
@pytest.mark.parametrize("value", ["compute", "compute,graphics", ""])
def test_a_container_without_the_utility_capability_gets_the_fix(tmp_path: Path, value: str) -> None:
    fake = FakeNvml(tmp_path, library=tmp_path / "driver")
    answer = answer_of(fake, tmp_path, NVIDIA_DRIVER_CAPABILITIES=value)
    assert answer["outcome"] == "no_driver"
    assert f"NVIDIA_DRIVER_CAPABILITIES={value} leaves out `utility`" in answer["detail"]


@without_real_driver
@pytest.mark.parametrize("value", ["all", "compute,utility"])
def test_capabilities_that_suffice_are_not_blamed(tmp_path: Path, value: str) -> None:
    fake = FakeNvml(tmp_path, library=tmp_path / "driver")
    answer = answer_of(fake, tmp_path, NVIDIA_DRIVER_CAPABILITIES=value, NVIDIA_VISIBLE_DEVICES="all")
    assert answer["outcome"] == "no_driver"
    assert "install it" in answer["detail"]


def on_the_bus(root: Path, *devices: tuple[str, str]) -> Path:
    """A machine with these vendors and classes on its PCI bus."""
    for number, (vendor, kind) in enumerate(devices):
        device = root / "sys/bus/pci/devices" / f"0000:0{number}:00.0"
        device.mkdir(parents=True)
        (device / "vendor").write_text(f"{vendor}\n")
        (device / "class").write_text(f"{kind}\n")
    return root


@without_real_driver
@pytest.mark.parametrize(
    ("devices", "sign", "advised"),
    [
        ([("0x10de", "0x030200"), ("0x8086", "0x060000")], None, True),
        ([("0x10de", "0x120000")], None, True),
        ([("0x10de", "0x040300"), ("0x1002", "0x030000")], None, False),  # the sound of a card, another's GPU
        ([], None, True),  # the bus cannot be listed
        ([("0x8086", "0x060000")], "dev/dxg", True),
        ([("0x8086", "0x060000")], "etc/nv_tegra_release", True),
    ],
)
def test_the_driver_is_advised_only_where_an_nvidia_gpu_may_be(
    tmp_path: Path, devices: list[tuple[str, str]], *, sign: str | None, advised: bool
) -> None:
    root = on_the_bus(tmp_path / "root", *devices)
    if sign:
        (root / sign).parent.mkdir(parents=True)
        (root / sign).touch()
    answer = answer_of(FakeNvml(tmp_path, library=tmp_path / "driver"), root)
    assert answer["outcome"] == "no_driver"
    assert ("install it" in answer["detail"]) is advised
    assert ("no NVIDIA GPU on the PCI bus" in answer["detail"]) is not advised


def test_a_variable_that_is_no_text_is_quoted_all_the_same(tmp_path: Path) -> None:
    answer = answer_of(FakeNvml(tmp_path, gpus=0), tmp_path, NVIDIA_DRIVER_CAPABILITIES="\udcff")
    assert "NVIDIA_DRIVER_CAPABILITIES=\\udcff" in answer["detail"]


def test_one_gpu_that_may_not_be_opened_names_its_node(tmp_path: Path) -> None:
    fake = FakeNvml(tmp_path, gpus=2)
    fake.set("error", "nvmlDeviceGetHandleByIndex_v2", 0, "NO_PERMISSION")
    refused_one, well = answer_of(fake, loaded(tmp_path, "nvidiactl", "nvidia-uvm"))["gpus"]
    assert refused_one["reasons"][0]["code"] == "gpu_inaccessible"
    assert "/dev/nvidia0 is missing" in refused_one["reasons"][0]["detail"]
    assert well["reasons"] == []
