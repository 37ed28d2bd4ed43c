"""Whole machines (`machines/*.txt`) as the collectors read them."""

import random
from collections.abc import Mapping
from pathlib import Path
from shutil import rmtree
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpu_agent.probe.collectors.amd import AmdGpus
from gpu_agent.probe.collectors.intel import IntelGpus
from gpu_agent.probe.collectors.protocol import Surroundings
from gpu_agent.probe.collectors.runner import merge_reports
from gpu_agent.probe.collectors.validation import validate
from gpu_agent.probe.health.tracker import HealthTracker
from gpu_agent.probe.snapshot import COULD_REGISTER, NO_GPU, exit_code
from gpu_agent.records import field_names
from gpu_agent.wire.declaration import Owner, declare
from gpu_agent.wire.inventory import (
    Gpu,
    GpuProcess,
    GpuReport,
    Health,
    Host,
    Inventory,
    MemoryKind,
    Outcome,
)
from tests.probe.collectors.amd_tree import Sysfs
from tests.probe.collectors.machines import NAMES, unpack

NVML_ABSENT = GpuReport(outcome=Outcome.NO_DRIVER, detail="No NVIDIA driver was found.")
MIB = 1 << 20


def read(name: str, folder: Path, *, offers: bool = False) -> tuple[Gpu, ...]:
    """The GPUs of both collectors on a machine; every unknown figure must have a reason."""
    return gpus_of(report(name, folder, offers=offers))


def report(name: str, folder: Path, *, offers: bool = False) -> GpuReport:
    machine_id = folder / "machine-id"
    machine_id.write_text("4c2f0e8a1b9d4f6e8a7c5d3b2e1f0a9b\n")
    around = Surroundings(
        sys_dir=unpack(name, folder / "sys"), machine_id=machine_id, offer_integrated_gpus=offers
    )
    reports = {"amd": AmdGpus(around).read(5), "intel": IntelGpus(around).read(5)}
    return merge_reports(NVML_ABSENT, {name: validate(one) for name, one in reports.items()})


def gpus_of(found: GpuReport) -> tuple[Gpu, ...]:
    known_by_absence = {"parent_uuid", "gpu_instance", "asleep", "visible"}
    for gpu in found.gpus:
        unknown = {each for each in field_names(Gpu) if getattr(gpu, each) is None} - known_by_absence
        assert sorted(unknown - gpu.unknowns.keys()) == []
    return found.gpus


def inventory(found: GpuReport) -> Inventory:
    host = Host(
        cpu_logical_cores=8,
        cpu_physical_cores=8,
        memory_total_mb=65536,
        memory_used_mb=None,
        memory_available_mb=None,
        platform="linux",
    )
    return Inventory(host=host, gpu=found)


def figures(gpu: Gpu, *names: str) -> Mapping[str, object]:
    return {name: getattr(gpu, name) for name in names}


def test_every_recorded_machine_is_read_here() -> None:
    assert set(NAMES) == {
        "arc-b580",
        "data-center-gpus",
        "mi210",
        "mi300x-cpx",
        "mi300x-spx",
        "rx7900",
        "ryzen-apu",
        "ryzen-apu-and-rx7900",
        "t4s-and-apu",
    }


