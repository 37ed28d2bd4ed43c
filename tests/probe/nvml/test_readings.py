"""The values of one GPU and the reasons for unknown ones, through the true binding in the child."""

from pathlib import Path

import pynvml
import pytest

from gpu_agent.probe.nvml.errors import (
    GpuGoneError,
    UnknownValueError,
    Values,
    as_text,
    salvage_text,
)
from gpu_agent.probe.nvml.readings import (
    RECOVERY_ACTION_FIELD,
    RECOVERY_ACTIONS,
    Getter,
    check_bounds,
    run_getters,
)
from tests.nvml_fake.child import gpu_of
from tests.nvml_fake.control import FakeNvml


@pytest.mark.parametrize("code", ["NOT_SUPPORTED", "FUNCTION_NOT_FOUND", "NO_PERMISSION", "TIMEOUT"])
@pytest.mark.parametrize(
    ("call", "fields"),
    [
        ("nvmlDeviceGetName", ["name"]),
        ("nvmlDeviceGetUUID", ["uuid"]),
        ("nvmlDeviceGetCudaComputeCapability", ["compute_capability"]),
        ("nvmlDeviceGetPciInfo_v3", ["pci_bus_id"]),
        ("nvmlDeviceGetUtilizationRates", ["utilization_percent", "memory_utilization_percent"]),
        ("nvmlDeviceGetPowerUsage", ["power_w"]),
        ("nvmlDeviceGetEnforcedPowerLimit", ["power_limit_w"]),
        ("nvmlDeviceGetClockInfo", ["clock_sm_mhz", "clock_memory_mhz"]),
        ("nvmlDeviceGetTotalEccErrors", ["ecc_uncorrected"]),
        ("nvmlDeviceGetTotalEnergyConsumption", ["energy_mj"]),
        ("nvmlDeviceGetFieldValues", ["recovery_action", "nvlinks_up", "nvlinks_down", "nvlink_errors"]),
        ("nvmlDeviceGetComputeMode", ["compute_mode"]),
        ("nvmlDeviceGetSramEccErrorStatus", ["sram_threshold_exceeded"]),
        ("nvmlDeviceGetCurrPcieLinkWidth", ["pcie_width"]),
        ("nvmlDeviceGetMaxPcieLinkGeneration", ["pcie_generation_max"]),
        ("nvmlDeviceGetPcieReplayCounter", ["pcie_replays"]),
        (
            "nvmlDeviceGetRemappedRows",
            [
                *("remapped_rows_correctable", "remapped_rows_uncorrectable"),
                *("row_remap_failed", "row_remap_pending"),
            ],
        ),
        ("nvmlDeviceGetRetiredPagesPendingStatus", ["retired_pages_pending"]),
        ("nvmlDeviceGetMigMode", ["mig_enabled"]),
    ],
)
def test_one_getter_that_fails_leaves_its_fields_unknown_and_the_rest_counts(
    tmp_path: Path, *, call: str, fields: list[str], code: str
) -> None:
    fake = FakeNvml(tmp_path)
    fake.set("error", call, 0, code)
    gpu = gpu_of(fake)
    assert sorted(gpu["unknowns"]) == sorted(fields)
    assert all(gpu["unknowns"].values())
    assert not set(fields) & set(gpu)
    assert (gpu["temperature_c"], gpu["reasons"]) == (40, [])


def test_every_getter_unsupported_still_lists_the_gpu(tmp_path: Path) -> None:
    fake = FakeNvml(tmp_path)
    fake.set("error", "*", 0, "NOT_SUPPORTED")
    fake.set("error", "nvmlDeviceGetHandleByIndex_v2", 0, "0")
    gpu = gpu_of(fake)
    assert (gpu["index"], gpu["reasons"]) == (0, [])
    assert len(gpu["unknowns"]) > 15


