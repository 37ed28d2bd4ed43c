"""One GPU in the driver's list: handles, identities, and suspended GPUs."""

from pathlib import Path

import pytest

from gpu_agent.probe.nvml.device import is_suspended
from tests.nvml_fake.child import child_of
from tests.nvml_fake.control import FakeNvml


def power(root: Path, fake: FakeNvml, index: int, status: str) -> None:
    """Write into a tree like the kernel's whether a GPU is suspended."""
    address = fake.fact("pci_bus_id", index).lower().removeprefix("0000")
    folder = root / "sys/bus/pci/devices" / address / "power"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "runtime_status").write_text(f"{status}\n")


def test_a_suspended_gpu_is_not_queried_and_has_its_last_identity(tmp_path: Path) -> None:
    fake = FakeNvml(tmp_path, gpus=2)
    power(tmp_path, fake, 1, "active")
    with child_of(fake.environment(), root=tmp_path) as child:
        awake = child.read()["gpus"]
        power(tmp_path, fake, 1, "suspended")
        calls_before = len(fake.calls())
        asleep = child.read()["gpus"]
        assert not [call for call in fake.calls()[calls_before:] if call.endswith(" 1")]
        power(tmp_path, fake, 1, "active")
        again = child.read()["gpus"]
    for name in ("uuid", "name", "index", "memory_mb", "memory_kind", "pci_bus_id"):
        assert asleep[1][name] == awake[1][name]
    assert asleep[1]["asleep"] is True
    assert asleep[1]["reasons"] == []
    assert "temperature_c" not in asleep[1]
    why = "the GPU is suspended and was not queried, so as not to wake it"
    assert asleep[1]["unknowns"]["temperature_c"] == why
    assert "memory_mb" not in asleep[1]["unknowns"]
    assert asleep[0] == awake[0]
    assert again == awake


def test_the_mig_devices_of_a_suspended_gpu_are_suspended_too(tmp_path: Path) -> None:
    fake = FakeNvml(tmp_path)
    fake.enable_mig(0, 2)
    with child_of(fake.environment(), root=tmp_path) as child:
        awake = child.read()["gpus"]
        power(tmp_path, fake, 0, "suspended")
        asleep = child.read()["gpus"]
    assert [gpu["uuid"] for gpu in asleep] == [gpu["uuid"] for gpu in awake]
    assert [gpu["asleep"] for gpu in asleep] == [True, True]


def test_a_suspended_gpu_is_read_once_to_learn_its_identity(tmp_path: Path) -> None:
    fake = FakeNvml(tmp_path)
    power(tmp_path, fake, 0, "suspended")
    with child_of(fake.environment(), root=tmp_path) as child:
        assert child.read()["gpus"][0]["uuid"] == fake.fact("uuid", 0)


def test_an_unknown_identity_is_read_again(tmp_path: Path) -> None:
    fake = FakeNvml(tmp_path)
    fake.set("error", "nvmlDeviceGetUUID", 0, "TIMEOUT")
    with child_of(fake.environment()) as child:
        assert "uuid" not in child.read()["gpus"][0]
        fake.unset("error")
        again = child.read()["gpus"][0]
    assert again["uuid"] == fake.fact("uuid", 0)
    assert again["unknowns"] == {}


# Whether a PCI device is suspended, read from a tree like the kernel's.


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
def test_only_what_the_kernel_calls_suspended_is_suspended(
    tmp_path: Path, *, status: bytes, asleep: bool
) -> None:
    assert is_suspended("00000000:1A:00.0", root=tree(tmp_path, status)) is asleep


@pytest.mark.parametrize("bus_id", [None, "", "garbage", "00000000:1B:00.0", "../../etc", 7])
def test_a_device_of_which_nothing_is_known_is_awake(tmp_path: Path, bus_id: object) -> None:
    assert not is_suspended(bus_id, root=tree(tmp_path, b"suspended\n"))


def test_a_domain_beyond_the_usual_four_digits_is_found(tmp_path: Path) -> None:
    power = tmp_path / "sys/bus/pci/devices/10000:01:00.0/power"
    power.mkdir(parents=True)
    (power / "runtime_status").write_text("suspended\n")
    assert is_suspended("00010000:01:00.0", root=str(tmp_path))