def test_mi300x_in_spx_are_whole_gpus_with_the_id_of_rocm_and_the_junctions_heat(
    tmp_path: Path,
) -> None:
    idle, busy = read("mi300x-spx", tmp_path)
    assert (busy.uuid, busy.name) == ("GPU-3cbe002bd3b6313d", "AMD Instinct MI300X OAM")
    assert figures(busy, "memory_mb", "temperature_c", "power_w", "power_limit_w", "clock_sm_mhz") == {
        "memory_mb": 206141652992 // MIB,
        "temperature_c": 61,
        "power_w": 642,
        "power_limit_w": 750,
        "clock_sm_mhz": 2103,
    }
    assert busy.processes == (GpuProcess(pid=4711, memory_mb=119185342464 // MIB),)
    assert (idle.uuid, idle.processes) == ("GPU-8a1b2c3d4e5f6071", ())
    assert {gpu.parent_uuid for gpu in (idle, busy)} == {None}


def test_an_mi300x_in_cpx_is_a_parent_with_eight_parts_that_take_the_jobs(tmp_path: Path) -> None:
    found = report("mi300x-cpx", tmp_path)
    parent, *parts = gpus_of(found)
    assert (parent.uuid, parent.name) == ("GPU-3cbe002bd3b6313d", "AMD Instinct MI300X OAM")
    assert parent.temperature_c == 61
    assert parent.processes == (GpuProcess(pid=900, memory_mb=2 * 14495514624 // MIB),)
    assert [part.uuid for part in parts] == [f"GPU-5d00a1b2c3d4000{number}" for number in range(8)]
    assert {part.name for part in parts} == {"AMD Instinct MI300X OAM partition CPX NPS4"}
    assert {part.parent_uuid for part in parts} == {parent.uuid}
    assert {part.memory_mb for part in parts} == {206141652992 // 8 // MIB}
    assert [len(part.processes or ()) for part in parts] == [0, 1, 1, 0, 0, 0, 0, 0]
    assert parts[0].unknowns["temperature_c"] == "reported for the whole card only"
    assert [gpu.uuid for gpu in found.usable] == [part.uuid for part in parts]


def test_a_card_that_changes_its_partitions_is_read_again(tmp_path: Path) -> None:
    root = unpack("mi300x-cpx", tmp_path)
    collector = AmdGpus(Surroundings(sys_dir=root))
    assert len(collector.read(5).gpus) == 9
    topology = root / "class" / "kfd" / "kfd" / "topology"
    for number in range(3, 10):
        rmtree(topology / "nodes" / str(number))
    (topology / "generation_id").write_text("3\n")
    (whole,) = collector.read(5).gpus
    assert whole.parent_uuid is None


def test_parts_to_which_an_older_driver_gives_one_id_are_numbered(tmp_path: Path) -> None:
    root = unpack("mi300x-cpx", tmp_path)
    for properties in root.glob("class/kfd/kfd/topology/nodes/*/properties"):
        text = properties.read_text()
        lines = [
            "unique_id 4376936076086227261" if "unique_id" in line else line for line in text.split("\n")
        ]
        properties.write_text("\n".join(lines))
    parent, *parts = validate(AmdGpus(Surroundings(sys_dir=root)).read(5)).gpus
    assert [part.uuid for part in parts] == [f"{parent.uuid}-{number}" for number in range(8)]


def test_a_partitioned_card_that_falls_off_the_bus_takes_its_parts_along(tmp_path: Path) -> None:
    root = unpack("mi300x-cpx", tmp_path)
    (root / "devices" / "pci0000:00" / "0000:47:00.0" / "config").write_bytes(b"\xff" * 64)
    found = AmdGpus(Surroundings(sys_dir=root)).read(5)
    judged = HealthTracker().observe(validate(found), now_wall=0, now_mono=0)
    assert {gpu.health for gpu in judged.gpus} == {Health.LOST}
    assert judged.usable == ()


def test_an_mi210_reports_three_temperatures_its_errors_and_a_page_that_waits(tmp_path: Path) -> None:
    (gpu,) = read("mi210", tmp_path)
    assert figures(gpu, "uuid", "temperature_c", "power_w", "ecc_uncorrected", "processes") == {
        "uuid": "GPU-1d2c3b4a59687786",
        "temperature_c": 42,
        "power_w": 41,
        "ecc_uncorrected": 2,
        "processes": (),
    }
    assert [(one.code, one.detail) for one in gpu.reasons] == [
        ("retired_pages_pending", "1 bad memory page is not yet set aside")
    ]


def test_an_rx_7900_is_a_gpu_of_its_own_memory(tmp_path: Path) -> None:
    (gpu,) = read("rx7900", tmp_path)
    assert (gpu.uuid, gpu.memory_kind, gpu.memory_mb) == (
        "GPU-d0e5f1a2b3c4d5e6",
        MemoryKind.DEDICATED,
        25753026560 // MIB,
    )
    assert (gpu.temperature_c, gpu.offered) == (67, True)
    assert gpu.processes == (GpuProcess(pid=1969, memory_mb=500),)


@pytest.mark.parametrize("name", ["ryzen-apu-and-rx7900", "t4s-and-apu", "ryzen-apu", "arc-b580"])
def test_a_processors_graphics_are_listed_and_offered_only_if_the_owner_says_so(
    tmp_path: Path, name: str
) -> None:
    found = report(name, tmp_path)
    (integrated,) = [gpu for gpu in gpus_of(found) if not gpu.offered]
    assert integrated.memory_kind is MemoryKind.UNIFIED
    assert integrated not in found.usable
    declared = declare(inventory(found), Owner()).hardware.gpus
    assert [gpu.uuid for gpu in declared] == [gpu.uuid for gpu in found.gpus if gpu.offered]
    assert exit_code(inventory(found)) == (COULD_REGISTER if declared else NO_GPU)
    assert ("are not offered: set `offer_integrated_gpus`" in str(found.detail)) is (not declared)
    assert (found.outcome is Outcome.OK) is bool(declared)
    assert (str(NVML_ABSENT.detail) in str(found.detail)) is (not declared)
    rmtree(tmp_path / "sys")
    assert {gpu.offered for gpu in read(name, tmp_path, offers=True)} == {True}


def test_graphics_with_memory_set_aside_for_them_are_still_a_processors(tmp_path: Path) -> None:
    (gpu,) = read("ryzen-apu", tmp_path)
    assert (gpu.memory_mb, gpu.offered) == ((68719476736 + 33285996544) // MIB, False)
    assert (gpu.name, gpu.temperature_c, gpu.power_w) == ("AMD GPU 1002:1586", 43, 9.1)


def test_a_card_without_an_id_is_named_by_its_slot_in_this_machine(tmp_path: Path) -> None:
    (one,) = read("ryzen-apu", tmp_path)
    assert one.uuid.startswith("AMD-")
    assert one.uuid.endswith("-0000:c5:00.0")
    assert "4c2f0e8a" not in one.uuid
    elsewhere = tmp_path / "other-id"
    elsewhere.write_text("0" * 32)
    around = Surroundings(sys_dir=tmp_path / "sys", machine_id=elsewhere)
    (other,) = AmdGpus(around).read(5).gpus
    assert other.uuid != one.uuid
    nameless = Surroundings(sys_dir=tmp_path / "sys", machine_id=tmp_path / "missing")
    assert len({gpu.uuid for _ in range(2) for gpu in AmdGpus(nameless).read(5).gpus}) == 1


@pytest.mark.parametrize("name", ["rx7900", "t4s-and-apu"])
def test_a_card_to_which_the_compute_driver_gives_no_work_is_no_gpu(tmp_path: Path, name: str) -> None:
    root = unpack(name, tmp_path)
    rmtree(root / "class" / "kfd")
    found = AmdGpus(Surroundings(sys_dir=root)).read(5)
    assert (found.outcome, found.gpus) == (Outcome.NO_DRIVER, ())
    assert "takes no computing work: /sys/class/kfd does not list it" in str(found.detail)
    nvidia = GpuReport(outcome=Outcome.OK, gpus=(Gpu(uuid="GPU-t4", name="Tesla T4", memory_mb=15360),))
    assert merge_reports(nvidia, {"amd": found}).detail is None


def test_an_arc_reports_what_xe_knows_and_says_what_it_does_not(tmp_path: Path) -> None:
    integrated, arc = read("arc-b580", tmp_path)
    assert (arc.name, arc.vendor, arc.memory_mb) == ("Intel Arc B580", "intel", 12878610432 // MIB)
    assert figures(arc, "temperature_c", "power_limit_w", "energy_mj", "clock_sm_mhz") == {
        "temperature_c": 52,
        "power_limit_w": 190,
        "energy_mj": 83749120,
        "clock_sm_mhz": 2850,
    }
    assert (arc.utilization_percent, arc.processes, arc.memory_used_mb) == (None, None, None)
    assert (integrated.name, integrated.clock_sm_mhz) == ("Intel GPU 8086:a780", 300)
    assert (integrated.memory_mb, integrated.unknowns["memory_mb"]) == (None, "it shares the machine's")


def test_data_center_gpus_report_the_memory_that_their_driver_reports(tmp_path: Path) -> None:
    first, second = read("data-center-gpus", tmp_path)
    assert (first.name, first.memory_mb, first.clock_sm_mhz) == (
        "Intel Data Center GPU Max 1550",
        2 * 65536,
        1600,
    )
    assert (second.name, second.memory_mb, second.clock_sm_mhz) == (
        "Intel Data Center GPU Flex 170",
        15170797568 // MIB,
        2050,
    )
    (tmp_path / "sys" / "class" / "drm" / "card2" / "lmem_total_bytes").unlink()
    (_, bare) = IntelGpus(Surroundings(sys_dir=tmp_path / "sys")).read(5).gpus
    assert (bare.memory_mb, bare.memory_kind) == (None, MemoryKind.UNKNOWN)
    assert bare.unknowns["memory_mb"] == "its driver does not report it in sysfs"


def test_an_intel_gpu_without_its_driver_is_reported_with_the_next_step(tmp_path: Path) -> None:
    root = unpack("data-center-gpus", tmp_path)
    for card in (1, 2):
        (root / "class" / "drm" / f"card{card}" / "device").unlink()
    for device in root.glob("devices/pci0000:00/*"):
        (device / "driver").unlink()
    found = IntelGpus(Surroundings(sys_dir=root)).read(5)
    assert (found.outcome, found.gpus) == (Outcome.NO_DRIVER, ())
    assert "The Intel GPU at 0000:29:00.0 has no driver: load it with `modprobe xe`" in str(found.detail)


@pytest.mark.parametrize(
    ("files", "memory_kind"),
    [
        ({"device": "0x56c0"}, MemoryKind.UNKNOWN),
        ({"device": "0x9999", "tile0/physical_vram_size_bytes": str(16 << 30)}, MemoryKind.DEDICATED),
    ],
)
def test_an_intel_card_that_a_virtual_machine_has_at_the_processors_address_is_a_card(
    tmp_path: Path, files: Mapping[str, str], memory_kind: MemoryKind
) -> None:
    sysfs = Sysfs(tmp_path)
    sysfs.card(0, "0000:00:02.0", {"vendor": "0x8086", "class": "0x030000", **files}, driver="xe")
    (gpu,) = IntelGpus(Surroundings(sys_dir=tmp_path)).read(5).gpus
    assert (gpu.offered, gpu.memory_kind) == (True, memory_kind)
    assert gpu.unknowns.get("memory_mb") != "it shares the machine's"


@pytest.mark.parametrize(
    ("device", "outcome"), [("0x56c0", Outcome.NO_DRIVER), ("0xa780", Outcome.OK)], ids=["card", "processor"]
)
def test_a_driver_is_missed_for_a_card_at_the_processors_address_and_not_for_the_processor(
    tmp_path: Path, device: str, outcome: Outcome
) -> None:
    files = {"vendor": "0x8086", "class": "0x030000", "device": device}
    Sysfs(tmp_path).card(0, "0000:00:02.0", files, driver=None)
    assert IntelGpus(Surroundings(sys_dir=tmp_path)).read(5).outcome is outcome


def test_a_processors_graphics_without_a_driver_hide_no_card_without_one(tmp_path: Path) -> None:
    sysfs = Sysfs(tmp_path)
    for number, (address, device) in enumerate((("0000:00:02.0", "0xa780"), ("0000:03:00.0", "0xe20b"))):
        files = {"vendor": "0x8086", "class": "0x030000", "device": device}
        sysfs.card(number, address, files, driver=None)
    found = IntelGpus(Surroundings(sys_dir=tmp_path)).read(5)
    assert "The Intel GPU at 0000:03:00.0 has no driver" in str(found.detail)


def test_intels_cards_are_listed_in_the_order_of_their_pci_addresses(tmp_path: Path) -> None:
    sysfs = Sysfs(tmp_path)
    files = {"vendor": "0x8086", "class": "0x030000", "device": "0xe20b"}
    sysfs.card(0, "0000:03:00.0", files, driver="xe", bridge="0000:00:1d.0")
    sysfs.card(1, "0000:41:00.0", files, driver="xe", bridge="0000:00:01.0")
    listed = IntelGpus(Surroundings(sys_dir=tmp_path)).read(5).gpus
    assert [(gpu.index, gpu.pci_bus_id) for gpu in listed] == [(0, "0000:03:00.0"), (1, "0000:41:00.0")]


def test_a_sleeping_or_fallen_intel_gpu_has_its_identity_and_no_figures(tmp_path: Path) -> None:
    root = unpack("data-center-gpus", tmp_path)
    first, second = sorted(root.glob("devices/pci0000:00/*"))
    (first / "power" / "runtime_status").write_text("suspended\n")
    (second / "config").write_bytes(b"\xff" * 64)
    asleep, fallen = validate(IntelGpus(Surroundings(sys_dir=root)).read(5)).gpus
    assert (asleep.asleep, asleep.health, asleep.temperature_c) == (True, Health.OK, None)
    assert "so as not to wake it" in asleep.unknowns["power_limit_w"]
    assert (fallen.health, [one.code for one in fallen.reasons]) == (Health.LOST, ["gpu_lost"])


@given(name=st.sampled_from(NAMES), seed=st.integers(0, 2**32))
@settings(max_examples=120)
def test_whatever_a_machines_files_hold_its_gpus_are_listed_without_rubbish(name: str, seed: int) -> None:
    dice = random.Random(seed)  # noqa: S311  faults, not secrets
    with TemporaryDirectory() as temporary:
        folder = Path(temporary)
        root = unpack(name, folder / "sys")
        for path in dice.sample(
            files := [each for each in root.rglob("*") if each.is_file()], len(files) // 3
        ):
            path.unlink(missing_ok=True)
            match dice.randrange(5):
                case 0:
                    path.mkdir()
                case 1:
                    path.write_bytes(dice.randbytes(dice.randint(0, 60)))
                case 2:
                    path.write_text(f"{dice.choice((-1, 0, 2**64 - 1, 2**70))}\n", encoding="ascii")
                case 3:
                    path.write_text(
                        f"simd_count {2**80}\nlocation_id {2**40}\nunique_id 7\n", encoding="ascii"
                    )
                case _:
                    pass
        around = Surroundings(sys_dir=root, machine_id=folder / "none")
        for made in (AmdGpus(around), IntelGpus(around)):
            first, second = made.read(5), made.read(5)
            assert first == second
            assert validate(first).gpus == gpus_of(validate(first))
