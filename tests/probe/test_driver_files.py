import os
from pathlib import Path

import pytest

from gpu_agent.probe.driver_files import look, owner_of

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
    found = look({}, root=tmp_path)
    assert (found.library, found.module_version, found.nodes, found.gpu_count, found.wsl) == (
        None,
        None,
        (),
        None,
        False,
    )


def test_the_librarys_version_is_in_the_name_behind_its_link(root: Path) -> None:
    folder = root / "usr/lib/x86_64-linux-gnu"
    put(folder / "libnvidia-ml.so.570.124.06")
    (folder / "libnvidia-ml.so.1").symlink_to("libnvidia-ml.so.570.124.06")
    found = look({}, root=root)
    assert (found.library, found.library_version) == (folder / "libnvidia-ml.so.1", "570.124.06")


def test_what_the_loader_would_take_first_is_found_first(root: Path) -> None:
    put(root / "usr/lib/x86_64-linux-gnu/libnvidia-ml.so.1")
    own = put(root / "dev" / "libnvidia-ml.so.1")
    found = look({"LD_LIBRARY_PATH": f"{os.pathsep}/nowhere{os.pathsep}{own.parent}"}, root=root)
    assert (found.library, found.library_version) == (own, None)


@pytest.mark.parametrize(
    ("text", "version"),
    [(OPEN_MODULE, "570.124.06"), (CLOSED_MODULE, "535.183.01"), ("?", "of unknown version")],
)
def test_the_kernel_modules_version_is_read(text: str, version: str, root: Path) -> None:
    put(root / "proc/driver/nvidia/version", text)
    assert look({}, root=root).module_version == version


def test_device_nodes_and_gpus_are_counted_and_other_devices_are_not(root: Path) -> None:
    for name in ("nvidiactl", "nvidia0", "nvidia11", "nvidia-uvm", "nvidia-modeset", "null"):
        put(root / "dev" / name)
    (root / "proc/driver/nvidia/gpus/0000:1a:00.0").mkdir()
    found = look({}, root=root)
    assert [node.name for node in found.nodes] == ["nvidia-uvm", "nvidia0", "nvidia11", "nvidiactl"]
    assert all(node.accessible and node.refused is None for node in found.nodes)
    assert found.gpu_count == 1


def test_a_node_says_whose_it_is_and_how_it_is_kept(root: Path) -> None:
    put(root / "dev/nvidia0").chmod(0o660)
    node = look({}, root=root).nodes[0]
    assert (node.mode, node.owner) == (0o660, owner_of(root / "dev/nvidia0"))


def test_a_control_node_that_cannot_be_opened_says_why(root: Path) -> None:
    (root / "dev/nvidiactl").mkdir()
    assert look({}, root=root).nodes[0].refused == "Is a directory"


def test_a_file_of_nobody_known_is_told_by_numbers(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(_: Path) -> str:
        raise KeyError("uid not found")

    monkeypatch.setattr(Path, "owner", unknown)
    assert owner_of(root) == f"{os.getuid()}:{root.stat().st_gid}"


def test_a_file_that_is_gone_belongs_to_nobody_known(root: Path) -> None:
    assert owner_of(root / "nowhere") == "unknown"


def test_wsl_reaches_the_driver_another_way(root: Path) -> None:
    put(root / "dev/dxg")
    assert look({}, root=root).wsl is True