@pytest.mark.parametrize(
    ("key", "value", "field"),
    [
        ("utilization", 4294967295, "utilization_percent"),
        ("temperature", 4294967295, "temperature_c"),
        ("power_mw", 4294967295, "power_w"),
        ("clock_sm_mhz", 4294967295, "clock_sm_mhz"),
        ("compute_capability", "-1.-1", "compute_capability"),
        ("compute_capability", "4096.0", "compute_capability"),
        ("energy_mj", 2**64 - 1, "energy_mj"),
        ("energy_mj", 0, "energy_mj"),
        ("ecc_uncorrected", 2**64 - 1, "ecc_uncorrected"),
        ("pcie_width", 4294967295, "pcie_width"),
        ("pcie_generation_max", 0, "pcie_generation_max"),
        ("compute_mode", 9, "compute_mode"),
        ("nvlinks", 4294967295, "nvlinks_up"),
        ("pcie_replays", 4294967295, "pcie_replays"),
    ],
)
def test_a_figure_that_no_gpu_has_is_unknown(tmp_path: Path, *, key: str, value: object, field: str) -> None:
    fake = FakeNvml(tmp_path)
    fake.set(key, 0, value)
    gpu = gpu_of(fake)
    assert str(value).partition(".")[0] in gpu["unknowns"][field]
    assert field not in gpu


def test_rows_are_counted_by_their_errors_and_replays_of_the_link_are(tmp_path: Path) -> None:
    fake = FakeNvml(tmp_path)
    fake.set("remapped_rows", 0, "3 2 1 0")
    fake.set("pcie_replays", 0, 17)
    gpu = gpu_of(fake)
    assert (gpu["remapped_rows_correctable"], gpu["remapped_rows_uncorrectable"]) == (3, 2)
    assert (gpu["row_remap_pending"], gpu["row_remap_failed"], gpu["pcie_replays"]) == (True, False, 17)


def test_a_count_of_rows_that_cannot_be_hides_no_failed_remap(tmp_path: Path) -> None:
    fake = FakeNvml(tmp_path)
    fake.set("remapped_rows", 0, f"{2**32 - 1} {2**32 - 1} 0 1")
    gpu = gpu_of(fake)
    assert gpu["row_remap_failed"] is True
    assert {"remapped_rows_correctable", "remapped_rows_uncorrectable"} <= gpu["unknowns"].keys()


def test_temperature_falls_back_to_the_call_of_newer_drivers(tmp_path: Path) -> None:
    fake = FakeNvml(tmp_path)
    fake.set("error", "nvmlDeviceGetTemperature", 0, "FUNCTION_NOT_FOUND")
    assert gpu_of(fake)["temperature_c"] == 40


def test_throttle_reasons_are_named_also_by_older_drivers_and_idleness_is_none(tmp_path: Path) -> None:
    fake = FakeNvml(tmp_path)
    fake.set("clocks_event_reasons", 0, 0x1 | 0x4 | 0x40)
    assert gpu_of(fake)["throttle_reasons"] == ["sw_power_cap", "hw_thermal_slowdown"]
    fake.set("error", "nvmlDeviceGetCurrentClocksEventReasons", 0, "FUNCTION_NOT_FOUND")
    assert gpu_of(fake)["throttle_reasons"] == ["sw_power_cap", "hw_thermal_slowdown"]


def test_a_name_that_is_no_utf8_is_read_as_far_as_possible(tmp_path: Path) -> None:
    fake = FakeNvml(tmp_path)
    fake.set("name", 0, "RTX \udcff\udcfe 4090")
    assert gpu_of(fake)["name"] == "RTX \ufffd\ufffd 4090"


@pytest.mark.parametrize(("number", "code"), [*RECOVERY_ACTIONS.items(), (99, "recovery_other")])
def test_what_the_driver_asks_for_is_named(tmp_path: Path, number: int, code: str) -> None:
    fake = FakeNvml(tmp_path)
    fake.set("recovery_action", 0, number)
    assert gpu_of(fake)["recovery_action"] == code


def test_the_field_is_the_one_that_the_binding_names() -> None:
    assert pynvml.NVML_FI_DEV_GET_GPU_RECOVERY_ACTION == RECOVERY_ACTION_FIELD


def test_a_driver_older_than_the_recovery_action_is_too_old_to_say(tmp_path: Path) -> None:
    fake = FakeNvml(tmp_path)
    fake.set("recovery_action", 0, "error", "INVALID_ARGUMENT")
    assert gpu_of(fake)["unknowns"] == {"recovery_action": "the installed driver is too old to say"}


