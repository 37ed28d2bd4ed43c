from collections.abc import Mapping
from dataclasses import fields
from os import mkfifo
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gpu_agent.probe.collectors.amd import AmdGpus, load_names
from gpu_agent.probe.collectors.protocol import Surroundings
from gpu_agent.probe.collectors.sysfs import (
    link_target_name,
    read_failure,
    read_number,
    read_text,
    uuid_by_address,
)
from gpu_agent.probe.collectors.validation import validate
from gpu_agent.probe.health.tracker import HealthTracker
from gpu_agent.wire.inventory import Gpu, GpuReport, Health, MemoryKind, Outcome
from tests.probe.collectors.amd_tree import MI300X, RX_7900, STRIX_HALO, Sysfs

NAMES = """\
# List of AMDGPU IDs
1.0.0
1586,\tC1,\tAMD Radeon 8060S Graphics
744C,\tC8,\tAMD Radeon RX 7900 XTX
rubbish
"""


def read(folder: Path, names: Path = Path("/nowhere")) -> GpuReport:
    return AmdGpus(around(folder), names=names).read(5)


def around(folder: Path) -> Surroundings:
    return Surroundings(sys_dir=folder, machine_id=Path("/nowhere"))


def by_slot(address: str) -> str:
    return uuid_by_address("AMD", address, around(Path("/nowhere")))


def test_cards_are_listed_in_the_order_of_their_pci_addresses(tmp_path: Path) -> None:
    sysfs = Sysfs(tmp_path)
    sysfs.card(0, "0000:83:00.0", MI300X)
    sysfs.card(1, "0000:03:00.0", RX_7900)
    report = read(tmp_path)
    assert report.outcome is Outcome.OK
    assert [(gpu.index, gpu.pci_bus_id, gpu.vendor) for gpu in report.gpus] == [
        (0, "0000:03:00.0", "amd"),
        (1, "0000:83:00.0", "amd"),
    ]


def test_a_bridge_between_a_card_and_the_bus_does_not_change_the_order(tmp_path: Path) -> None:
    sysfs = Sysfs(tmp_path)
    sysfs.card(0, "0000:03:00.0", RX_7900, bridge="0000:00:1d.0")
    sysfs.card(1, "0000:41:00.0", MI300X, bridge="0000:00:01.0")
    listed = read(tmp_path).gpus
    assert [(gpu.index, gpu.pci_bus_id) for gpu in listed] == [(0, "0000:03:00.0"), (1, "0000:41:00.0")]


def test_cards_with_the_same_id_are_named_by_their_pci_addresses(tmp_path: Path) -> None:
    sysfs = Sysfs(tmp_path)
    for number in range(2):
        sysfs.card(number, f"0000:0{number + 1}:00.0", MI300X)
    sysfs.card(2, "0000:03:00.0", RX_7900)
    gpus = validate(read(tmp_path)).gpus
    assert [gpu.uuid for gpu in gpus] == [
        by_slot("0000:01:00.0"),
        by_slot("0000:02:00.0"),
        "GPU-d0e5f1a2b3c4d5e6",
    ]


def test_connectors_and_cards_of_other_drivers_are_not_listed(tmp_path: Path) -> None:
    sysfs = Sysfs(tmp_path)
    sysfs.card(0, "0000:01:00.0", RX_7900, driver="nvidia")
    sysfs.card(1, "0000:02:00.0", RX_7900, driver="vfio-pci")
    sysfs.card(2, "0000:03:00.0", RX_7900)
    assert [gpu.pci_bus_id for gpu in read(tmp_path).gpus] == ["0000:03:00.0"]


@pytest.mark.parametrize("made", ["", "class/drm", "class"])
def test_a_machine_without_an_amd_gpu_has_none(tmp_path: Path, made: str) -> None:
    (tmp_path / made).mkdir(parents=True, exist_ok=True)
    assert read(tmp_path) == GpuReport(outcome=Outcome.OK)


def test_a_gpu_without_its_driver_is_reported_with_the_next_step(tmp_path: Path) -> None:
    Sysfs(tmp_path).card(0, "0000:03:00.0", RX_7900, driver=None)
    report = read(tmp_path)
    assert (report.outcome, report.gpus) == (Outcome.NO_DRIVER, ())
    assert "The AMD GPU at 0000:03:00.0 has no driver: load it with `modprobe amdgpu`" in (
        report.detail or ""
    )


