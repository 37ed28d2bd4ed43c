"""GPUs that several nodes declare: who gives them out, and whom a change concerns."""

from gpu_agent.registry.dispatch.candidate import Candidate
from gpu_agent.registry.dispatch.gpu_identity import GpuIdentities
from gpu_agent.registry.gpus import GpuState
from gpu_agent.registry.settings import Thresholds
from gpu_agent.wire.codes import NodeStatus
from tests.registry.dispatch.nodes import gpus, node


class Declared:
    """Nodes and the GPUs that they declare."""

    def __init__(self) -> None:
        self.candidates: dict[str, Candidate] = {}
        self.identities = GpuIdentities(self.candidates)

    def declare(self, node_id: str, *states: GpuState, at: float = 0.0) -> list[str]:
        """Let a node register; returns the nodes that this concerns."""
        record = node(node_id, gpus=gpus(*states), registered_at=at)
        self.candidates[node_id] = Candidate(record, 0, Thresholds())
        return self.update(node_id)

    def update(self, node_id: str) -> list[str]:
        affected = self.identities.update(self.candidates[node_id])
        return [one.record.node_id for one in affected]

    def why_not(self, node_id: str, uuid: str = "GPU-X") -> str | None:
        candidate = self.candidates[node_id]
        return self.identities.why_not(candidate, candidate.record.gpus[uuid])


def x(uuid: str = "GPU-X", parent: str | None = None) -> GpuState:
    return GpuState(uuid=uuid, name="H100", memory_mb=81_920, parent_uuid=parent)


def test_the_node_that_registered_last_gives_a_gpu_out_and_both_are_marked() -> None:
    fleet = Declared()
    assert fleet.declare("a", x(), at=1.0) == []
    assert fleet.declare("b", x(), at=2.0) == ["a", "b"]
    assert fleet.why_not("a") == "declared by node b too, which registered later"
    assert fleet.why_not("b") is None
    assert [one.record.duplicate_gpus for one in fleet.candidates.values()] == [{"GPU-X"}, {"GPU-X"}]


def test_a_node_that_goes_offline_or_is_removed_declares_nothing() -> None:
    fleet = Declared()
    for place, name in enumerate("abc"):
        fleet.declare(name, x(), at=float(place))
    fleet.candidates["c"].record.status = NodeStatus.OFFLINE
    assert set(fleet.update("c")) == {"b", "c"}
    assert fleet.why_not("b") is None
    fleet.candidates.pop("b")
    fleet.identities.remove("b")
    assert fleet.why_not("a") is None
    assert fleet.candidates["a"].record.duplicate_gpus == frozenset()


def test_a_claim_keeps_a_gpu_its_parent_and_its_devices_from_every_other_node() -> None:
    fleet = Declared()
    fleet.declare("whole", x("GPU-P"), at=1.0)
    fleet.declare("one", x("MIG-1", "GPU-P"), at=2.0)
    fleet.declare("two", x("MIG-2", "GPU-P"), at=3.0)
    fleet.identities.hold("one", "MIG-1", "claimed by job")
    assert fleet.why_not("whole", "GPU-P") == "claimed by job on node one"
    assert fleet.why_not("two", "MIG-2") is None
    fleet.identities.free("one", "MIG-1")
    fleet.identities.hold("whole", "GPU-P", "claimed by other")
    assert fleet.why_not("one", "MIG-1") == fleet.why_not("two", "MIG-2") == "claimed by other on node whole"
    assert {one.record.node_id for one in fleet.identities.concerned("whole", ["GPU-P"])} == {"one", "two"}


def test_of_a_crowd_that_declares_one_gpu_a_change_concerns_two_nodes_at_most() -> None:
    fleet = Declared()
    for place in range(200):
        assert len(fleet.declare(f"node-{place}", x(), at=float(place))) <= 2
    fleet.identities.hold("node-0", "GPU-X", "claimed by job")
    assert [one.record.node_id for one in fleet.identities.concerned("node-0", ["GPU-X"])] == ["node-199"]
    for place in range(199, -1, -1):
        fleet.candidates.pop(f"node-{place}")
        assert len(fleet.identities.remove(f"node-{place}")) <= 1
