from pathlib import Path

import pytest

from gpu_agent.probe.admission import admitted
from gpu_agent.probe.amd import AmdGpus, products
from gpu_agent.probe.collectors import Surroundings
from gpu_agent.probe.health import HealthKeeper
from gpu_agent.wire.inventory import GpuReport, Health, Outcome
from tests.probe.amd_tree import MI300X, RX_7900, STRIX_HALO, Sysfs

NAMES = """\
# List of AMDGPU IDs
1.0.0
1586,\tC1,\tAMD Radeon 8060S Graphics
744C,\tC8,\tAMD Radeon RX 7900 XTX
rubbish
"""


def read(folder: Path, names: Path = Path("/nowhere")) -> GpuReport:
    return AmdGpus(Surroundings(sys_dir=folder), names=names).read(5)


def test_cards_are_listed_in_the_order_of_their_places_whatever_the_kernel_calls_them(tmp_path: Path) -> None:
    sysfs = Sysfs(tmp_path)
    sysfs.card(0, "0000:83:00.0", MI300X)
    sysfs.card(1, "0000:03:00.0", RX_7900)
    report = read(tmp_path)
    assert report.outcome is Outcome.OK
    assert [(gpu.index, gpu.pci_bus_id, gpu.vendor) for gpu in report.gpus] == [
        (0, "0000:03:00.0", "amd"),
        (1, "0000:83:00.0", "amd"),
    ]


def test_cards_whose_driver_gives_them_the_same_id_are_told_apart_by_their_slots(tmp_path: Path) -> None:
    sysfs = Sysfs(tmp_path)
    for number in range(2):
        sysfs.card(number, f"0000:0{number + 1}:00.0", MI300X)
    sysfs.card(2, "0000:03:00.0", RX_7900)
    gpus = admitted(read(tmp_path)).gpus
    assert [gpu.uuid for gpu in gpus] == ["AMD-0000:01:00.0", "AMD-0000:02:00.0", "AMD-d0e5f1a2b3c4d5e6"]


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


def test_a_gpu_without_its_driver_is_told_with_what_to_do(tmp_path: Path) -> None:
    Sysfs(tmp_path).card(0, "0000:03:00.0", RX_7900, driver=None)
    report = read(tmp_path)
    assert (report.outcome, report.gpus) == (Outcome.NO_DRIVER, ())
    assert "The AMD GPU at 0000:03:00.0 has no driver: load it with `modprobe amdgpu`" in (
        report.detail or ""
    )


def test_a_driver_that_is_loaded_later_is_found_and_so_is_a_card_that_is_put_in_later(tmp_path: Path) -> None:
    sysfs, collector = Sysfs(tmp_path), AmdGpus(Surroundings(sys_dir=tmp_path))
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
    assert len(products(names)) == 2


def test_uncorrected_errors_that_grow_degrade_the_card_and_those_from_before_do_not(tmp_path: Path) -> None:
    sysfs, keeper = Sysfs(tmp_path), HealthKeeper()
    device = sysfs.card(0, "0000:03:00.0", {**MI300X, "ras/umc_err_count": "ue: 2\nce: 0"})
    (gpu,) = keeper.observe(read(tmp_path), now_wall=0, now_mono=0).gpus
    assert (gpu.health, gpu.ecc_uncorrected) == (Health.OK, 2)
    (device / "ras" / "umc_err_count").write_text("ue: 3\nce: 0\n")
    (gpu,) = keeper.observe(read(tmp_path), now_wall=5, now_mono=5).gpus
    assert (gpu.health, [one.code for one in gpu.reasons]) == (Health.DEGRADED, ["ecc_uncorrected"])


def test_a_card_that_is_taken_out_is_lost_and_one_that_falls_asleep_keeps_its_health(tmp_path: Path) -> None:
    sysfs, keeper = Sysfs(tmp_path), HealthKeeper()
    device = sysfs.card(0, "0000:03:00.0", RX_7900)
    keeper.observe(read(tmp_path), now_wall=0, now_mono=0)
    (device / "power" / "runtime_status").write_text("suspended\n")
    (gpu,) = keeper.observe(read(tmp_path), now_wall=5, now_mono=5).gpus
    assert (gpu.health, gpu.asleep) == (Health.OK, True)
    (tmp_path / "class" / "drm" / "card0" / "device").unlink()
    (gpu,) = keeper.observe(read(tmp_path), now_wall=10, now_mono=10).gpus
    assert (gpu.health, gpu.uuid, [one.code for one in gpu.reasons]) == (
        Health.LOST,
        "AMD-d0e5f1a2b3c4d5e6",
        ["gpu_lost"],
    )


def test_the_drivers_own_version_is_told_where_it_has_one(tmp_path: Path) -> None:
    Sysfs(tmp_path).card(0, "0000:03:00.0", RX_7900)
    assert read(tmp_path).driver_version is None
    module = tmp_path / "module" / "amdgpu"
    module.mkdir(parents=True)
    (module / "version").write_text("6.8.5\n")
    assert read(tmp_path).driver_version == "amdgpu 6.8.5"