def test_a_driver_that_is_loaded_later_is_found_and_so_is_a_card_that_is_put_in_later(tmp_path: Path) -> None:
    sysfs, collector = Sysfs(tmp_path), AmdGpus(around(tmp_path))
    assert collector.read(5) == GpuReport(outcome=Outcome.OK)
    device = sysfs.card(0, "0000:03:00.0", RX_7900, driver=None)
    assert collector.read(5).outcome is Outcome.NO_DRIVER
    (device / "driver").symlink_to("../../bus/pci/drivers/vfio-pci")
    assert collector.read(5) == GpuReport(outcome=Outcome.OK)
    sysfs.card(1, "0000:04:00.0", RX_7900)
    assert [gpu.pci_bus_id for gpu in collector.read(5).gpus] == ["0000:04:00.0"]


def test_a_gpu_that_was_handed_to_a_virtual_machine_is_not_missed(tmp_path: Path) -> None:
    Sysfs(tmp_path).card(0, "0000:03:00.0", RX_7900, driver="vfio-pci")
    assert read(tmp_path) == GpuReport(outcome=Outcome.OK)


def test_a_sysfs_that_may_not_be_listed_says_so(tmp_path: Path) -> None:
    (tmp_path / "class" / "drm").mkdir(parents=True)
    (tmp_path / "class" / "drm").chmod(0)
    try:
        report = read(tmp_path)
    finally:
        (tmp_path / "class" / "drm").chmod(0o755)
    if report.outcome is Outcome.OK:
        pytest.skip("the superuser may list everything")
    assert report.outcome is Outcome.DRIVER_BROKEN
    assert "cannot be listed" in (report.detail or "")


def test_a_product_is_named_by_the_driver_else_by_libdrms_table_else_by_its_pci_id(tmp_path: Path) -> None:
    names = tmp_path / "amdgpu.ids"
    names.write_text(NAMES)
    sysfs = Sysfs(tmp_path / "sys")
    sysfs.card(0, "0000:03:00.0", RX_7900)
    sysfs.card(1, "0000:41:00.0", MI300X)
    sysfs.card(2, "0000:c5:00.0", {**STRIX_HALO, "revision": "0x99"})
    assert [gpu.name for gpu in read(tmp_path / "sys", names).gpus] == [
        "AMD Radeon RX 7900 XTX",
        "AMD Instinct MI300X OAM",
        "AMD GPU 1002:1586",
    ]
    assert len(load_names(names)) == 2


def test_uncorrected_errors_that_grow_degrade_the_card_and_those_from_before_do_not(tmp_path: Path) -> None:
    sysfs, tracker = Sysfs(tmp_path), HealthTracker()
    device = sysfs.card(0, "0000:03:00.0", {**MI300X, "ras/umc_err_count": "ue: 2\nce: 0"})
    (gpu,) = tracker.observe(read(tmp_path), now_wall=0, now_mono=0).gpus
    assert (gpu.health, gpu.ecc_uncorrected) == (Health.OK, 2)
    (device / "ras" / "umc_err_count").write_text("ue: 3\nce: 0\n")
    (gpu,) = tracker.observe(read(tmp_path), now_wall=5, now_mono=5).gpus
    assert (gpu.health, [one.code for one in gpu.reasons]) == (Health.DEGRADED, ["ecc_uncorrected"])


def test_a_removed_card_is_lost_and_a_suspended_card_has_its_health_unchanged(tmp_path: Path) -> None:
    sysfs, tracker = Sysfs(tmp_path), HealthTracker()
    device = sysfs.card(0, "0000:03:00.0", RX_7900)
    tracker.observe(read(tmp_path), now_wall=0, now_mono=0)
    (device / "power" / "runtime_status").write_text("suspended\n")
    (gpu,) = tracker.observe(read(tmp_path), now_wall=5, now_mono=5).gpus
    assert (gpu.health, gpu.asleep) == (Health.OK, True)
    (tmp_path / "class" / "drm" / "card0" / "device").unlink()
    (gpu,) = tracker.observe(read(tmp_path), now_wall=10, now_mono=10).gpus
    assert (gpu.health, gpu.uuid, [one.code for one in gpu.reasons]) == (
        Health.LOST,
        "GPU-d0e5f1a2b3c4d5e6",
        ["gpu_lost"],
    )


