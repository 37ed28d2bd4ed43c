import pytest

from gpu_agent.wire.inventory import Gpu, GpuReport, Health, Outcome


@pytest.mark.parametrize(
    ("health", "usable"),
    [(Health.OK, True), (Health.DEGRADED, True), (Health.LOST, False), (Health.UNKNOWN, False)],
)
def test_only_ok_and_degraded_gpus_are_usable(health: Health, *, usable: bool) -> None:
    assert health.usable is usable


def test_the_parent_of_mig_slices_takes_no_job_but_its_slices_do() -> None:
    parent = Gpu(uuid="GPU-1", name="A100")
    piece = Gpu(uuid="MIG-1", name="A100 MIG 1g.10gb", parent_uuid="GPU-1")
    lost = Gpu(uuid="GPU-2", name="A100", health=Health.LOST)
    report = GpuReport(outcome=Outcome.OK, gpus=(parent, piece, lost))
    assert report.usable == (piece,)
