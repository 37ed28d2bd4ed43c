"""GPUs whose polling is off: who they are stays, how they were goes."""

from gpu_agent.probe.at_rest import at_rest
from gpu_agent.wire.inventory import Gpu, GpuProcess, GpuReport, Health, HealthReason, Outcome

READ = Gpu(
    uuid="GPU-1",
    name="RTX 4090",
    index=0,
    memory_mb=24_564,
    memory_used_mb=1_000,
    temperature_c=50,
    processes=(GpuProcess(pid=1),),
    visible=True,
    health=Health.DEGRADED,
    reasons=(HealthReason(code="row_remap_pending", detail="rows wait"),),
    events={"xid_13": 1},
    unknowns={"mig_enabled": "not supported", "power_w": "not supported"},
)


def test_identity_and_health_stay_and_figures_are_unknown_with_the_reason() -> None:
    (gpu,) = at_rest(GpuReport(outcome=Outcome.OK, gpus=(READ,), driver_version="570.1")).gpus
    assert (gpu.uuid, gpu.name, gpu.memory_mb, gpu.visible) == ("GPU-1", "RTX 4090", 24_564, True)
    assert (gpu.health, gpu.reasons) == (Health.DEGRADED, READ.reasons)
    assert (gpu.memory_used_mb, gpu.temperature_c, gpu.processes) == (None, None, None)
    for name in ("memory_used_mb", "temperature_c", "processes", "power_w"):
        assert "poll_gpus" in gpu.unknowns[name]
    assert gpu.unknowns["mig_enabled"] == "not supported"


def test_what_happened_before_is_not_told_again() -> None:
    (gpu,) = at_rest(GpuReport(outcome=Outcome.OK, gpus=(READ,))).gpus
    assert gpu.events == {}


def test_the_machines_versions_stay() -> None:
    assert at_rest(GpuReport(outcome=Outcome.OK, driver_version="570.1")).driver_version == "570.1"