def test_the_drivers_own_version_is_reported_where_it_has_one(tmp_path: Path) -> None:
    Sysfs(tmp_path).card(0, "0000:03:00.0", RX_7900)
    assert read(tmp_path).driver_version is None
    module = tmp_path / "module" / "amdgpu"
    module.mkdir(parents=True)
    (module / "version").write_text("6.8.5\n")
    assert read(tmp_path).driver_version == "amdgpu 6.8.5"


ADDRESS = "0000:03:00.0"
FILES_OF = {
    "mem_info_vram_total": "memory_mb",
    "mem_info_vram_used": "memory_used_mb",
    "gpu_busy_percent": "utilization_percent",
    "mem_busy_percent": "memory_utilization_percent",
    "hwmon/hwmon9/temp2_input": "temperature_c",
    "hwmon/hwmon9/power1_input": "power_w",
    "hwmon/hwmon9/power1_cap": "power_limit_w",
    "hwmon/hwmon9/freq1_input": "clock_sm_mhz",
    "hwmon/hwmon9/freq2_input": "clock_memory_mhz",
    "ras/gpu_vram_bad_pages": "retirement_pending",
    "pcie_replay_count": "pcie_replays",
}


def card(folder: Path, files: Mapping[str, str]) -> Path:
    return Sysfs(folder).card(0, ADDRESS, files)


def amd_card_read(device: Path) -> Gpu:
    """What the collector reads of the one card of a machine."""
    (gpu,) = read(device.parent.parent.parent).gpus
    return gpu


def test_a_cards_files_become_its_figures(tmp_path: Path) -> None:
    gpu = amd_card_read(card(tmp_path, RX_7900))
    assert (gpu.uuid, gpu.pci_bus_id, gpu.vendor) == ("GPU-d0e5f1a2b3c4d5e6", ADDRESS, "amd")
    assert (gpu.memory_mb, gpu.memory_used_mb, gpu.memory_free_mb) == (24576, 3072, 21504)
    assert gpu.memory_kind is MemoryKind.DEDICATED
    assert (gpu.utilization_percent, gpu.memory_utilization_percent) == (37, 9)
    assert (gpu.temperature_c, gpu.power_w, gpu.power_limit_w) == (54, 187, 303)
    assert (gpu.clock_sm_mhz, gpu.clock_memory_mhz) == (2371, 1249)
    assert (gpu.health, gpu.reasons) == (Health.OK, ())
    assert gpu.ecc_uncorrected is None
    assert gpu.unknowns["ecc_uncorrected"] == "umc_err_count: No such file or directory"


@pytest.mark.parametrize(
    "files",
    [
        RX_7900,
        MI300X,
        STRIX_HALO,
        {**RX_7900, "mem_info_vram_total": "?"},
        {**RX_7900, "mem_info_vram_used": "?"},
        {**RX_7900, "power/runtime_status": "suspended"},
        {"power/runtime_status": "active"},
    ],
    ids=["rx-7900", "mi300x", "strix-halo", "no-memory", "no-use", "suspended", "no-files"],
)
@pytest.mark.parametrize("config", [b"\x02\x10\x4c\x74", b"\xff" * 4], ids=["answers", "off-the-bus"])
def test_every_figure_that_is_unknown_has_a_reason(
    tmp_path: Path, files: Mapping[str, str], config: bytes
) -> None:
    device = card(tmp_path, files)
    (device / "config").write_bytes(config)
    (gpu,) = validate(GpuReport(outcome=Outcome.OK, gpus=(amd_card_read(device),))).gpus
    no_figures = {
        "parent_uuid",
        "gpu_instance",
        "asleep",
        "visible",
    }  # no MIG device, never asleep, no CUDA_VISIBLE_DEVICES
    unknown = {one.name for one in fields(gpu) if getattr(gpu, one.name) is None} - no_figures
    assert sorted(unknown - gpu.unknowns.keys()) == []
    assert {"compute_capability", "energy_mj", "memory_reserved_mb", "recovery_action"} <= unknown


def test_the_current_power_is_read_where_there_is_no_average(tmp_path: Path) -> None:
    assert amd_card_read(card(tmp_path, MI300X)).power_w == 642


