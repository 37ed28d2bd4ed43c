import pytest

from gpu_agent.probe.products import PRODUCTS, SimulationError, find
from gpu_agent.probe.simulation_slices import Profile, slices

A100 = find("A100-80GB")


def test_slices_of_several_sizes_are_one_list() -> None:
    assert slices("3g.40gb + 2x1G.10GB", A100) == (Profile(3, 40), Profile(1, 10), Profile(1, 10))


@pytest.mark.parametrize(
    ("label", "text"),
    [
        ("A100-80GB", "7x1g.10gb"),
        ("A100-40GB", "7x1g.5gb"),
        ("H100-80GB", "3g.40gb+4g.40gb"),
        ("H100-80GB", "7g.80gb"),
        ("H200-141GB", "7x1g.18gb"),
        ("B200-192GB", "7x1g.23gb"),
    ],
)
def test_the_layouts_that_operators_use_fit(label: str, text: str) -> None:
    found = slices(text, find(label))
    assert sum(each.memory_mb for each in found) <= find(label).memory_mb


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "is no slice: write for example 7x1g.10gb"),
        ("8g.80gb", "is no slice"),
        ("1g.0gb", "has no memory"),
        ("0x1g.10gb", "asks for 0 parts"),
        ("4g.40gb+4g.40gb", "asks for 8 parts"),
        ("2x3g.60gb", "asks for 6 parts and 120 GB: A100-80GB has 7 and 80 GB"),
    ],
)
def test_more_than_there_is_cannot_be_cut(text: str, says: str) -> None:
    with pytest.raises(SimulationError, match=says):
        slices(text, A100)


def test_only_products_with_mig_can_be_cut() -> None:
    for product in PRODUCTS:
        if product.mig:
            assert slices("1g.5gb", product)
        else:
            with pytest.raises(SimulationError, match=r"cannot be cut into slices: leave out /1g\.5gb"):
                slices("1g.5gb", product)
