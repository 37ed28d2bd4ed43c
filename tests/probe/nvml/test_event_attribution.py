"""An event belongs to the GPU that it names, whichever event set the driver delivers it to."""

from pathlib import Path

import pytest

from tests.nvml_fake.child import child_of
from tests.nvml_fake.control import FakeNvml
from tests.probe.nvml.event_readings import events_of, read_with_events

GPUS = 9


def shifted(root: Path, gpus: int = GPUS) -> FakeNvml:
    """A machine whose driver delivers each GPU's events to the next GPU's event set."""
    fake = FakeNvml(root, gpus=gpus)
    for index in range(gpus):
        fake.set("delivered_to", index, (index + 1) % gpus)
    return fake


def test_nine_events_that_are_delivered_to_the_next_gpus_set_count_for_the_gpu_that_they_name(
    tmp_path: Path,
) -> None:
    fake = shifted(tmp_path)
    with child_of(fake.environment()) as child:
        events_of(child)
        fake.happen(*(("xid", index, 60 + index) for index in range(GPUS)))
        assert events_of(child) == [{f"xid_{60 + index}": 1} for index in range(GPUS)]
        assert events_of(child) == [{}] * GPUS


def test_an_event_of_a_mig_device_counts_for_its_gpu(tmp_path: Path) -> None:
    fake = FakeNvml(tmp_path, gpus=2)
    fake.enable_mig(1, 0, 3)
    fake.set("delivered_to", "1/3", 0)
    with child_of(fake.environment()) as child:
        events_of(child)
        fake.happen(("xid", "1/3", 94))
        found = {gpu["uuid"]: gpu.get("events") for gpu in read_with_events(child)}
    assert {uuid for uuid, events in found.items() if events} == {fake.fact("uuid", 1)}


def test_an_event_that_names_a_lost_gpu_counts_for_it(tmp_path: Path) -> None:
    fake = shifted(tmp_path, gpus=3)
    with child_of(fake.environment()) as child:
        events_of(child)
        fake.set("error", "*", 1, "GPU_IS_LOST")
        assert events_of(child) == [{}, {}, {}]
        fake.happen(("xid", 1, 79))
        assert events_of(child) == [{}, {"xid_79": 1}, {}]


def test_an_event_that_names_a_gpu_without_an_event_set_counts_for_it(tmp_path: Path) -> None:
    fake = FakeNvml(tmp_path, gpus=2)
    fake.set("supported_events", 1, 0)
    fake.set("delivered_to", 1, 0)
    with child_of(fake.environment()) as child:
        events_of(child)
        fake.happen(("xid", 1, 48))
        assert events_of(child) == [{}, {"xid_48": 1}]


@pytest.mark.parametrize("code", ["GPU_IS_LOST", "UNKNOWN", "NOT_SUPPORTED"])
def test_an_event_whose_gpu_cannot_be_identified_counts_for_none_and_is_reported(
    tmp_path: Path, code: str
) -> None:
    fake = FakeNvml(tmp_path, gpus=2)
    fake.set("delivered_to", 7, 0)
    fake.set("error", "nvmlDeviceGetUUID", 7, code)
    with child_of(fake.environment()) as child:
        events_of(child)
        fake.happen(("xid", 7, 79), ("xid", 0, 31))
        first, second = read_with_events(child)
        later, _ = read_with_events(child)
    assert (first["events"], second.get("events", {})) == ({"xid_31": 1}, {})
    assert "xid_79" in first["unknowns"]["events"]
    assert (first["reasons"], second["reasons"]) == ([], [])
    assert "events" not in later["unknowns"]


def test_a_processor_failure_delivered_elsewhere_quarantines_the_gpu_that_it_names(tmp_path: Path) -> None:
    fake = shifted(tmp_path, gpus=3)
    with child_of(fake.environment()) as child:
        events_of(child)
        fake.happen(("xid", 1, 119))
        fake.set("hang", "nvmlDeviceGetUUID", 1)
        assert events_of(child) == [{}, {"xid_119": 1}, {}]
        fake.set("hang", "nvmlDeviceGetTemperature", 1)
        quarantined = read_with_events(child)
        fake.unset("hang")
    assert [gpu["reasons"] for gpu in quarantined] == [
        [],
        [{"code": "gpu_silent", "detail": "xid_119"}],
        [],
    ]


def test_an_unknown_handle_is_not_queried_while_a_gpu_is_quarantined(tmp_path: Path) -> None:
    fake = FakeNvml(tmp_path, gpus=2)
    fake.set("delivered_to", 0, 1)
    fake.set("hang", "*", 0)
    identity = {"uuid": "GPU-a", "pci_bus_id": fake.fact("pci_bus_id", 0), "index": 0, "why": "xid_119"}
    with child_of(fake.environment()) as child:
        read_with_events(child, quarantined={"GPU-a": identity})
        fake.happen(("xid", 0, 120))
        quarantined, other = read_with_events(child)
        fake.unset("hang")
    assert quarantined["reasons"] == [{"code": "gpu_silent", "detail": "xid_119"}]
    assert "xid_120" in other["unknowns"]["events"]
    assert not [call for call in fake.calls() if call == "nvmlDeviceGetUUID 0"]
