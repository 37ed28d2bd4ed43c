from gpu_agent.registry import declared, figures
from gpu_agent.registry.job import Claim
from gpu_agent.registry.record import NodeRecord
from gpu_agent.registry.thresholds import Thresholds
from gpu_agent.wire.messages import GpuDeclaration, GpuFigures, Hardware
from tests.registry.fleets import declaration, hardware
from tests.registry.fleets import figures as figures_of


def node(found: Hardware) -> NodeRecord:
    message = declaration(hardware=found)
    record = NodeRecord(node_id="n", registration=message, hardware=found, registered_at=0.0)
    declared.declare(record, message, Thresholds())
    return record


def test_figures_are_written_into_the_gpu_of_their_uuid() -> None:
    record = node(hardware(2))
    told = GpuFigures(
        uuid="GPU-1",
        utilization_percent=40.0,
        memory_used_mb=2000,
        temperature_c=55.0,
        power_w=300.0,
        health="degraded",
        reasons=("ecc_pending",),
    )
    assert figures.write(record, (*figures_of(1), told))
    gpu = record.gpus["GPU-1"]
    assert (gpu.health, gpu.reasons, gpu.memory_used_mb) == ("degraded", ("ecc_pending",), 2000)
    assert (gpu.utilization_percent, gpu.temperature_c, gpu.power_w) == (40.0, 55.0, 300.0)
    assert record.usable_gpus == 2


def test_before_any_figures_nothing_is_known_of_a_gpu() -> None:
    gpu = node(hardware(1)).gpus["GPU-0"]
    assert (gpu.utilization_percent, gpu.temperature_c, gpu.power_w, gpu.memory_used_mb) == (None,) * 4


def test_a_difference_that_dispatch_cannot_tell_is_none() -> None:
    record = node(hardware(2))
    assert figures.write(record, figures_of(2, memory_used_mb=1000))
    assert not figures.write(record, figures_of(2, memory_used_mb=1000))
    assert not figures.write(record, figures_of(2, memory_used_mb=1010, utilization_percent=70.0))
    assert record.gpus["GPU-0"].memory_used_mb == 1010
    assert figures.write(record, figures_of(2, memory_used_mb=5000))
    assert figures.write(record, figures_of(2, memory_used_mb=5000, health="lost"))


def test_on_a_gpu_with_claims_every_difference_in_memory_counts() -> None:
    record = node(hardware(1))
    figures.write(record, figures_of(1, memory_used_mb=1000))
    record.claims["job-1"] = Claim(
        job_id="job-1", node_id="n", gpu_uuids=("GPU-0",), endpoint=None, granted_at=0.0, expires_at=60.0
    )
    assert figures.write(record, figures_of(1, memory_used_mb=1010))


def test_a_node_that_reports_no_figures_counts_as_usable() -> None:
    record = node(hardware(2))
    figures.write(record, figures_of(2, health="lost", memory_used_mb=500))
    assert record.usable_gpus == 0
    assert figures.write(record, None)
    assert record.usable_gpus == 2
    assert record.gpus["GPU-0"].memory_used_mb is None


def test_a_gpu_that_the_list_leaves_out_is_not_there_to_be_used() -> None:
    record = node(hardware(2))
    figures.write(record, figures_of(1))
    assert record.usable_gpus == 1
    assert (record.gpus["GPU-1"].health, record.gpus["GPU-1"].reasons) == ("unknown", ("not_reported",))
    figures.write(record, figures_of(2))
    assert record.usable_gpus == 2


def test_an_empty_list_leaves_no_gpu_to_be_used() -> None:
    record = node(hardware(2))
    figures.write(record, ())
    assert record.usable_gpus == 0


def test_a_gpu_that_was_never_declared_is_not_invented() -> None:
    record = node(hardware(1))
    figures.write(record, figures_of(3))
    assert list(record.gpus) == ["GPU-0"]
    assert record.usable_gpus == 1


def test_gpus_declared_without_a_uuid_are_matched_by_their_place() -> None:
    found = Hardware(cpu_cores=1, memory_gb=1, gpus=(GpuDeclaration(name="A", memory_gb=24),) * 2)
    record = node(found)
    told = (*figures_of(1, health="lost"), figures_of(2, memory_used_mb=700)[1])
    figures.write(record, told)
    assert [(gpu.health, gpu.memory_used_mb) for gpu in record.gpus.values()] == [("lost", 1000), ("ok", 700)]
    assert record.usable_gpus == 1


def test_the_parent_of_mig_slices_is_never_counted_as_usable() -> None:
    found = (
        GpuDeclaration(name="H100", memory_gb=80, uuid="GPU-0"),
        GpuDeclaration(name="1g.10gb", memory_gb=10, uuid="MIG-1", parent_uuid="GPU-0"),
    )
    record = node(Hardware(cpu_cores=1, memory_gb=1, gpus=found))
    figures.write(record, (*figures_of(1), GpuFigures(uuid="MIG-1")))
    assert record.usable_gpus == 1
