import pytest

from gpu_agent.probe.merging import merged
from gpu_agent.wire.inventory import Gpu, GpuReport, Outcome

NVIDIA = tuple(
    Gpu(uuid=f"GPU-{number}", name="A100", index=number, pci_bus_id=f"00000000:0{number + 1}:00.0")
    for number in range(2)
)
RADEON = Gpu(uuid="AMD-1", name="Radeon", index=0, vendor="amd", pci_bus_id="0000:41:00.0")
ONE = GpuReport(outcome=Outcome.OK, gpus=NVIDIA, driver_version="570.1", took_ms=3)
AMD = GpuReport(outcome=Outcome.OK, gpus=(RADEON,), driver_version="amdgpu 6.8", took_ms=7)
NOTHING = GpuReport(outcome=Outcome.OK)
NO_DRIVER = GpuReport(outcome=Outcome.NO_DRIVER, detail="No NVIDIA driver was found.")
BARE = GpuReport(outcome=Outcome.NO_DRIVER, detail="The AMD GPU has no driver.")
BROKEN = GpuReport(outcome=Outcome.DRIVER_BROKEN, detail="It is broken.")


def test_gpus_of_all_collectors_make_one_report_and_each_index_is_one_gpus() -> None:
    report = merged(ONE, {"amd": AMD})
    assert [(gpu.uuid, gpu.index) for gpu in report.gpus] == [("GPU-0", 0), ("GPU-1", 1), ("AMD-1", 2)]
    assert (report.outcome, report.driver_version, report.took_ms) == (Outcome.OK, "570.1", 7)


def test_without_collectors_the_report_is_nvmls_own() -> None:
    assert merged(ONE, {}) is ONE


def test_a_gpu_that_two_collectors_list_is_the_first_ones() -> None:
    same_uuid = Gpu(uuid="GPU-0", name="also an A100", index=0)
    same_place = Gpu(uuid="DCGM-2", name="also an A100", index=1, pci_bus_id="0000:02:00.0")
    report = merged(ONE, {"dcgm": GpuReport(outcome=Outcome.OK, gpus=(same_uuid, same_place))})
    assert report.gpus == NVIDIA


def test_slices_share_their_parents_place() -> None:
    slices = tuple(
        Gpu(uuid=f"MIG-{n}", name="1g", parent_uuid="GPU-0", pci_bus_id=NVIDIA[0].pci_bus_id)
        for n in range(3)
    )
    report = merged(GpuReport(outcome=Outcome.OK, gpus=(NVIDIA[0], *slices)), {"amd": AMD})
    assert [gpu.uuid for gpu in report.gpus] == ["GPU-0", "MIG-0", "MIG-1", "MIG-2", "AMD-1"]
    assert report.gpus[-1].index == 1


@pytest.mark.parametrize(
    ("own", "other", "outcome", "detail"),
    [
        (ONE, NOTHING, Outcome.OK, None),
        (ONE, BARE, Outcome.OK, None),
        (ONE, BROKEN, Outcome.OK, "It is broken."),
        (NO_DRIVER, AMD, Outcome.OK, None),
        (BROKEN, AMD, Outcome.OK, "It is broken."),
        (NO_DRIVER, NOTHING, Outcome.NO_DRIVER, "No NVIDIA driver was found."),
        (NO_DRIVER, BARE, Outcome.NO_DRIVER, "No NVIDIA driver was found. The AMD GPU has no driver."),
        (NO_DRIVER, BROKEN, Outcome.DRIVER_BROKEN, "No NVIDIA driver was found. It is broken."),
        (NOTHING, NOTHING, Outcome.OK, None),
        (NOTHING, BROKEN, Outcome.DRIVER_BROKEN, "It is broken."),
        (BROKEN, NOTHING, Outcome.DRIVER_BROKEN, "It is broken."),
        (BROKEN, BROKEN, Outcome.DRIVER_BROKEN, "It is broken."),
    ],
)
def test_one_reading_that_fails_takes_nothing_from_the_others(
    own: GpuReport, other: GpuReport, outcome: Outcome, detail: str | None
) -> None:
    report = merged(own, {"other": other})
    assert (report.outcome, report.detail) == (outcome, detail)
    assert len(report.gpus) == len(own.gpus) + len(other.gpus)
