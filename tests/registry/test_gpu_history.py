"""The last 15 minutes of each GPU: a point per 15 s at most; what is unknown stays unknown."""
# ruff: noqa: ANN401 - parts of messages are passed through as they are

from itertools import pairwise
from typing import Any

import pytest

from gpu_agent.registry.events import ConnectionLost
from gpu_agent.registry.gpu_history import POINTS, GpuHistory, GpuPoint
from gpu_agent.registry.gpus import Gpus
from gpu_agent.registry.node import NodeRecord
from gpu_agent.wire.messages import GpuDeclaration, GpuFigures, Hardware
from tests.registry.harness import Registry, figures, hardware

KNOWN = {"utilization_percent": 41.0, "memory_used_mb": 30_000, "temperature_c": 61.5, "power_w": 312.0}


def registry_with(count: int = 1, **parts: Any) -> Registry:
    registry = Registry(auth_off=True, gateways=False)
    registry.arrive(None, 1, "node-1", hardware=hardware(count), **parts)
    return registry


def record(registry: Registry) -> NodeRecord:
    found = registry.fleet.node("node-1")
    assert found is not None
    return found


def points(registry: Registry, uuid: str = "GPU-0", *, seconds: float = 900.0) -> list[GpuPoint]:
    node = record(registry)
    return node.gpu_history.points(node.gpus, since=registry.now - seconds)[uuid]


def report(registry: Registry, seconds: float = 15.0, count: int = 1, **parts: Any) -> None:
    registry.pass_time(seconds)
    registry.heartbeat(1, "node-1", gpus=figures(count, **(KNOWN | parts)))


def test_a_point_holds_the_four_figures() -> None:
    registry = registry_with()
    report(registry)
    (point,) = points(registry)[-1:]
    assert (point.at, point.utilization_percent, point.temperature_c) == (registry.now, 41.0, 61.5)
    assert point.power_w == 312.0
    assert point.memory_used_mb is not None
    assert 30_000 - 256 <= point.memory_used_mb <= 30_000


def test_each_gpu_has_its_own_points() -> None:
    registry = registry_with(3)
    registry.pass_time(15.0)
    own = tuple(
        GpuFigures(uuid=f"GPU-{place}", utilization_percent=10.0 * place, power_w=100.0 + place)
        for place in range(3)
    )
    registry.heartbeat(1, "node-1", gpus=own)
    last = [points(registry, f"GPU-{place}")[-1] for place in range(3)]
    assert [one.utilization_percent for one in last] == [0.0, 10.0, 20.0]
    assert [one.power_w for one in last] == [100.0, 101.0, 102.0]


@pytest.mark.parametrize("name", ["utilization_percent", "memory_used_mb", "temperature_c", "power_w"])
def test_an_unknown_figure_stays_unknown_and_hides_no_other(name: str) -> None:
    registry = registry_with()
    known: dict[str, Any] = {name: None}
    report(registry, **known)
    (point,) = points(registry)[-1:]
    assert [one for one in GpuPoint._fields if getattr(point, one) is None] == [name]


def test_a_lost_gpu_has_points_without_figures_beside_those_of_others() -> None:
    registry = registry_with(2)
    registry.pass_time(15.0)
    lost = GpuFigures(uuid="GPU-0", health="lost", reasons=("gpu_lost",))
    registry.heartbeat(1, "node-1", gpus=(lost, *figures(2, **KNOWN)[1:]))
    assert points(registry)[-1][1:] == (None, None, None, None)
    assert points(registry, "GPU-1")[-1].utilization_percent == 41.0


def test_a_figure_that_no_gpu_has_is_no_error() -> None:
    registry = registry_with()
    report(registry, power_w=1e9)
    assert points(registry)[-1].power_w == 65504.0


def test_heartbeats_that_come_faster_bring_a_point_every_15_seconds() -> None:
    registry = registry_with()
    for _ in range(90):
        report(registry, 2.0)
    times = [one.at for one in points(registry)]
    assert all(14 <= later - earlier <= 16 for earlier, later in pairwise(times))
    assert len(times) >= 11


def test_the_ring_holds_15_minutes_and_no_more() -> None:
    registry = registry_with()
    for number in range(100):
        report(registry, utilization_percent=float(number))
    shown = points(registry)
    assert len(shown) == POINTS
    assert [one.utilization_percent for one in shown] == [float(number) for number in range(40, 100)]
    assert [one.utilization_percent for one in points(registry, seconds=30.0)] == [97.0, 98.0, 99.0]


def test_another_list_of_gpus_starts_again_and_the_same_one_goes_on() -> None:
    registry = registry_with()
    report(registry)
    registry.do(ConnectionLost(1))
    registry.arrive(None, 2, "node-1", hardware=hardware(1))
    before = len(points(registry))
    registry.pass_time(15.0)
    registry.heartbeat(2, "node-1", gpus=figures(1, **KNOWN))
    assert len(points(registry)) > before >= 1
    other = Hardware(cpu_cores=8, memory_gb=64, gpus=(GpuDeclaration(uuid="B", name="L4", memory_gb=24),))
    registry.pass_time(15.0)
    registry.heartbeat(2, "node-1", hardware=other, gpus=(GpuFigures(uuid="B", utilization_percent=7.0),))
    assert [one.utilization_percent for one in points(registry, "B")] == [7.0]


def test_a_node_without_gpus_has_points_of_none() -> None:
    history = GpuHistory()
    history.add(Gpus(), None, 1000.0)
    history.add(Gpus(), None, 1015.0)
    assert history.size_bytes == POINTS * 4


def test_a_gpu_takes_510_bytes() -> None:
    registry = registry_with(8)
    report(registry, count=8)
    assert record(registry).gpu_history.size_bytes == 8 * 510


def test_the_newest_point_has_a_time_once_there_is_one() -> None:
    assert GpuHistory().newest_at is None
    registry = registry_with()
    report(registry)
    assert record(registry).gpu_history.newest_at == registry.now
