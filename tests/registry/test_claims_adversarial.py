"""Claims while nodes and peers change: nothing is given twice, held too briefly, or leaked (§5)."""

from gpu_agent.registry.dispatch.exclusions import NoAvailableNode
from gpu_agent.registry.job import Claim
from gpu_agent.wire.messages import GpuDeclaration, GpuFigures, Hardware
from tests.registry.harness import Registry, figures, hardware

WHOLE = GpuDeclaration(uuid="GPU-0", name="H100", memory_gb=80)
DEVICE = GpuDeclaration(uuid="MIG-0", name="H100 MIG 3g.40gb", memory_gb=40, parent_uuid="GPU-0")
LARGE, SMALL = GpuDeclaration(name="H100", memory_gb=80), GpuDeclaration(name="L4", memory_gb=24)


def machine(*gpus: GpuDeclaration) -> Hardware:
    return Hardware(cpu_cores=8, memory_gb=64, gpus=gpus)


def ready(*gpus: GpuDeclaration) -> Registry:
    registry = Registry()
    registry.register(hardware=machine(*gpus), max_concurrent_jobs=16)
    registry.heartbeats(3, gpus=None)
    return registry


def test_a_gpu_is_not_given_out_while_a_claim_holds_one_of_its_former_mig_devices() -> None:
    registry = ready(WHOLE, DEVICE)
    claim = registry.claim("job", gpu_count=1)
    assert claim.grants[0].gpu_uuids == ("MIG-0",)
    registry.heartbeats(1, gpus=None, hardware=machine(WHOLE))
    assert isinstance(registry.claim("other", gpu_count=1), NoAvailableNode)
    registry.release("job", claim.claim_id)
    registry.heartbeats(1, gpus=None)
    assert registry.claim("other", gpu_count=1).grants[0].gpu_uuids == ("GPU-0",)


def test_gpus_without_uuids_are_not_given_out_exclusively_while_claims_share_those_of_an_earlier_list() -> (
    None
):
    registry = ready(LARGE, SMALL)
    claim = registry.claim("shared", min_gpu_memory_mb=30_000)
    registry.heartbeats(1, gpus=None, hardware=machine(SMALL, LARGE))
    assert isinstance(registry.claim("other", gpu_count=1, gpu_name="H100"), NoAvailableNode)
    registry.release("shared", claim.claim_id)
    registry.heartbeats(1, gpus=None)
    assert isinstance(registry.claim("other", gpu_count=1, gpu_name="H100"), Claim)


def test_gpus_without_uuids_are_not_shared_while_an_exclusive_claim_holds_one_of_an_earlier_list() -> None:
    registry = ready(LARGE, SMALL)
    claim = registry.claim("exclusive", gpu_count=1, gpu_name="H100")
    registry.heartbeats(1, gpus=None, hardware=machine(SMALL, LARGE))
    assert isinstance(registry.claim("other", min_gpu_memory_mb=30_000), NoAvailableNode)
    registry.release("exclusive", claim.claim_id)
    registry.heartbeats(1, gpus=None)
    assert isinstance(registry.claim("other", min_gpu_memory_mb=30_000), Claim)


def test_a_gpu_that_shows_a_process_stays_held_beside_one_that_shows_nothing() -> None:
    registry = Registry(claim_ttl_seconds=60.0)
    registry.register(hardware=hardware(2))
    registry.heartbeats(3, gpus=figures(2))
    assert isinstance(registry.claim("job", gpu_count=2, ttl_seconds=10.0), Claim)
    busy = GpuFigures(uuid="GPU-0", processes=1, memory_used_mb=1000)
    lost = GpuFigures(uuid="GPU-1", health="failed", reasons=("xid_79",))
    registry.heartbeats(10, every=15.0, gpus=(busy, lost), running_jobs=None)
    assert [one.gpu_uuids for one in registry.fleet.held()] == [("GPU-0",)]
    idle = busy.model_copy(update={"processes": 0})
    registry.heartbeats(1, every=15.0, gpus=(idle, lost), running_jobs=None)
    assert registry.fleet.held() == []
