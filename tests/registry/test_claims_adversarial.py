"""Claims while nodes and peers change: nothing is given twice, held too briefly, or leaked (§5)."""

from typing import Any

import pytest

from gpu_agent.registry.actions import Answer, DocumentKind, Refusal
from gpu_agent.registry.dispatch.exclusions import NoAvailableNode
from gpu_agent.registry.events import ConnectionLost, HeartbeatReceived, RegistrationReceived
from gpu_agent.registry.job import Claim
from gpu_agent.wire.messages import GpuDeclaration, GpuFigures, Hardware
from tests.registry.harness import (
    JOIN,
    Registry,
    declaration,
    figures,
    hardware,
    heartbeat,
    of,
    unregistration,
)

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


def test_no_mig_device_is_shared_while_claims_share_its_parent_from_before_it_was_parted() -> None:
    registry = ready(WHOLE)
    claim = registry.claim("job", min_gpu_memory_mb=4_000)
    assert claim.grants[0].gpu_uuids == ("GPU-0",)
    registry.heartbeats(1, gpus=None, hardware=machine(WHOLE, DEVICE))
    assert isinstance(registry.claim("other", min_gpu_memory_mb=4_000), NoAvailableNode)
    registry.release("job", claim.claim_id)
    registry.heartbeats(1, gpus=None)
    assert registry.claim("other", min_gpu_memory_mb=4_000).grants[0].gpu_uuids == ("MIG-0",)


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


@pytest.mark.parametrize("layout", [(WHOLE,), (WHOLE, DEVICE)])
@pytest.mark.parametrize("demands", [{"gpu_count": 1}, {"min_gpu_memory_mb": 30_000}])
def test_a_job_gets_the_gpu_that_is_held_for_it_on_a_mig_device_of_an_earlier_layout(
    layout: tuple[GpuDeclaration, ...], demands: dict[str, Any]
) -> None:
    """Its node declares the device no more, or declares it once more."""
    registry = ready(WHOLE, DEVICE)
    old = registry.claim("job", ttl_seconds=10.0, **demands)
    assert old.grants[0].gpu_uuids == ("MIG-0",)
    registry.heartbeats(1, every=15.0, gpus=None, running_jobs=("job",), hardware=machine(WHOLE))
    registry.heartbeats(1, gpus=None, running_jobs=("job",), hardware=machine(*layout))
    assert registry.node().held
    assert isinstance(registry.claim("other", **demands), NoAvailableNode)
    new = registry.claim("job", **demands)
    assert isinstance(new, Claim)
    assert new.grants[0].gpu_uuids == (layout[-1].uuid,)
    assert not registry.node().held
    registry.release("job", new.claim_id)
    registry.heartbeats(1, gpus=None)
    assert isinstance(registry.claim("other", **demands), Claim)


def test_a_job_does_not_get_a_gpu_of_which_another_holds_a_device_too() -> None:
    registry = ready(WHOLE, DEVICE, DEVICE.model_copy(update={"uuid": "MIG-2"}))
    registry.claim("job", gpu_count=1, ttl_seconds=10.0)
    other = registry.claim("other", gpu_count=1, ttl_seconds=600.0)
    registry.heartbeats(1, every=15.0, gpus=None, running_jobs=("job",), hardware=machine(WHOLE))
    assert isinstance(registry.claim("job", gpu_count=1), NoAvailableNode)
    registry.release("other", other.claim_id)
    registry.heartbeats(1, gpus=None, running_jobs=("job",))
    assert registry.claim("job", gpu_count=1).grants[0].gpu_uuids == ("GPU-0",)


@pytest.mark.parametrize("demands", [{"gpu_count": 1}, {"min_gpu_memory_mb": 20_000}])
def test_a_job_gets_a_gpu_of_another_list_where_only_its_own_claim_was_from_the_earlier_one(
    demands: dict[str, Any],
) -> None:
    registry = ready(LARGE, SMALL)
    registry.claim("job", gpu_name="L4", ttl_seconds=10.0, **demands)
    registry.heartbeats(1, every=15.0, gpus=None, running_jobs=("job",), hardware=machine(SMALL, LARGE))
    assert registry.node().held
    assert isinstance(registry.claim("other", gpu_count=1), NoAvailableNode)
    assert isinstance(registry.claim("job", gpu_name="L4", **demands), Claim)
    assert not registry.node().held


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


def two_nodes() -> Registry:
    """Bring up node-1 with two MIG devices, and node-2 with another GPU."""
    registry = ready(WHOLE, DEVICE)
    registry.register(2, hardware=machine(GpuDeclaration(uuid="GPU-2", name="L4", memory_gb=24)))
    registry.heartbeats(3, 2, gpus=None)
    registry.heartbeats(1, 1, gpus=None)
    return registry


