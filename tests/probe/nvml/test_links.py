"""NVLinks and the fabric of one GPU, through the true binding in the child."""

from pathlib import Path

import pytest

from gpu_agent.probe.nvml.readings import SLOW_READINGS
from tests.nvml_fake.child import ChildUnderTest, child_of, gpu_of
from tests.nvml_fake.control import HEALTHY_FABRIC, FakeNvml, built_library


def mask(shift: int, value: int) -> int:
    """A healthy mask but for the part at `shift`."""
    width = 0xF if shift == 8 else 0x3
    return HEALTHY_FABRIC & ~(width << shift) | value << shift


@pytest.mark.parametrize(
    ("fabric", "faults"),
    [
        (f"3 0 {HEALTHY_FABRIC}", []),
        ("3 0 0", []),
        ("1 0 0", ["fabric_incomplete"]),
        (f"2 999 {mask(4, 1)}", ["fabric_incomplete"]),
        (f"3 999 {HEALTHY_FABRIC}", ["fabric_failed"]),
        (f"3 0 {mask(0, 1)}", ["fabric_degraded_bandwidth"]),
        (f"3 0 {mask(2, 1)}", ["fabric_route_recovery"]),
        (f"3 0 {mask(4, 1)}", ["fabric_route_unhealthy"]),
        (f"3 0 {mask(6, 1)}", ["fabric_access_timeout"]),
        (f"3 0 {mask(8, 4)}", ["fabric_no_partition"]),
        (f"3 0 {mask(12, 2)}", ["fabric_no_partition"]),
        (f"3 0 {mask(8, 5)}", ["fabric_misconfigured"]),
        (f"3 1 {mask(4, 1)}", ["fabric_failed", "fabric_route_unhealthy"]),
    ],
)
def test_what_is_wrong_with_a_gpus_place_in_the_fabric_is_named(
    tmp_path: Path, fabric: str, faults: list[str]
) -> None:
    fake = FakeNvml(tmp_path)
    fake.set("fabric", 0, fabric)
    assert gpu_of(fake)["fabric_faults"] == faults


def test_a_machine_without_a_fabric_has_no_faults_of_one(tmp_path: Path) -> None:
    fake = FakeNvml(tmp_path)
    fake.set("fabric", 0, "0 0 0")
    gpu = gpu_of(fake)
    assert "not supported" in gpu["unknowns"]["fabric_faults"]
    assert "fabric_faults" not in gpu


def test_an_older_driver_tells_the_state_of_the_fabric_without_its_mask(tmp_path: Path) -> None:
    fake = FakeNvml(tmp_path, library=built_library("nvmlDeviceGetGpuFabricInfoV"))
    assert gpu_of(fake)["fabric_faults"] == []
    fake.set("fabric", 0, f"2 0 {mask(4, 1)}")
    assert gpu_of(fake)["fabric_faults"] == ["fabric_incomplete"]


def test_links_are_counted_as_up_or_down_with_their_errors(tmp_path: Path) -> None:
    fake = FakeNvml(tmp_path)
    fake.set("nvlinks_down", 0, 3)
    fake.set("nvlink_errors_total", 0, 12_345_678_901)
    fake.set("nvlink_recoveries_total", 0, 1_000)
    gpu = gpu_of(fake)
    assert (gpu["nvlinks_up"], gpu["nvlinks_down"], gpu["nvlink_errors"]) == (15, 3, 12_345_679_901)


@pytest.mark.parametrize("unknown", ["nvlink_errors_total", "nvlink_recoveries_total"])
def test_errors_of_which_one_kind_is_unknown_are_unknown(tmp_path: Path, unknown: str) -> None:
    fake = FakeNvml(tmp_path)
    fake.set("nvlink_errors_total", 0, 5)
    fake.set("nvlink_recoveries_total", 0, 5)
    fake.set(unknown, 0, "error", "UNKNOWN")
    gpu = gpu_of(fake)
    assert "nvlink_errors" not in gpu
    assert gpu["unknowns"] == {"nvlink_errors": "the installed driver does not say"}


