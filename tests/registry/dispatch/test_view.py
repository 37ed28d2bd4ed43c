from gpu_agent.registry.dispatch.view import gpu_set, usable_gpus
from gpu_agent.registry.gpus import GpuState
from tests.registry.dispatch.nodes import gpu, gpus, node

PARENT = GpuState(uuid="GPU-P", name="NVIDIA A100", memory_mb=40960, is_parent=True)
SLICES = [
    GpuState(uuid=f"MIG-{n}", name="NVIDIA A100 MIG 3g.20gb", memory_mb=20096, parent_uuid="GPU-P")
    for n in (1, 2)
]


def test_a_gpu_set_counts_usable_gpus_by_name_whatever_the_case() -> None:
    record = node(
        gpus=gpus(
            gpu("a", name="Tesla T4"),
            gpu("b", name="TESLA T4", health="degraded"),
            gpu("c", name="NVIDIA L4"),
            gpu("d", name="NVIDIA L4", health="lost"),
            gpu("e", name="NVIDIA L4", health="unknown"),
        )
    )
    assert gpu_set(record) == (("nvidia l4", 1), ("tesla t4", 2))


def test_the_parent_of_mig_slices_takes_no_job() -> None:
    record = node(gpus=gpus(PARENT, *SLICES))
    assert gpu_set(record) == (("nvidia a100 mig 3g.20gb", 2),)
    assert [one.uuid for one in usable_gpus(record, "a100")] == ["MIG-1", "MIG-2"]


def test_gpus_are_found_by_a_part_of_their_name() -> None:
    record = node(gpus=gpus(gpu("a", name="NVIDIA H100 80GB HBM3"), gpu("b", name="NVIDIA L4")))
    assert [one.uuid for one in usable_gpus(record, "h100")] == ["a"]
    assert [one.uuid for one in usable_gpus(record, "")] == ["a", "b"]
