"""Between two readings the child looks at the GPUs, and says only that something has changed."""

from pathlib import Path

import pytest

from tests.nvml_fake.child import ChildUnderTest, child_of
from tests.nvml_fake.control import FakeNvml
from tests.programs import eventually

EVERY = 0.02
LOOK = "nvmlDeviceGetTemperature 0"
CHANGED = {"changed": True}


def looks(fake: FakeNvml, count: int, *, call: str = LOOK) -> None:
    """Wait for so many looks from now on."""
    before = fake.calls().count(call)
    eventually(lambda: fake.calls().count(call) >= before + count, within_seconds=10, what="looks")


def read(child: ChildUnderTest) -> dict[int, list[str]]:
    """Read the GPUs, and have them looked at from then on; the reasons by index."""
    answer = child.read(events=True, look_every=EVERY)
    return {gpu["index"]: [one["code"] for one in gpu["reasons"]] for gpu in answer["gpus"]}


def test_looks_read_no_figures_and_say_nothing_while_all_is_well(tmp_path: Path) -> None:
    fake = FakeNvml(tmp_path, gpus=2)
    with child_of(fake.environment()) as child:
        read(child)
        figures = fake.calls().count("nvmlDeviceGetUtilizationRates 0")
        looks(fake, 3)
        assert fake.calls().count("nvmlDeviceGetUtilizationRates 0") == figures
        assert read(child) == {0: [], 1: []}, "the next line is the answer"


def test_a_child_that_was_not_told_to_does_not_look(tmp_path: Path) -> None:
    fake = FakeNvml(tmp_path, gpus=1)
    with child_of(fake.environment()) as child:
        read(child)
        looks(fake, 1)
        child.read(events=True)
        before = len(fake.calls())
        child.process.stdin.close()  # type: ignore[union-attr]
        assert child.process.wait(10) == 0
        assert len(fake.calls()) == before


@pytest.mark.parametrize(
    ("call", "error", "code"),
    [
        ("*", "GPU_IS_LOST", "gpu_lost"),
        ("nvmlDeviceGetTemperature", "UNKNOWN", "gpu_lost"),
        ("nvmlDeviceGetTemperature", "RESET_REQUIRED", "gpu_reset_required"),
        ("nvmlEventSetWait_v2", "GPU_IS_LOST", "gpu_lost"),
    ],
)
def test_a_look_finds_a_gpu_that_is_lost_and_never_asks_it_again(
    tmp_path: Path, call: str, error: str, code: str
) -> None:
    fake = FakeNvml(tmp_path, gpus=2)
    with child_of(fake.environment()) as child:
        read(child)
        fake.set("error", call, 1, error)
        assert child.line() == CHANGED
        asked = [one for one in fake.calls() if one.endswith(" 1")]
        assert read(child) == {0: [], 1: [code]}
        assert [one for one in fake.calls() if one.endswith(" 1")] == asked


def test_a_look_takes_the_events_and_sends_them_at_once(tmp_path: Path) -> None:
    fake = FakeNvml(tmp_path, gpus=2)
    with child_of(fake.environment()) as child:
        read(child)
        fake.happen(("xid", 1, 31))
        assert child.line() == {"events": {fake.fact("uuid", 1): {"xid_31": 1}}}
        assert child.line() == CHANGED
        looked = fake.calls().count(LOOK)
        read(child)
        assert fake.calls().count(LOOK) <= looked + 2, "after a change it waits for the reading"


def test_after_a_look_found_an_event_the_reading_has_what_changes_slowly_too(tmp_path: Path) -> None:
    fake = FakeNvml(tmp_path, gpus=1)
    fake.set("remapped_rows", 0, "0 0 0 0")
    with child_of(fake.environment()) as child:
        read(child)
        fake.set("remapped_rows", 0, "0 1 1 0")
        fake.happen(("xid", 0, 63))
        assert "events" in child.line()
        assert child.line() == CHANGED
        (gpu,) = child.read(events=True)["gpus"]
        assert gpu["row_remap_pending"] is True


def test_a_look_finds_that_the_driver_lists_fewer_gpus(tmp_path: Path) -> None:
    fake = FakeNvml(tmp_path, gpus=2)
    with child_of(fake.environment()) as child:
        read(child)
        fake.set("count", 1)
        assert child.line() == CHANGED


def test_a_look_finds_that_the_whole_driver_has_failed(tmp_path: Path) -> None:
    fake = FakeNvml(tmp_path, gpus=2)
    with child_of(fake.environment()) as child:
        read(child)
        fake.set("error", "*", "*", "UNINITIALIZED")
        assert child.line() == CHANGED


def test_a_gpu_without_a_sensor_is_looked_at_by_its_memory(tmp_path: Path) -> None:
    fake = FakeNvml(tmp_path, gpus=1)
    fake.unset("temperature")
    fake.unset("power_mw")
    with child_of(fake.environment()) as child:
        read(child)
        looks(fake, 2, call="nvmlDeviceGetMemoryInfo 0")
        fake.set("error", "nvmlDeviceGetMemoryInfo", 0, "GPU_IS_LOST")
        assert child.line() == CHANGED


def test_a_look_queries_no_gpu_that_sleeps_and_finds_that_it_awoke(tmp_path: Path) -> None:
    fake = FakeNvml(tmp_path, gpus=1)
    root = tmp_path / "root"
    with child_of(fake.environment(), root=root) as child:
        (gpu,) = child.read(events=True)["gpus"]
        domain_and_more = gpu["pci_bus_id"].lower()[-12:]
        status = root / "sys/bus/pci/devices" / domain_and_more / "power/runtime_status"
        status.parent.mkdir(parents=True)
        status.write_text("suspended\n")
        (gpu,) = child.read(events=True, look_every=EVERY)["gpus"]
        assert gpu["asleep"] is True
        asked = [one for one in fake.calls() if one.endswith(" 0")]
        looks(fake, 3, call="nvmlDeviceGetCount_v2")
        assert [one for one in fake.calls() if one.endswith(" 0")] == asked
        status.write_text("active\n")
        assert child.line() == CHANGED