def test_more_errors_than_a_gpu_can_have_are_unknown(tmp_path: Path) -> None:
    fake = FakeNvml(tmp_path)
    fake.set("nvlink_errors_total", 0, 2**64 - 1)
    gpu = gpu_of(fake)
    assert gpu["nvlinks_up"] == 18
    why = f"the driver answered {2**64 - 1} NVLink errors, which cannot be"
    assert gpu["unknowns"] == {"nvlink_errors": why}


def test_errors_are_counted_link_by_link_where_the_driver_has_no_total(tmp_path: Path) -> None:
    fake = FakeNvml(tmp_path)
    fake.unset("nvlink_errors_total")
    fake.set("nvlink_errors", 0, 7)
    assert gpu_of(fake)["nvlink_errors"] == 7


def test_the_sum_of_all_links_stays_as_it_is_while_one_of_them_is_silent(tmp_path: Path) -> None:
    fake = FakeNvml(tmp_path)
    fake.unset("nvlink_errors_total")
    fake.set("nvlink_errors", 0, 7)
    with child_of(fake.environment()) as child:
        sums = [errors_after_slow_readings(child)]
        fake.set("nvlink_silent", 0, 1)
        sums.append(errors_after_slow_readings(child))
        fake.unset("nvlink_silent")
        sums.append(errors_after_slow_readings(child))
        fake.set("nvlink_errors", 0, 9)
        sums.append(errors_after_slow_readings(child))
    assert sums == [7, 7, 7, 9]


def test_a_link_that_was_silent_from_the_start_counts_from_its_first_answer(tmp_path: Path) -> None:
    fake = FakeNvml(tmp_path)
    fake.unset("nvlink_errors_total")
    fake.set("nvlink_errors", 0, 7)
    fake.set("nvlink_silent", 0, 1)
    with child_of(fake.environment()) as child:
        sums = [errors_after_slow_readings(child)]
        fake.unset("nvlink_silent")
        sums.append(errors_after_slow_readings(child))
        fake.set("nvlink_errors", 0, 9)
        sums.append(errors_after_slow_readings(child))
        fake.set("nvlink_errors", 0, 1)
        sums.append(errors_after_slow_readings(child))
    assert sums == [0, 0, 2, 1], "it restarted last, as at a reset"


def errors_after_slow_readings(child: ChildUnderTest) -> object:
    """Return the errors once what changes slowly was read."""
    return [child.read()["gpus"][0] for _ in range(SLOW_READINGS)][-1]["nvlink_errors"]


@pytest.mark.parametrize("fact", ["nvlinks", "nvlink_errors_total"])
def test_a_gpu_that_is_lost_while_its_links_are_counted_is_lost(tmp_path: Path, fact: str) -> None:
    fake = FakeNvml(tmp_path)
    fake.set(fact, 0, "error", "GPU_IS_LOST")
    assert [one["code"] for one in gpu_of(fake)["reasons"]] == ["gpu_lost"]


def test_a_gpu_without_nvlink_is_asked_for_links_once(tmp_path: Path) -> None:
    fake = FakeNvml(tmp_path)
    fake.set("nvlinks", 0, 0)
    with child_of(fake.environment()) as child:
        readings = [child.read()["gpus"][0] for _ in range(25)]
    assert {gpu["unknowns"]["nvlinks_up"] for gpu in readings} == {"not supported by this GPU and driver"}
    assert fake.calls().count("nvmlDeviceGetFieldValues 0") == len(readings) + 1


def test_links_whose_errors_are_unknown_are_counted_all_the_same(tmp_path: Path) -> None:
    fake = FakeNvml(tmp_path)
    fake.unset("nvlink_errors_total")
    gpu = gpu_of(fake)
    assert gpu["nvlinks_up"] == 18
    assert gpu["unknowns"] == {"nvlink_errors": "the installed driver does not say"}
