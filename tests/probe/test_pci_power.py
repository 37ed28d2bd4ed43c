"""Whether a PCI device sleeps, read from a tree like the kernel's."""

from pathlib import Path

import pytest

from gpu_agent.probe.pci_power import is_asleep


def tree(tmp_path: Path, status: bytes) -> str:
    power = tmp_path / "sys/bus/pci/devices/0000:1a:00.0/power"
    power.mkdir(parents=True)
    (power / "runtime_status").write_bytes(status)
    return str(tmp_path)


@pytest.mark.parametrize(
    ("status", "asleep"),
    [
        (b"suspended\n", True),
        (b"active\n", False),
        (b"suspending\n", False),
        (b"unsupported\n", False),
        (b"error\n", False),
        (b"\xff\xfe", False),
        (b"", False),
    ],
)
def test_only_what_the_kernel_calls_suspended_sleeps(tmp_path: Path, *, status: bytes, asleep: bool) -> None:
    assert is_asleep("00000000:1A:00.0", root=tree(tmp_path, status)) is asleep


@pytest.mark.parametrize("bus_id", [None, "", "garbage", "00000000:1B:00.0", "../../etc", 7])
def test_a_device_of_which_nothing_is_known_is_awake(tmp_path: Path, bus_id: object) -> None:
    assert not is_asleep(bus_id, root=tree(tmp_path, b"suspended\n"))


def test_a_domain_beyond_the_usual_four_digits_is_found(tmp_path: Path) -> None:
    power = tmp_path / "sys/bus/pci/devices/10000:01:00.0/power"
    power.mkdir(parents=True)
    (power / "runtime_status").write_text("suspended\n")
    assert is_asleep("00010000:01:00.0", root=str(tmp_path))
