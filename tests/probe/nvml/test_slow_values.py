"""Values that change slowly are read at every tenth reading, and getters that a driver lacks once."""

from pathlib import Path

import pytest

from gpu_agent.probe.nvml.readings import SLOW_FIELDS, SLOW_READINGS
from tests.nvml_fake.child import child_of
from tests.nvml_fake.control import FakeNvml, built_library
from tests.probe.nvml.event_readings import events_of, read_with_events

SLOW_CALL = "nvmlDeviceGetComputeMode 0"


def test_a_slow_value_is_read_once_in_ten_readings_and_reported_in_each(tmp_path: Path) -> None:
    fake = FakeNvml(tmp_path)
    with child_of(fake.environment()) as child:
        readings = [child.read()["gpus"][0] for _ in range(3 * SLOW_READINGS)]
    assert fake.calls().count(SLOW_CALL) == 3
    assert all(gpu[name] == readings[0][name] for gpu in readings for name in SLOW_FIELDS)
    assert fake.calls().count("nvmlDeviceGetTemperature 0") == 3 * SLOW_READINGS


def test_a_slow_value_that_changed_is_read_at_each_reading_for_a_while(tmp_path: Path) -> None:
    fake = FakeNvml(tmp_path)
    with child_of(fake.environment()) as child:
        child.read()
        fake.set("compute_mode", 0, 2)
        seen = [child.read()["gpus"][0]["compute_mode"] for _ in range(SLOW_READINGS)]
        assert seen == ["default"] * (SLOW_READINGS - 1) + ["prohibited"]
        fake.set("compute_mode", 0, 0)
        assert child.read()["gpus"][0]["compute_mode"] == "default"
        before = fake.calls().count(SLOW_CALL)
        for _ in range(4 * SLOW_READINGS):
            child.read()
    assert fake.calls().count(SLOW_CALL) - before <= 2 * SLOW_READINGS


def test_a_whole_reading_reads_the_slow_values_too(tmp_path: Path) -> None:
    fake = FakeNvml(tmp_path)
    with child_of(fake.environment()) as child:
        child.read()
        fake.set("compute_mode", 0, 2)
        assert child.read()["gpus"][0]["compute_mode"] == "default"
        assert child.read(whole=True)["gpus"][0]["compute_mode"] == "prohibited"


def test_after_an_event_the_slow_values_are_read_at_once(tmp_path: Path) -> None:
    fake = FakeNvml(tmp_path, gpus=2)
    with child_of(fake.environment()) as child:
        events_of(child)
        events_of(child)
        fake.set("retired_pages_pending", 1, 1)
        fake.happen(("xid", 1, 63))
        assert [gpu["retired_pages_pending"] for gpu in read_with_events(child)] == [False, True]


def test_a_recovery_action_that_an_event_announces_is_read_at_once(tmp_path: Path) -> None:
    fake = FakeNvml(tmp_path)
    with child_of(fake.environment()) as child:
        events_of(child)
        fake.set("recovery_action", 0, 4)
        fake.happen(("xid", 0, 154))
        assert read_with_events(child)[0]["recovery_action"] == "recovery_drain_and_reset"


@pytest.mark.parametrize("code", ["NOT_SUPPORTED", "FUNCTION_NOT_FOUND"])
@pytest.mark.parametrize("call", ["nvmlDeviceGetPowerUsage", "nvmlDeviceGetComputeMode"])
def test_a_getter_that_the_driver_lacks_is_asked_once_until_the_library_is_opened_again(
    tmp_path: Path, call: str, code: str
) -> None:
    fake = FakeNvml(tmp_path)
    fake.set("error", call, 0, code)
    with child_of(fake.environment()) as child:
        readings = [child.read()["gpus"][0]["unknowns"] for _ in range(2 * SLOW_READINGS)]
        assert fake.calls().count(f"{call} 0") == 1
        assert all(unknowns == readings[0] for unknowns in readings)
        fake.unset("error")
        assert child.read(reopen=True)["gpus"][0]["unknowns"] == {}


def test_a_symbol_that_an_old_driver_lacks_costs_one_field_and_no_calls(tmp_path: Path) -> None:
    fake = FakeNvml(tmp_path, library=built_library("nvmlDeviceGetSramEccErrorStatus"))
    with child_of(fake.environment()) as child:
        (gpu,) = child.read()["gpus"]
    assert gpu["unknowns"] == {"sram_threshold_exceeded": "the installed driver is too old to say"}


@pytest.mark.parametrize("code", ["TIMEOUT", "NO_PERMISSION", "IRQ_ISSUE", "INVALID_ARGUMENT"])
@pytest.mark.parametrize(
    ("call", "field"),
    [("nvmlDeviceGetPowerUsage", "power_w"), ("nvmlDeviceGetComputeMode", "compute_mode")],
)
def test_a_failure_that_passes_silences_no_getter(tmp_path: Path, call: str, field: str, code: str) -> None:
    fake = FakeNvml(tmp_path)
    fake.set("error", call, 0, code)
    with child_of(fake.environment()) as child:
        assert field in child.read()["gpus"][0]["unknowns"]
        fake.unset("error")
        later = [child.read()["gpus"][0] for _ in range(SLOW_READINGS)]
    assert field in later[-1]


def test_a_getter_is_asked_again_once_mig_was_turned_off(tmp_path: Path) -> None:
    fake = FakeNvml(tmp_path)
    fake.enable_mig(0, 1)
    fake.set("error", "nvmlDeviceGetUtilizationRates", 0, "NOT_SUPPORTED")
    with child_of(fake.environment()) as child:
        assert "utilization_percent" not in child.read()["gpus"][0]
        fake.unset("error")
        fake.set("mig", 0, 0)
        child.read()
        (gpu,) = child.read()["gpus"]
    assert gpu["utilization_percent"] == 0
