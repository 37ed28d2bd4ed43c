from hypothesis import given, strategies

from gpu_agent.registry.dispatch.filters import barred
from gpu_agent.registry.dispatch.scoring import score
from gpu_agent.registry.load import load_of
from gpu_agent.registry.record import NodeRecord
from gpu_agent.registry.thresholds import Thresholds
from gpu_agent.wire.codes import NodeStatus
from gpu_agent.wire.messages import ResourceUsage
from tests.registry.fleets import declaration, hardware

SETTINGS = Thresholds(max_cpu_percent=90.0, max_gpu_percent=85.5, max_memory_percent=90.0)

percents = strategies.floats(min_value=-20.0, max_value=120.0, allow_nan=False)
near_limits = strategies.sampled_from([0.0, 9.9, 10.0, 85.4, 85.5, 85.6, 90.0, 90.1, 100.0, 110.0])
figures = percents | near_limits
usages = strategies.builds(
    ResourceUsage,
    cpu_percent=figures,
    mem_percent=figures,
    gpu_percent=figures | strategies.none(),
    gpu_mem_percent=figures | strategies.none(),
)


def node(usage: ResourceUsage) -> NodeRecord:
    return NodeRecord(
        node_id="n",
        registration=declaration(),
        hardware=hardware(),
        registered_at=0.0,
        status=NodeStatus.READY,
        connection=1,
        usage=usage,
    )


@given(usages, usages)
def test_beats_of_the_same_load_are_the_same_to_dispatch(one: ResourceUsage, other: ResourceUsage) -> None:
    if load_of(one, SETTINGS) == load_of(other, SETTINGS):
        assert score(node(one), 0, SETTINGS) == score(node(other), 0, SETTINGS)
        assert barred(node(one), 0, SETTINGS) == barred(node(other), 0, SETTINGS)