def test_a_field_that_fails_without_saying_why_loses_no_gpu(tmp_path: Path) -> None:
    fake = FakeNvml(tmp_path)
    fake.set("recovery_action", 0, "error", "UNKNOWN")
    gpu = gpu_of(fake)
    assert (gpu["reasons"], gpu["unknowns"]) == ([], {"recovery_action": "the driver does not say"})


def test_a_field_that_finds_the_gpu_lost_loses_it(tmp_path: Path) -> None:
    fake = FakeNvml(tmp_path)
    fake.set("recovery_action", 0, "error", "GPU_IS_LOST")
    assert [one["code"] for one in gpu_of(fake)["reasons"]] == ["gpu_lost"]


@pytest.mark.parametrize("uuid", ["unidentified-0", "\x1b[31mGPU", "名前", "GPU-\x07"])
def test_an_unprintable_uuid_is_unknown(tmp_path: Path, uuid: str) -> None:
    fake = FakeNvml(tmp_path)
    fake.set("uuid", 0, uuid)
    gpu = gpu_of(fake)
    assert "uuid" not in gpu
    assert "is no UUID" in gpu["unknowns"]["uuid"]


# What a getter's answer may be, through the true binding where it matters.


@pytest.mark.parametrize("value", [-1, 101, 2**32 - 1])
def test_a_number_out_of_range_is_unknown(value: int) -> None:
    with pytest.raises(UnknownValueError, match=f"answered {value}, which cannot be"):
        check_bounds("utilization_percent", value)
    assert check_bounds("utilization_percent", 0) == 0
    assert check_bounds("power_w", 10_000_000, per_unit=1000) == 10_000_000


def test_what_is_no_utf8_is_read_as_far_as_it_can_be() -> None:
    with pytest.raises(UnicodeDecodeError) as raised:
        b"RTX \xff".decode()
    assert salvage_text(raised.value) == "RTX \ufffd"


@pytest.mark.parametrize(("value", "read"), [("H100", "H100"), (b"H100", "H100"), (b"H\xff", "H\ufffd")])
def test_a_text_may_come_as_bytes(value: object, read: str) -> None:
    assert as_text(value) == read


def test_a_uuid_that_is_no_text_is_unknown_and_the_rest_counts(tmp_path: Path) -> None:
    fake = FakeNvml(tmp_path)
    fake.set("uuid", 0, "GPU-\udcff\udcfe")
    gpu = gpu_of(fake)
    assert gpu["unknowns"] == {"uuid": "the driver answered with a text that is no UTF-8"}
    assert gpu["temperature_c"] == 40


def read_after(error: BaseException) -> Values:
    """What a reading of two getters gives, of which the first one fails."""

    def failing(_nvml: object, _handle: object) -> Values:
        raise error

    getters: tuple[Getter, ...] = (
        (("one", "other"), failing),
        (("third",), lambda _nvml, _handle: {"third": 3}),
    )
    return run_getters(pynvml, None, getters)


def test_a_binding_that_does_not_fit_the_library_is_one_unknown_more() -> None:
    mismatch = pynvml.NVMLLibraryMismatchError("use a versioned function")
    assert not isinstance(mismatch, pynvml.NVMLError)
    unknowns = {"one": "use a versioned function", "other": "use a versioned function"}
    assert read_after(mismatch) == {"third": 3, "unknowns": unknowns}


@pytest.mark.parametrize("code", [3, 4, 6, 12, 13, 25, 77])
def test_an_error_of_one_getter_is_its_fields_reason(code: int) -> None:
    values = read_after(pynvml.NVMLError(code))
    assert values["third"] == 3
    assert set(values["unknowns"]) == {"one", "other"}  # type: ignore[call-overload]


@pytest.mark.parametrize("code", [1, 9, 18])
def test_an_error_of_the_whole_driver_is_not_swallowed(code: int) -> None:
    with pytest.raises(pynvml.NVMLError):
        read_after(pynvml.NVMLError(code))


@pytest.mark.parametrize(("code", "means"), [(15, "gpu_lost"), (999, "gpu_lost"), (16, "gpu_reset_required")])
def test_an_error_of_the_whole_gpu_ends_it(code: int, means: str) -> None:
    with pytest.raises(GpuGoneError) as gone:
        read_after(pynvml.NVMLError(code))
    assert gone.value.code == means
    assert gone.value.detail.startswith("reading one: ")