def test_a_node_whose_gpu_is_a_relative_of_a_claimed_one_gives_it_out_in_no_case() -> None:
    registry = ready(WHOLE)
    registry.claim("job", gpu_count=1)
    registry.register(2, hardware=machine(DEVICE))
    registry.heartbeats(3, 2, gpus=None)
    registry.heartbeats(1, 1, gpus=None)
    assert isinstance(registry.claim("other", gpu_count=1), NoAvailableNode)


def test_the_end_of_a_claim_frees_the_relatives_of_its_gpu_on_other_nodes() -> None:
    registry = two_nodes()
    claim = registry.claim("job", gpu_count=1, gpu_name="mig")
    registry.heartbeats(1, 1, gpus=None, hardware=machine(LARGE))
    registry.heartbeats(1, 2, gpus=None, hardware=machine(WHOLE))
    assert isinstance(registry.claim("other", gpu_count=1, gpu_name="H100"), NoAvailableNode)
    registry.release("job", claim.claim_id)
    answered = registry.claim("other", gpu_count=1, gpu_name="H100", allowed_nodes=("node-2",))
    assert isinstance(answered, Claim)


def test_after_a_restart_a_held_mig_device_of_an_offline_node_keeps_its_parent_from_others() -> None:
    registry = two_nodes()
    registry.claim("job", gpu_count=1, gpu_name="mig")
    registry.do(unregistration())
    assert registry.fleet.held()
    later = Registry()
    later.now = registry.now
    later.restore(registry.stored_documents())
    later.register(3, hardware=machine(WHOLE))
    later.heartbeats(3, 3, gpus=None)
    assert isinstance(later.claim("other", gpu_count=1, gpu_name="H100"), NoAvailableNode)


def test_after_a_restart_a_claimed_mig_device_that_is_gone_keeps_its_parent_from_others() -> None:
    registry = ready(WHOLE, DEVICE)
    claim = registry.claim("job", gpu_count=1, ttl_seconds=600)
    registry.come_back(5, hardware=machine(WHOLE), max_concurrent_jobs=16)
    later = Registry()
    later.now = registry.now
    later.restore(registry.stored_documents())
    later.come_back(9, hardware=machine(WHOLE), max_concurrent_jobs=16)
    later.heartbeats(3, 9, node_id="node-1", gpus=None, running_jobs=("job",))
    assert isinstance(later.claim("other", gpu_count=1), NoAvailableNode)
    later.release("job", claim.claim_id)
    later.heartbeats(1, 9, node_id="node-1", gpus=None)
    assert later.claim("other", gpu_count=1).grants[0].gpu_uuids == ("GPU-0",)


def test_mig_devices_that_change_their_parent_leave_nothing_behind() -> None:
    registry = ready(DEVICE)
    for place in range(50):
        moved = DEVICE.model_copy(update={"parent_uuid": f"GPU-{place}"})
        registry.heartbeats(1, gpus=None, hardware=machine(moved))
    assert list(registry.fleet._dispatch._identities._devices) == ["GPU-49"]


def test_beside_a_reported_job_of_a_lost_gang_one_gpu_is_not_given_out_exclusively() -> None:
    registry = Registry()
    for connection in (1, 2):
        gpu = GpuDeclaration(uuid=f"GPU-{connection}", name="H100", memory_gb=80)
        registry.register(connection, hardware=machine(gpu))
        registry.heartbeats(3, connection, gpus=None)
    registry.heartbeats(1, 1, gpus=None)
    assert isinstance(registry.claim("gang", nodes=2), Claim)
    registry.do(unregistration())
    registry.heartbeats(1, 2, gpus=None, running_jobs=("gang",))
    assert isinstance(registry.claim("other", gpu_count=1), NoAvailableNode)


def test_a_claim_on_a_node_that_is_removed_before_its_registration_is_stored_is_lost() -> None:
    registry = Registry()
    fleet, event = registry.fleet, RegistrationReceived(1, declaration(), "node-1", JOIN)
    fleet.handle(event, registry.now)  # never stored
    for _ in range(3):
        registry.now += 2.0
        fleet.handle(HeartbeatReceived(1, heartbeat()), registry.now)
    fleet.handle(registry.claim_request("job", gpu_count=1), registry.now)
    assert fleet.claim_of("job") is not None
    output = fleet.handle(ConnectionLost(1), registry.now)
    assert fleet.claim_of("job") is None
    assert fleet.claim_history.current() == []
    assert (DocumentKind.CLAIM, "job", None) in [(one.kind, one.key, one.document) for one in output.changes]


