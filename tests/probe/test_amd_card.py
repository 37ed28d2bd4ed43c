from collections.abc import Mapping
from dataclasses import fields
from os import mkfifo
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gpu_agent.probe.admission import admitted
from gpu_agent.probe.amd_card import Card
from gpu_agent.wire.inventory import Gpu, GpuReport, Health, MemoryKind, Outcome
from tests.probe.amd_tree import MI300X, RX_7900, STRIX_HALO, Sysfs

PLACE = "0000:03:00.0"
FILES_OF = {
    "mem_info_vram_total": "memory_mb",
    "mem_info_vram_used": "memory_used_mb",
    "gpu_busy_percent": "utilization_percent",
    "mem_busy_percent": "memory_utilization_percent",
    "hwmon/hwmon9/temp1_input": "temperature_c",
    "hwmon/hwmon9/power1_input": "power_w",
    "hwmon/hwmon9/power1_cap": "power_limit_w",
    "hwmon/hwmon9/freq1_input": "clock_sm_mhz",
    "hwmon/hwmon9/freq2_input": "clock_memory_mhz",
    "ras/gpu_vram_bad_pages": "retirement_pending",
}


def card(folder: Path, files: Mapping[str, str]) -> Path:
    return Sysfs(folder).card(0, PLACE, files)


def read(device: Path) -> Gpu:
    return Card(device, 0, products={}).gpu()


def test_a_cards_files_become_its_figures(tmp_path: Path) -> None:
    gpu = read(card(tmp_path, RX_7900))
    assert (gpu.uuid, gpu.pci_bus_id, gpu.vendor) == ("AMD-d0e5f1a2b3c4d5e6", PLACE, "amd")
    assert (gpu.memory_mb, gpu.memory_used_mb, gpu.memory_free_mb) == (24576, 3072, 21504)
    assert gpu.memory_kind is MemoryKind.DEDICATED
    assert (gpu.utilization_percent, gpu.memory_utilization_percent) == (37, 9)
    assert (gpu.temperature_c, gpu.power_w, gpu.power_limit_w) == (54, 187, 303)
    assert (gpu.clock_sm_mhz, gpu.clock_memory_mhz) == (2371, 1249)
    assert (gpu.health, gpu.reasons) == (Health.OK, ())
    assert gpu.ecc_uncorrected is None
    assert gpu.unknowns["ecc_uncorrected"] == "umc_err_count: No such file or directory"


def test_what_nvidia_alone_has_is_unknown_with_that_reason(tmp_path: Path) -> None:
    gpu = read(card(tmp_path, RX_7900))
    for name in ("compute_capability", "mig_enabled", "throttle_reasons", "processes"):
        assert getattr(gpu, name) is None
        assert gpu.unknowns[name]


def test_the_power_of_the_moment_stands_where_there_is_no_mean(tmp_path: Path) -> None:
    assert read(card(tmp_path, MI300X)).power_w == 642


def test_a_processors_graphics_have_the_memory_that_they_share(tmp_path: Path) -> None:
    gpu = read(card(tmp_path, STRIX_HALO))
    assert gpu.memory_kind is MemoryKind.UNIFIED
    assert gpu.memory_mb == 96 * 1024 + 512
    assert gpu.memory_used_mb == 2 * 1024 + 256
    assert gpu.uuid == f"AMD-{PLACE}"


def test_an_unknown_use_of_shared_memory_makes_the_whole_use_unknown(tmp_path: Path) -> None:
    gpu = read(card(tmp_path, {**STRIX_HALO, "mem_info_gtt_used": "?"}))
    assert (gpu.memory_mb, gpu.memory_used_mb, gpu.memory_free_mb) == (96 * 1024 + 512, None, None)


def test_a_small_card_that_shares_nothing_is_small(tmp_path: Path) -> None:
    gpu = read(card(tmp_path, {**STRIX_HALO, "mem_info_gtt_total": "0"}))
    assert (gpu.memory_kind, gpu.memory_mb) == (MemoryKind.DEDICATED, 512)


def test_uncorrected_errors_are_summed_over_all_blocks(tmp_path: Path) -> None:
    files = {**MI300X, "ras/umc_err_count": "ue: 3\nce: 9", "ras/gfx_err_count": "ue: 2\nce: 0\nde: 7"}
    assert read(card(tmp_path, files)).ecc_uncorrected == 5


