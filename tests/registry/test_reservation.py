"""Which nodes the queue reserves for a job, and what counts as left for it there (§5.4)."""
# ruff: noqa: ANN401 - parts of requests are passed through as they are

from typing import Any

import pytest

from gpu_agent.registry.dispatch.exclusions import NoAvailableNode
from gpu_agent.registry.events import GpuCordonRequested
from gpu_agent.registry.job import Claim
from gpu_agent.registry.queue import Waiting
from gpu_agent.wire.messages import GpuDeclaration, GpuFigures, Hardware
from tests.registry.harness import Registry


class Machines:
    """A registry with machines whose GPUs, processes and jobs a test sets."""

    def __init__(self, *nodes: tuple[str, ...]) -> None:
        """Bring up nodes with these GPUs, one after another."""
        self.registry = Registry()
        self.nodes = nodes
        self.processes: dict[str, int] = {}
        self.running: dict[int, tuple[str, ...]] = {}
        for connection, uuids in enumerate(nodes, start=1):
            gpus = tuple(GpuDeclaration(name="NVIDIA H100", memory_gb=80, uuid=uuid) for uuid in uuids)
            machine = Hardware(cpu_cores=32, memory_gb=256, gpus=gpus)
            self.registry.register(connection, hardware=machine, max_concurrent_jobs=16)
            self.pass_time(6.0)
        self.pass_time(6.0)

    def heartbeats(self) -> None:
        for connection in range(1, len(self.nodes) + 1):
            if self.registry.fleet.node(f"node-{connection}") is not None:
                figures = tuple(
                    GpuFigures(uuid=uuid, memory_used_mb=1000, processes=self.processes.get(uuid, 0))
                    for uuid in self.nodes[connection - 1]
                )
                running = self.running.get(connection, ())
                self.registry.heartbeat(connection, gpus=figures, running_jobs=running)

    def pass_time(self, seconds: float) -> None:
        end = self.registry.now + seconds
        while self.registry.now < end:
            self.registry.pass_time(min(2.0, end - self.registry.now))
            self.heartbeats()

    def claim(self, job_id: str, node: int | None = None, **demands: Any) -> Any:
        """Claim for a day, one GPU if nothing else is asked for."""
        if node is not None:
            demands["allowed_nodes"] = (f"node-{node}",)
        return self.registry.claim(job_id, ttl_seconds=86_400, **({"gpu_count": 1} | demands))

    def reserve(self, **demands: Any) -> Waiting:
        """Let a job wait until it may have a reservation."""
        self.registry.do(self.registry.claim_request("large", wait_seconds=300, **demands))
        self.pass_time(61.0)
        (waiting,) = self.registry.fleet.queue()
        return waiting

    def cordon(self, node: int, uuid: str) -> None:
        event = GpuCordonRequested(self.registry.ref(), f"node-{node}", uuid, "broken", "")
        self.registry.do(event)
        self.registry.pass_time(1.0)


def test_a_gpu_that_another_node_gives_out_does_not_count_as_left() -> None:
    fleet = Machines(("a", "b", "c", "d"), ("a",))
    for place in range(3):
        fleet.claim(f"small-{place}", 1)
    assert list(fleet.reserve(gpu_count=3).reserved) == ["node-1"]
    fleet.registry.release("small-0")
    assert isinstance(fleet.claim("next", 1), NoAvailableNode)


def test_a_gpu_in_use_without_a_claim_does_not_count_as_left() -> None:
    fleet = Machines(("a", "b", "c", "d"))
    fleet.processes["d"] = 1
    fleet.pass_time(2.0)
    for place in range(2):
        fleet.claim(f"small-{place}")
    assert list(fleet.reserve(gpu_count=3).reserved) == ["node-1"]
    assert isinstance(fleet.claim("next"), NoAvailableNode)
    assert isinstance(fleet.claim("slot", gpu_count=None), Claim)  # its worker uses the GPU that is in use


def test_the_gpu_left_to_a_job_without_a_claim_does_not_count_as_left() -> None:
    fleet = Machines(("a", "b", "c", "d"))
    fleet.running[1] = ("foreign",)
    fleet.pass_time(2.0)
    for place in range(2):
        fleet.claim(f"small-{place}")
    assert list(fleet.reserve(gpu_count=3).reserved) == ["node-1"]
    fleet.registry.release("small-0")
    assert isinstance(fleet.claim("next"), NoAvailableNode)
    assert isinstance(fleet.claim("slot", gpu_count=None), Claim)


def test_the_gpu_left_to_a_later_slot_does_not_count_as_left() -> None:
    fleet = Machines(("a", "b", "c", "d"))
    for place in range(3):
        fleet.claim(f"small-{place}")
    assert list(fleet.reserve(gpu_count=3).reserved) == ["node-1"]
    assert isinstance(fleet.claim("slot", gpu_count=None), Claim)
    assert isinstance(fleet.claim("another slot", gpu_count=None), Claim)
    fleet.registry.release("small-0")
    assert isinstance(fleet.claim("next"), NoAvailableNode)


@pytest.mark.parametrize("why", ["cordoned", "another node gives it out", "in use"])
def test_a_node_that_could_not_have_the_gpus_once_its_claims_end_is_not_reserved(why: str) -> None:
    shared = ("b",) if why == "another node gives it out" else ("e",)
    fleet = Machines(("a", "b"), ("c", "d"), shared)
    if why == "cordoned":
        fleet.cordon(1, "b")
    elif why == "in use":
        fleet.processes["b"] = 1
        fleet.pass_time(2.0)
    for place in range(2):
        fleet.claim(f"small-{place}", 2)
    assert list(fleet.reserve(gpu_count=2).reserved) == ["node-2"]
    assert isinstance(fleet.claim("beside", 1), Claim)


def test_a_reservation_moves_when_an_operator_cordons_a_gpu_that_it_needs() -> None:
    fleet = Machines(("a", "b"), ("c", "d"))
    fleet.claim("first", 1)
    fleet.claim("second", 2, gpu_count=2)
    waiting = fleet.reserve(gpu_count=2)
    assert list(waiting.reserved) == ["node-1"]
    fleet.cordon(1, "a")
    assert list(waiting.reserved) == ["node-2"]


def test_processes_that_outlast_their_claim_end_no_reservation() -> None:
    fleet = Machines(("a", "b", "c"), ("d", "e", "f"))
    (uuid,) = fleet.claim("first", 1).grants[0].gpu_uuids
    fleet.claim("second", 1)
    fleet.claim("third", 2, gpu_count=3)
    waiting = fleet.reserve(gpu_count=3)
    fleet.processes[uuid] = 1
    fleet.registry.release("first")
    fleet.pass_time(4.0)
    assert fleet.registry.node("node-1").unclaimed_use == {uuid}
    assert list(waiting.reserved) == ["node-1"]
    assert isinstance(fleet.claim("next", 1), NoAvailableNode)
    fleet.processes.clear()
    fleet.registry.release("second")
    fleet.pass_time(4.0)
    assert isinstance(fleet.registry.fleet.claim_of("large"), Claim)
