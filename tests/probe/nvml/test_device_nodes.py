"""Device nodes in a tree like the kernel's, and the sentences about them."""

import errno
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from gpu_agent.probe.nvml.device_nodes import (
    closed_sentence,
    is_module_loaded,
    missing_sentence,
    node_problems,
)
from tests.waiting import patience


def tree(root: Path, *nodes: str, minors: tuple[str, ...] = ("0", "1")) -> str:
    """A machine whose module lists GPUs of these minors, and these nodes in /dev."""
    module = root / "proc/driver/nvidia"
    for number, minor in enumerate(minors):
        gpu = module / "gpus" / f"0000:{number:02x}:00.0"
        gpu.mkdir(parents=True)
        (gpu / "information").write_text(f"Model: \t NVIDIA H100\nDevice Minor: \t {minor}\n")
    (module / "version").write_text("NVRM version: NVIDIA UNIX\n")
    (root / "dev").mkdir(exist_ok=True)
    for node in nodes:
        (root / "dev" / node).touch()
    return str(root)


def status(mode: int, *, owner: tuple[int, int] = (0, 0)) -> os.stat_result:
    return os.stat_result((stat.S_IFCHR | mode, 1, 1, 1, *owner, 0, 0, 0, 0))


def test_nodes_that_are_all_there_and_open_are_no_trouble(tmp_path: Path) -> None:
    root = tree(tmp_path, "nvidiactl", "nvidia0", "nvidia1", "nvidia-uvm")
    assert node_problems(root) == []
    assert is_module_loaded(root)


def test_missing_nodes_are_named_each_with_who_makes_them(tmp_path: Path) -> None:
    (trouble,) = node_problems(tree(tmp_path, "nvidiactl", "nvidia0"))
    assert trouble.startswith("/dev/nvidia1 and /dev/nvidia-uvm are missing: `nvidia-modprobe")
    assert "PrivateDevices" in trouble


@pytest.mark.parametrize("mark", [".dockerenv", "run/.containerenv"])
def test_missing_nodes_of_a_container_are_its_runtimes_to_give(tmp_path: Path, mark: str) -> None:
    (tmp_path / mark).parent.mkdir(exist_ok=True)
    (tmp_path / mark).touch()
    (trouble,) = node_problems(tree(tmp_path, "nvidiactl", "nvidia0", "nvidia1"))
    assert trouble.startswith("/dev/nvidia-uvm is missing: start the container with its GPUs")
    assert "`utility`" in trouble


@pytest.mark.parametrize("minor", ["", "N/A", "12345", "-1", "\xff"])
def test_a_gpu_without_a_sensible_minor_has_no_node_to_miss(tmp_path: Path, minor: str) -> None:
    assert node_problems(tree(tmp_path, "nvidiactl", "nvidia-uvm", minors=(minor,))) == []


def test_the_module_is_seen_where_proc_is_hidden(tmp_path: Path) -> None:
    (tmp_path / "sys/module/nvidia").mkdir(parents=True)
    assert is_module_loaded(str(tmp_path))


def test_without_the_module_there_is_none_to_be_seen(tmp_path: Path) -> None:
    assert not is_module_loaded(str(tmp_path))


def test_a_node_closed_by_its_mode_names_its_user_and_group() -> None:
    refused = OSError(errno.EACCES, "Permission denied")
    sentence = closed_sentence("/dev/nvidiactl", status(0o660), refused)
    assert sentence.startswith("/dev/nvidiactl (crw-rw---- root:root) may not be opened by the agent's user")
    assert "group root" in sentence
    assert "NVreg_DeviceFileMode=0666" in closed_sentence("/dev/nvidia0", status(0o600), refused)


def test_a_node_closed_by_the_control_group_is_reported_as_such() -> None:
    refused = OSError(errno.EPERM, "Operation not permitted")
    sentence = closed_sentence("/dev/nvidia0", status(0o666), refused)
    assert sentence.startswith("/dev/nvidia0 (crw-rw-rw- root:root) is closed to the agent's control group")
    assert "daemon-reload" in sentence
    assert "DeviceAllow=/dev/nvidia0 rw" in sentence


def test_a_node_that_does_not_open_for_another_reason_quotes_it() -> None:
    sentence = closed_sentence("/dev/nvidia0", status(0o666), OSError(errno.EIO, "Input/output error"))
    assert "does not open (Input/output error): see `dmesg`" in sentence


def test_a_user_without_a_name_is_reported_by_number() -> None:
    refused = OSError(errno.EACCES, "Permission denied")
    assert "54321:54322" in closed_sentence("/dev/nvidiactl", status(0o660, owner=(54321, 54322)), refused)


def test_one_missing_node_is_missing_and_two_are() -> None:
    assert missing_sentence(["/dev/a"], in_container=True).startswith("/dev/a is missing")
    assert missing_sentence(["/dev/a", "/dev/b"], in_container=True).startswith(
        "/dev/a and /dev/b are missing"
    )


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="needs root, to be somebody else")
def test_another_user_learns_that_the_mode_closes_the_node(tmp_path: Path) -> None:
    root = tree(tmp_path, "nvidiactl", "nvidia0", "nvidia1", "nvidia-uvm")
    tmp_path.chmod(0o755)
    (tmp_path / "dev" / "nvidiactl").chmod(0o600)
    code = (
        "import os\n"
        "from gpu_agent.probe.nvml.device_nodes import node_problems\n"
        f"os.chdir({root!r}); os.setgid(65534); os.setuid(65534)\n"
        "print(*node_problems('.'), sep='\\n')\n"
    )
    seen = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=patience(30), check=True
    )
    assert "/dev/nvidiactl (-rw------- root:root) may not be opened by the agent's user" in seen.stdout