def test_the_labels_of_sensors_are_read_once_for_all_figures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[str] = []

    def note(path: Path, *, longest_bytes: int = 65_536) -> str | None:
        opened.append(path.name)
        return read_text(path, longest_bytes=longest_bytes)

    monkeypatch.setattr("gpu_agent.probe.collectors.sysfs.read_text", note)
    clocks = {"hwmon/hwmon9/freq1_label": "mclk", "hwmon/hwmon9/freq2_label": "sclk"}
    gpu = amd_card_read(card(tmp_path, {**MI300X, **clocks}))
    assert (gpu.temperature_c, gpu.clock_sm_mhz, gpu.clock_memory_mhz) == (61, 1300, 2100)
    labels = [name for name in opened if name.endswith("_label")]
    assert sorted(labels) == ["freq1_label", "freq2_label", "temp2_label", "temp3_label"]


def test_a_processors_graphics_have_the_memory_that_they_share(tmp_path: Path) -> None:
    gpu = amd_card_read(card(tmp_path, STRIX_HALO))
    assert gpu.memory_kind is MemoryKind.UNIFIED
    assert gpu.memory_mb == 96 * 1024 + 512
    assert gpu.memory_used_mb == 2 * 1024 + 256
    assert gpu.uuid == by_slot(ADDRESS)


def test_an_unknown_use_of_shared_memory_makes_the_whole_use_unknown(tmp_path: Path) -> None:
    gpu = amd_card_read(card(tmp_path, {**STRIX_HALO, "mem_info_gtt_used": "?"}))
    assert (gpu.memory_mb, gpu.memory_used_mb, gpu.memory_free_mb) == (96 * 1024 + 512, None, None)
    assert gpu.unknowns["memory_used_mb"] == "mem_info_gtt_used says '?'"


def test_a_small_card_that_shares_nothing_is_small(tmp_path: Path) -> None:
    gpu = amd_card_read(card(tmp_path, {**STRIX_HALO, "mem_info_gtt_total": "0"}))
    assert (gpu.memory_kind, gpu.memory_mb) == (MemoryKind.DEDICATED, 512)


def test_uncorrected_errors_are_summed_over_all_blocks(tmp_path: Path) -> None:
    files = {**MI300X, "ras/umc_err_count": "ue: 3\nce: 9", "ras/gfx_err_count": "ue: 2\nce: 0\nde: 7"}
    assert amd_card_read(card(tmp_path, files)).ecc_uncorrected == 5


def test_bad_pages_that_are_set_aside_are_no_reason_and_those_still_in_use_are_one(tmp_path: Path) -> None:
    device = card(tmp_path, MI300X)
    assert (amd_card_read(device).health, amd_card_read(device).retirement_pending) == (Health.OK, False)
    pages = "0x1 : 0x1000 : R\n0x2 : 0x1000 : P\n0x3 : 0x1000 : F\n"
    (device / "ras" / "gpu_vram_bad_pages").write_text(pages)
    gpu = amd_card_read(device)
    assert (gpu.health, gpu.retirement_pending) == (Health.DEGRADED, True)
    assert [(one.code, one.detail) for one in gpu.reasons] == [
        ("retired_pages_pending", "2 bad memory pages are not yet set aside")
    ]


def test_a_card_that_fell_off_the_bus_is_lost_with_its_identity_and_without_figures(tmp_path: Path) -> None:
    device = card(tmp_path, MI300X)
    (device / "config").write_bytes(b"\xff" * 64)
    gpu = amd_card_read(device)
    assert (gpu.health, gpu.uuid) == (Health.LOST, "GPU-8a1b2c3d4e5f6071")
    assert [one.code for one in gpu.reasons] == ["gpu_lost"]
    assert gpu.temperature_c is None
    assert gpu.unknowns["temperature_c"] == "the GPU has fallen off the PCI bus"


def test_a_suspended_card_is_not_woken(tmp_path: Path) -> None:
    """Reading these files wakes the card: they are pipes here, and a reader of one would wait for ever."""
    device = card(tmp_path, {**RX_7900, "power/runtime_status": "suspended"})
    awake = ("gpu_busy_percent", "mem_busy_percent", "config", *(f for f in RX_7900 if f.startswith("hwmon")))
    for name in awake:
        (device / name).unlink()
        mkfifo(device / name)
    gpu = amd_card_read(device)
    assert (gpu.uuid, gpu.memory_mb, gpu.health) == ("GPU-d0e5f1a2b3c4d5e6", 24576, Health.OK)
    assert (gpu.asleep, gpu.utilization_percent) == (True, None)
    assert gpu.unknowns["power_w"] == "the GPU is suspended and was not read, so as not to wake it"