def test_with_auth_off_a_job_gets_its_claim_from_before_again() -> None:
    registry = Registry()
    registry.ready()
    claim = registry.claim("job", by="ada", gpu_count=1)
    assert registry.claim("job", gpu_count=1).claim_id == claim.claim_id


def test_a_lost_gang_stores_each_nodes_share_once() -> None:
    registry = Registry()
    for connection in range(1, 5):
        gpu = GpuDeclaration(uuid=f"GPU-{connection}", name="H100", memory_gb=80)
        registry.register(connection, hardware=machine(gpu))
        registry.heartbeats(3, connection, gpus=None)
    for connection in range(1, 5):
        registry.heartbeat(connection, gpus=None)
    registry.claim("gang", gpu_count=1, nodes=4)
    registry.do(unregistration())
    held = [one.document for one in registry.stored_documents() if one.kind is DocumentKind.HELD]
    assert [str(one).count("gpu_indices") for one in held] == [1] * 4
    later = Registry()
    later.now = registry.now
    later.restore(registry.stored_documents())
    later.come_back(9, hardware=machine(GpuDeclaration(uuid="GPU-1", name="H100", memory_gb=80)))
    later.heartbeats(3, 9, node_id="node-1", running_jobs=("gang",), gpus=None)
    assert later.fleet.claim_of("gang") is None
    assert len(later.fleet.held()) == 4


def large(kib: int) -> tuple[str, ...]:
    return tuple(f"{place:0>1000}" for place in range(kib))


def test_a_job_too_large_for_the_store_is_refused_before_anything_changes() -> None:
    registry = ready(WHOLE)
    refused = registry.claim("job", gpu_count=1, excluded_nodes=large(400))
    assert isinstance(refused, Refusal)
    assert refused.code == "INVALID_MESSAGE"
    waiting = registry.claim("job", gpu_count=2, wait_seconds=60.0, excluded_nodes=large(400))
    assert isinstance(waiting, Refusal)
    assert registry.fleet.claims() == []
    assert registry.fleet.queue() == []
    assert isinstance(registry.claim("job", gpu_count=1, excluded_nodes=large(100)), Claim)


def test_ended_claims_of_large_jobs_are_forgotten_before_they_fill_the_memory() -> None:
    registry = ready(WHOLE)
    for place in range(400):
        claim = registry.claim(f"job-{place}", excluded_nodes=large(200))
        registry.release(f"job-{place}", claim.claim_id)
    ended = registry.fleet.claim_history.ended(registry.now)
    assert ended[-1].claim.job_id == "job-399"
    assert 200 < len(ended) < 350


def test_large_jobs_that_wait_are_bounded_in_bytes() -> None:
    registry = ready(WHOLE)
    registry.claim("first", gpu_count=1)
    for place in range(300):
        registry.do(
            registry.claim_request(f"job-{place}", gpu_count=1, wait_seconds=60.0, excluded_nodes=large(200))
        )
    assert 100 < len(registry.fleet.queue()) < 200
    refused = [one.result for one in of(Answer, registry.done)][-1]
    assert isinstance(refused, Refusal)
    assert refused.code == "QUEUE_FULL"
    registry.pass_time(91.0)
    assert registry.fleet.queue() == []
    registry.do(registry.claim_request("next", gpu_count=1, wait_seconds=60.0, excluded_nodes=large(200)))
    assert [one.job.job_id for one in registry.fleet.queue()] == ["next"]


def test_a_lost_claim_that_is_forgotten_is_not_left_in_the_store(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gpu_agent.registry.dispatch.dispatch.LOST_PER_NODE", 2)
    registry = ready(WHOLE)
    for round_ in range(3):
        connection = round_ + 2
        for place in range(2):
            assert isinstance(registry.claim(f"job-{round_}-{place}"), Claim)
        registry.do(unregistration(connection - 1))
        registry.come_back(connection, hardware=machine(WHOLE), max_concurrent_jobs=16)
        registry.heartbeats(3, connection, node_id="node-1", gpus=None)
    stored = {key for kind, key in registry.documents if kind is DocumentKind.HELD}
    assert stored == {one.key for one in registry.fleet.held()}


def test_no_gang_gets_a_gpu_and_a_part_of_it_on_another_node() -> None:
    for first, second in ((WHOLE, DEVICE), (DEVICE, WHOLE)):
        registry = ready(first)
        registry.register(2, hardware=machine(second))
        registry.heartbeats(3, 2, gpus=None)
        registry.heartbeats(1, 1, gpus=None)
        assert isinstance(registry.claim("gang", gpu_count=1, nodes=2), NoAvailableNode)
        assert isinstance(registry.claim("one", gpu_count=1), Claim)
