import asyncio

from gpu_agent.registry.gpus import Gpus, GpuState
from gpu_agent.registry.record import Drain, NodeRecord
from gpu_agent.server.headcount import LONGEST_GPU_NAME, MOST_GPU_NAMES, NODES_IN_A_SLICE, OTHER, taken
from gpu_agent.wire.codes import NodeStatus
from gpu_agent.wire.messages import Hardware, NodeRegister

HARDWARE = Hardware.model_validate({"cpu_cores": 1, "memory_gb": 1, "gpus": []})
REGISTRATION = NodeRegister(version="1", hardware=HARDWARE)


def gpu(uuid: str, name: str = "NVIDIA L4", *, health: str = "ok", is_parent: bool = False) -> GpuState:
    return GpuState(uuid=uuid, name=name, memory_mb=1024, health=health, is_parent=is_parent)


def record(node_id: str, *gpus: GpuState, status: NodeStatus = NodeStatus.READY) -> NodeRecord:
    return NodeRecord(
        node_id=node_id,
        registration=REGISTRATION,
        hardware=HARDWARE,
        registered_at=0.0,
        status=status,
        gpus=Gpus(gpus),
    )


async def test_nodes_and_places_are_counted_by_status() -> None:
    busy, lost = record("a"), record("b", status=NodeStatus.OFFLINE)
    busy.max_concurrent_jobs, busy.reported_jobs, busy.connection = 8, 3, 1
    lost.cordoned, lost.drain = "broken", Drain(by_operator=True, deadline=1.0)
    counted = await taken([busy, lost])
    assert (counted.statuses["ready"], counted.statuses["offline"], counted.statuses["degraded"]) == (
        1,
        1,
        0,
    )
    assert (counted.places["ready"], counted.occupied["ready"]) == (8, 3)
    assert counted.others == {"connected": 1, "cordoned": 1, "drains": 1, "claims": 0}


async def test_gpus_are_counted_by_name_and_health_without_parents_of_slices() -> None:
    headcount = await taken(
        [
            record("a", gpu("1"), gpu("2", health="lost")),
            record("b", gpu("1"), gpu("2", "H100", is_parent=True), gpu("3", "H100 MIG 1g.10gb")),
        ]
    )
    assert headcount.gpus == {
        ("NVIDIA L4", "ok"): 2,
        ("NVIDIA L4", "lost"): 1,
        ("H100 MIG 1g.10gb", "ok"): 1,
    }


async def test_what_peers_name_as_they_like_is_bounded() -> None:
    odd = [gpu(str(number), f"{number:03d}{'x' * 500}", health=f"h{number}") for number in range(100)]
    gpus = (await taken([record("a", *odd)])).gpus
    names = {name for name, _ in gpus}
    assert len(names) == MOST_GPU_NAMES + 1
    assert OTHER in names
    assert max(map(len, names)) == LONGEST_GPU_NAME
    assert {health for _, health in gpus} == {OTHER}
    assert gpus.total() == 100


async def test_a_gpus_name_steers_no_terminal_that_shows_the_figures() -> None:
    assert (await taken([record("a", gpu("1", "L4\x1b[2J\r\n"))])).gpus == {("L4?[2J??", "ok"): 1}


async def test_everybody_has_a_turn_between_two_slices_of_ten_thousand_nodes() -> None:
    """What a slice costs is a benchmark's to say."""
    fleet = [record(str(number), *(gpu(str(place)) for place in range(8))) for number in range(10_000)]
    counting, turns = asyncio.ensure_future(taken(fleet)), 0
    while not counting.done():
        await asyncio.sleep(0)
        turns += 1
    assert turns >= 10_000 / NODES_IN_A_SLICE
    assert counting.result().gpus == {("NVIDIA L4", "ok"): 80_000}
