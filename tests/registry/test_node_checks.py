"""Admission checks: what a required one that is missing or failed means for a node, and for one GPU (§4)."""

from collections.abc import Sequence

import pytest

from gpu_agent.registry.actions import Effect, Send, SendStatus
from gpu_agent.registry.dispatch.exclusions import NoAvailableNode
from gpu_agent.registry.job import Claim
from gpu_agent.registry.node_checks import judge
from gpu_agent.registry.settings import Admission
from gpu_agent.wire.codes import ExclusionReason
from gpu_agent.wire.messages import GpuDeclaration, Hardware, NodeCheck, NodeControl
from tests.registry.harness import Registry, figures, hardware, logged, of, statuses

BROKEN = "exit status 1: GPU 3 is slow"


def check(name: str, scope: str = "node", *, ok: bool = True, detail: str = "") -> NodeCheck:
    return NodeCheck(name=name, scope=scope, ok=ok, detail=detail, at=1_795_517_679.0)


def requiring(*names: str) -> Registry:
    return Registry(admission=Admission(required_checks=names))


def two_gpus(registry: Registry, *checks: NodeCheck) -> None:
    registry.register(hardware=hardware(2))
    registry.heartbeats(3, gpus=figures(2), checks=checks)


def commands(done: Sequence[Effect]) -> list[NodeControl]:
    return [one.message for one in of(Send, done) if isinstance(one.message, NodeControl)]


def test_without_required_checks_a_failed_one_is_shown_and_changes_nothing() -> None:
    registry = Registry()
    registry.register()
    registry.heartbeats(3, checks=(check("hook", ok=False, detail=BROKEN),))
    record = registry.node()
    assert record.status == "ready"
    assert record.checks is not None
    assert [one.detail for one in record.checks.listed] == [BROKEN]


def test_a_node_that_reports_no_checks_at_all_passes() -> None:
    assert requiring("hook", "memory_bandwidth").ready().status == "ready"


def test_a_required_check_without_a_result_keeps_a_node_registering_until_it_is_there() -> None:
    registry = requiring("hook")
    registry.register()
    assert statuses(registry.heartbeats(9, checks=())) == []
    assert statuses(registry.heartbeats(1, checks=(check("hook"),))) == ["ready"]


def test_s02_the_warm_up_timeout_names_the_check_that_is_missing() -> None:
    registry = requiring("hook", "gpu_count")
    registry.register()
    done = registry.heartbeats(31, checks=(check("gpu_count"),))
    record = registry.node()
    assert (record.status, record.reason_code) == ("degraded", "warmup_timeout")
    words = "no result yet: `gpu-agent status` on the node says what it waits for"
    assert f"hook: {words}, and without `hook` in [checks] there it never runs" in record.reason
    assert "gpu_count" not in record.reason
    (sent,) = [one for one in of(SendStatus, done) if not one.periodic]
    assert f"hook ({words}" in (sent.clears_when or "")
    assert statuses(registry.heartbeats(1, checks=(check("gpu_count"), check("hook")))) == ["ready"]
    assert registry.node().reason_code == "recovered"


def test_a_node_is_asked_once_in_a_session_to_run_the_required_checks_that_it_lacks() -> None:
    registry = requiring("hook")
    registry.register()
    (asked,) = commands(registry.heartbeats(1, checks=()))
    assert (asked.command, asked.reason) == ("check", "the registry requires checks without a result: hook")
    assert commands(registry.heartbeats(3, checks=(check("gpu_count"),))) == []
    registry.register(node_id="node-1")
    assert len(commands(registry.heartbeats(1, checks=()))) == 1