def test_bad_pages_that_are_set_aside_are_no_reason_and_those_still_in_use_are_one(tmp_path: Path) -> None:
    device = card(tmp_path, MI300X)
    assert (read(device).health, read(device).retirement_pending) == (Health.OK, False)
    pages = "0x1 : 0x1000 : R\n0x2 : 0x1000 : P\n0x3 : 0x1000 : F\n"
    (device / "ras" / "gpu_vram_bad_pages").write_text(pages)
    gpu = read(device)
    assert (gpu.health, gpu.retirement_pending) == (Health.DEGRADED, True)
    assert [(one.code, one.detail) for one in gpu.reasons] == [
        ("retired_pages_pending", "2 bad memory pages are not yet set aside")
    ]


def test_a_card_that_fell_off_the_bus_is_lost_with_its_identity_and_without_figures(tmp_path: Path) -> None:
    device = card(tmp_path, MI300X)
    (device / "config").write_bytes(b"\xff" * 64)
    gpu = read(device)
    assert (gpu.health, gpu.uuid) == (Health.LOST, "AMD-8a1b2c3d4e5f6071")
    assert [one.code for one in gpu.reasons] == ["gpu_lost"]
    assert gpu.temperature_c is None
    assert gpu.unknowns["temperature_c"] == "the GPU has fallen off the PCI bus"


def test_a_sleeping_card_is_not_woken(tmp_path: Path) -> None:
    """Reading these files wakes the card: they are pipes here, and a reader of one would wait for ever."""
    device = card(tmp_path, {**RX_7900, "power/runtime_status": "suspended"})
    awake = ("gpu_busy_percent", "mem_busy_percent", "config", *(f for f in RX_7900 if f.startswith("hwmon")))
    for name in awake:
        (device / name).unlink()
        mkfifo(device / name)
    gpu = read(device)
    assert (gpu.uuid, gpu.memory_mb, gpu.health) == ("AMD-d0e5f1a2b3c4d5e6", 24576, Health.OK)
    assert (gpu.asleep, gpu.utilization_percent) == (True, None)
    assert gpu.unknowns["power_w"] == "the GPU sleeps, and is not woken to be asked"


@pytest.mark.parametrize("file", FILES_OF)
@pytest.mark.parametrize("damage", ["missing", "empty", "garbage", "folder", "negative"])
def test_a_damaged_file_costs_its_own_figure_and_no_other(tmp_path: Path, file: str, damage: str) -> None:
    device = card(tmp_path, MI300X)
    whole = read(device)
    path = device / file
    path.unlink()
    if damage == "folder":
        path.mkdir()
    elif damage != "missing":
        path.write_text({"empty": "", "garbage": "N/A\x00", "negative": "-5"}[damage])
    gpu = read(device)
    name = FILES_OF[file]
    if file.endswith("bad_pages") and damage in ("garbage", "negative"):
        return  # a list of pages: what is no page is none
    if (file, damage) != ("hwmon/hwmon9/temp1_input", "negative"):
        assert getattr(gpu, name) is None
        assert gpu.unknowns[name]
    beside = {"memory_mb", "memory_used_mb", "memory_free_mb", "memory_kind"} if "vram" in file else set()
    for field in fields(Gpu):
        if field.name not in {name, "unknowns", *beside}:
            assert getattr(gpu, field.name) == getattr(whole, field.name)


@given(st.dictionaries(st.sampled_from(sorted({*MI300X, *RX_7900})), st.binary(max_size=40), max_size=24))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=150)
def test_whatever_the_files_say_the_card_is_told_of_and_nothing_absurd_of_it(
    tmp_path_factory: pytest.TempPathFactory, said: dict[str, bytes]
) -> None:
    device = card(tmp_path_factory.mktemp("sys"), MI300X)
    for name, words in said.items():
        (device / name).parent.mkdir(parents=True, exist_ok=True)
        (device / name).write_bytes(words)
    gpu = read(device)
    (same,) = admitted(GpuReport(outcome=Outcome.OK, gpus=(gpu,))).gpus
    assert {name: getattr(same, name) for name in FILES_OF.values()} == {
        name: getattr(gpu, name) for name in FILES_OF.values()
    }
