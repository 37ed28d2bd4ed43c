import os
from pathlib import Path

import pytest

from gpu_agent.probe.nvml.driver_files import find_driver_files

OPEN_MODULE = "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  570.124.06  Release Build\nGCC\n"
CLOSED_MODULE = "NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.183.01  Sun May 12 19:39:15 UTC 2024\n"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for folder in ("usr/lib/x86_64-linux-gnu", "proc/driver/nvidia/gpus", "dev"):
        (tmp_path / folder).mkdir(parents=True)
    return tmp_path


def put(path: Path, text: str = "") -> Path:
    path.write_text(text)
    return path


def test_a_machine_without_a_driver_has_nothing_of_it(tmp_path: Path) -> None:
    found = find_driver_files({}, root=tmp_path)
    assert (found.nvml_library, found.module_version, found.nodes, found.wsl) == (None, None, (), False)


def test_the_librarys_version_is_in_the_name_behind_its_link(root: Path) -> None:
    folder = root / "usr/lib/x86_64-linux-gnu"
    put(folder / "libnvidia-ml.so.570.124.06")
    (folder / "libnvidia-ml.so.1").symlink_to("libnvidia-ml.so.570.124.06")
    found = find_driver_files({}, root=root)
    assert (found.nvml_library, found.nvml_library_version) == (folder / "libnvidia-ml.so.1", "570.124.06")


def test_what_the_loader_would_take_first_is_found_first(root: Path) -> None:
    put(root / "usr/lib/x86_64-linux-gnu/libnvidia-ml.so.1")
    own = put(root / "dev" / "libnvidia-ml.so.1")
    found = find_driver_files({"LD_LIBRARY_PATH": f"{os.pathsep}/nowhere{os.pathsep}{own.parent}"}, root=root)
    assert (found.nvml_library, found.nvml_library_version) == (own, None)


@pytest.mark.parametrize(
    ("text", "version"),
    [(OPEN_MODULE, "570.124.06"), (CLOSED_MODULE, "535.183.01"), ("?", "of unknown version")],
)
def test_the_kernel_modules_version_is_read(text: str, version: str, root: Path) -> None:
    put(root / "proc/driver/nvidia/version", text)
    assert find_driver_files({}, root=root).module_version == version


def test_device_nodes_are_named_and_other_devices_are_not(root: Path) -> None:
    for name in ("nvidiactl", "nvidia0", "nvidia11", "nvidia-uvm", "nvidia-modeset", "null"):
        put(root / "dev" / name)
    assert find_driver_files({}, root=root).nodes == ("nvidia-uvm", "nvidia0", "nvidia11", "nvidiactl")


def test_wsl_reaches_the_driver_another_way(root: Path) -> None:
    put(root / "dev/dxg")
    assert find_driver_files({}, root=root).wsl is True