@pytest.mark.parametrize("before", ["registering", "ready"])
def test_a_failed_check_of_the_node_degrades_it_at_once_and_it_recovers_by_healthy_heartbeats(
    before: str,
) -> None:
    registry = requiring("hook")
    registry.register()
    if before == "ready":
        registry.heartbeats(3, checks=(check("hook"),))
    assert registry.node().status == before
    failed = check("hook", ok=False, detail=BROKEN)
    (sent,) = of(SendStatus, registry.heartbeats(1, checks=(failed,)))
    assert (sent.status, sent.reason_code) == ("degraded", "check_failed")
    assert BROKEN in sent.reason
    assert f"hook ({BROKEN})" in (sent.clears_when or "")
    (shown,) = [one for one in sent.checks if one.name == "hook"]
    assert (shown.ok, shown.detail) == (False, BROKEN)
    refused = registry.claim("job-1")
    assert isinstance(refused, NoAvailableNode)
    assert refused.counts == {"status_not_ready": 1}
    registry.heartbeats(9)
    assert registry.node().status == "degraded"
    registry.heartbeats(2, checks=(check("hook"),))
    assert registry.node().status == "degraded"
    assert statuses(registry.heartbeats(1)) == ["ready"]
    assert registry.node().reason_code == "recovered"


def test_a_failed_check_of_one_gpu_takes_that_gpu_out_and_no_other() -> None:
    registry = requiring("pcie_link")
    two_gpus(registry, check("pcie_link", "GPU-0", ok=False, detail="x4 of x16"), check("pcie_link", "GPU-1"))
    record = registry.node()
    assert (record.status, record.gpus.usable) == ("ready", 1)
    claim = registry.claim("job-1", gpu_count=1)
    assert isinstance(claim, Claim)
    assert claim.grants[0].gpu_uuids == ("GPU-1",)
    refused = registry.claim("job-2", gpu_count=2)
    assert refused.counts == {"gpu_unavailable": 1}
    (example,) = refused.examples[ExclusionReason.GPU_UNAVAILABLE]
    assert "check_failed" in example.have
    assert record.gpus["GPU-0"].health == "ok"


def test_a_gpu_is_given_out_again_once_its_check_has_passed() -> None:
    registry = requiring("pcie_link")
    two_gpus(registry, check("pcie_link", "GPU-0", ok=False), check("pcie_link", "GPU-1"))
    registry.heartbeat(gpus=figures(2), checks=(check("pcie_link", "GPU-0"), check("pcie_link", "GPU-1")))
    assert registry.node().gpus.usable == 2
    claim = registry.claim("job-1", gpu_count=2)
    assert isinstance(claim, Claim)
    assert claim.grants[0].gpu_uuids == ("GPU-0", "GPU-1")


def test_a_failed_check_outlives_other_heartbeats_and_another_declaration_of_the_hardware() -> None:
    registry = requiring("pcie_link")
    two_gpus(registry, check("pcie_link", "GPU-0", ok=False), check("pcie_link", "GPU-1"))
    registry.heartbeats(3, gpus=figures(2))
    assert registry.node().gpus.usable == 1
    registry.heartbeat(gpus=figures(3), hardware=hardware(3))
    assert [gpu.usable for gpu in registry.node().gpus.values()] == [False, True, True]
    assert registry.claim("job-1", gpu_count=3).counts == {"gpu_unavailable": 1}


def test_a_node_whose_gpus_have_all_failed_a_check_is_degraded_with_what_they_failed() -> None:
    registry = requiring("pcie_link")
    registry.register()
    registry.heartbeats(1, checks=(check("pcie_link", "GPU-0", ok=False),))
    record = registry.node()
    assert (record.status, record.reason_code) == ("degraded", "gpu_unavailable")
    assert "check_failed: pcie_link" in record.reason


def test_a_failed_check_of_a_mig_parent_counts_for_its_devices() -> None:
    parts = (
        GpuDeclaration(name="H100", memory_gb=80, uuid="GPU-0"),
        GpuDeclaration(name="H100 MIG 3g.40gb", memory_gb=40, uuid="MIG-0", parent_uuid="GPU-0"),
        GpuDeclaration(name="H100", memory_gb=80, uuid="GPU-1"),
    )
    registry = requiring("pcie_link")
    registry.register(hardware=Hardware(cpu_cores=8, memory_gb=64, gpus=parts))
    registry.heartbeats(3, gpus=None, checks=(check("pcie_link", "GPU-0", ok=False),))
    usable = {uuid: gpu.usable for uuid, gpu in registry.node().gpus.items()}
    assert usable == {"GPU-0": False, "MIG-0": False, "GPU-1": True}
    assert registry.node().gpus.usable == 1


