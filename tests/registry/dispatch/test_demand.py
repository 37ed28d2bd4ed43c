import pytest

from gpu_agent.registry.dispatch.demand import Demand
from gpu_agent.registry.job import Job
from tests.registry.dispatch.nodes import job


def test_a_demand_left_out_is_no_demand() -> None:
    demand = Demand.of(job())
    assert (demand.allowed, demand.gpu_name, demand.gpu_count, demand.memory_mb) == (None, "", 1, 0)


def test_an_empty_list_of_allowed_nodes_allows_nobody() -> None:
    assert Demand.of(job(allowed_nodes=())).allowed == frozenset()


def test_a_gpu_name_is_compared_whatever_its_case() -> None:
    assert Demand.of(job(gpu_name="H100")).gpu_name == "h100"


@pytest.mark.parametrize(
    "wanted", [job(min_gpu_memory_mb=0), job(gpu_count=0, min_gpu_memory_mb=8_000)], ids=["none", "no GPU"]
)
def test_no_memory_is_demanded_where_none_is_needed_or_no_gpu_is(wanted: Job) -> None:
    assert Demand.of(wanted).memory_mb == 0