@pytest.mark.parametrize("file", FILES_OF)
@pytest.mark.parametrize("damage", ["missing", "empty", "garbage", "folder", "negative"])
def test_a_damaged_file_costs_its_own_figure_and_no_other(tmp_path: Path, file: str, damage: str) -> None:
    device = card(tmp_path, MI300X)
    whole = amd_card_read(device)
    path = device / file
    path.unlink()
    if damage == "folder":
        path.mkdir()
    elif damage != "missing":
        path.write_text({"empty": "", "garbage": "N/A\x00", "negative": "-5"}[damage])
    gpu = amd_card_read(device)
    name = FILES_OF[file]
    if file.endswith("bad_pages") and damage in ("garbage", "negative"):
        return  # a list of pages: what is no page is none
    if (file, damage) != ("hwmon/hwmon9/temp2_input", "negative"):
        assert getattr(gpu, name) is None
        assert gpu.unknowns[name]
    beside = {"memory_mb", "memory_used_mb", "memory_free_mb", "memory_kind"} if "vram" in file else set()
    for field in fields(Gpu):
        if field.name not in {name, "unknowns", *beside}:
            assert getattr(gpu, field.name) == getattr(whole, field.name)


@given(st.dictionaries(st.sampled_from(sorted({*MI300X, *RX_7900})), st.binary(max_size=40), max_size=24))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=150)
def test_whatever_the_files_hold_the_card_is_listed_without_absurd_figures(
    tmp_path_factory: pytest.TempPathFactory, said: dict[str, bytes]
) -> None:
    device = card(tmp_path_factory.mktemp("sys"), MI300X)
    for name, words in said.items():
        (device / name).parent.mkdir(parents=True, exist_ok=True)
        (device / name).write_bytes(words)
    gpu = amd_card_read(device)
    (same,) = validate(GpuReport(outcome=Outcome.OK, gpus=(gpu,))).gpus
    assert {name: getattr(same, name) for name in FILES_OF.values()} == {
        name: getattr(gpu, name) for name in FILES_OF.values()
    }


@pytest.mark.parametrize(
    ("said", "base", "means"),
    [
        (b"42\n", 10, 42),
        (b"-7", 10, -7),
        (b"0x1002\n", 16, 0x1002),
        (b"d0e5\n", 16, 0xD0E5),
        (b"", 10, None),
        (b"\n", 10, None),
        (b"N/A", 10, None),
        (b"\xff\xfe\x00", 10, None),
        (b"9" * 5000, 10, int("9" * 64)),
        (b"1 2", 10, None),
    ],
)
def test_a_number_is_read_or_unknown(tmp_path: Path, said: bytes, base: int, means: int | None) -> None:
    (tmp_path / "f").write_bytes(said)
    assert read_number(tmp_path / "f", base=base) == means


def test_a_file_that_cannot_be_read_is_unknown_with_the_reason(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    for name in ("missing", "folder", "x" * 300, "nul\0"):
        assert read_text(tmp_path / name) is None
        assert read_number(tmp_path / name) is None
    assert read_failure(tmp_path / "missing") == "missing: No such file or directory"
    assert read_failure(tmp_path / "folder") == "folder: Is a directory"


def test_no_more_is_read_than_the_bound(tmp_path: Path) -> None:
    (tmp_path / "endless").write_bytes(b"x" * 1_000_000)
    assert len(read_text(tmp_path / "endless") or "") == 65_536


def test_a_files_content_is_shown_shortly(tmp_path: Path) -> None:
    (tmp_path / "f").write_text("not a number at all, and rather long at that")
    assert read_failure(tmp_path / "f") == "f says 'not a number at all, and rather long at'"
    (tmp_path / "f").write_text("")
    assert read_failure(tmp_path / "f") == "f is empty"


def test_a_link_is_known_by_its_last_step(tmp_path: Path) -> None:
    (tmp_path / "driver").symlink_to("../../bus/pci/drivers/amdgpu")
    assert link_target_name(tmp_path / "driver") == "amdgpu"
    assert link_target_name(tmp_path / "none") is None


def test_a_name_without_a_printable_character_is_none(tmp_path: Path) -> None:
    gpu = amd_card_read(card(tmp_path, {**MI300X, "product_name": "\0"}))
    assert validate(GpuReport(outcome=Outcome.OK, gpus=(gpu,))).gpus[0].name == gpu.name