def test_a_check_of_gpus_is_missing_while_one_is_free_and_not_while_all_are_in_use() -> None:
    registry = requiring("memory_bandwidth")
    registry.register()
    registry.heartbeats(4, checks=())
    assert registry.node().status == "registering"
    busy = requiring("memory_bandwidth")
    busy.register()
    busy.heartbeats(3, gpus=figures(processes=1), checks=())
    assert busy.node().status == "ready"


def described(registry: Registry, name: str) -> str:
    (one,) = [one for one in judge(registry.node(), registry.thresholds) if one.name == name]
    return one.detail


def test_a_missing_check_of_gpus_that_are_all_unusable_does_not_say_that_they_are_in_use() -> None:
    registry = requiring("memory_bandwidth")
    registry.register()
    registry.heartbeats(1, gpus=figures(processes=1), checks=())
    assert described(registry, "memory_bandwidth") == "no result yet: its GPUs are in use"
    registry.heartbeats(1, gpus=figures(health="lost"), checks=())
    assert described(registry, "memory_bandwidth") == "no result yet: none of its GPUs is usable"


@pytest.mark.parametrize(
    ("ok", "words"), [(True, "passed on 1 of 1 GPU"), (False, "failed on 1 of 1 GPU: GPU-0: x4 of x16")]
)
def test_a_gpu_with_mig_devices_counts_as_one(*, ok: bool, words: str) -> None:
    whole = GpuDeclaration(name="H100", memory_gb=80, uuid="GPU-0")
    devices = [
        GpuDeclaration(name="H100 MIG 1g.10gb", memory_gb=10, uuid=f"MIG-{number}", parent_uuid="GPU-0")
        for number in range(7)
    ]
    registry = requiring("pcie_link")
    registry.register(hardware=Hardware(cpu_cores=8, memory_gb=64, gpus=(whole, *devices)))
    registry.heartbeats(1, gpus=None, checks=(check("pcie_link", "GPU-0", ok=ok, detail="x4 of x16"),))
    assert described(registry, "pcie_link") == words


def test_a_missing_check_degrades_no_node_that_is_ready() -> None:
    registry = requiring("hook")
    registry.register()
    registry.heartbeats(3, checks=(check("hook"),))
    registry.heartbeats(9, checks=())
    assert registry.node().status == "ready"


def test_a_registration_begins_without_any_result_of_a_check() -> None:
    registry = requiring("hook")
    registry.register()
    registry.heartbeats(1, checks=(check("hook", ok=False),))
    registry.register(node_id="node-1")
    assert registry.node().checks is None
    assert registry.node().status == "registering"


def test_which_checks_fail_is_logged_once_and_the_end_of_it_too() -> None:
    registry = requiring("hook")
    registry.register()
    failed = (
        check("hook", ok=False, detail=BROKEN),
        check("pcie_link", "GPU-0", ok=False, detail="x4 of x16"),
    )
    (entry,) = logged(registry.heartbeats(2, checks=failed), "node_checks_changed")
    assert entry.fields == {
        "node_id": "node-1",
        "failed": f"hook: {BROKEN}, pcie_link of GPU-0: x4 of x16",
        "count": 2,
    }
    assert entry.level == "warning"
    (entry,) = logged(registry.heartbeats(2, checks=(check("hook"),)), "node_checks_changed")
    assert (entry.fields["count"], entry.level) == (0, "info")


def test_a_claimed_gpu_that_fails_a_check_is_reported_once_and_keeps_its_claim() -> None:
    registry = requiring("pcie_link")
    two_gpus(registry, check("pcie_link", "GPU-0"), check("pcie_link", "GPU-1"))
    registry.claim("job-1", gpu_count=2)
    failed = (check("pcie_link", "GPU-0", ok=False), check("pcie_link", "GPU-1"))
    done = registry.heartbeats(2, gpus=figures(2), checks=failed, running_jobs=("job-1",))
    (entry,) = logged(done, "claim_gpu_unusable")
    assert (entry.fields["gpu_uuid"], entry.fields["health"]) == ("GPU-0", "check_failed")
    assert "job-1" in registry.node().claims
