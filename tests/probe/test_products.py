import pytest

from gpu_agent.probe.products import PRODUCTS, SimulationError, find


def test_each_product_is_found_by_its_own_label_and_has_plausible_figures() -> None:
    assert len(PRODUCTS) >= 10
    assert len({product.label for product in PRODUCTS}) == len(PRODUCTS)
    for product in PRODUCTS:
        assert find(product.label) is product
        stated_gb = int(product.label.removesuffix("GB").rpartition("-")[2])
        assert 0.9 * stated_gb <= product.memory_mb / 1024 <= stated_gb
        assert 50 <= product.power_limit_w <= 1200


@pytest.mark.parametrize(
    ("text", "label"),
    [
        ("H100", "H100-80GB"),
        ("h100-80gb", "H100-80GB"),
        ("H100 80 GB", "H100-80GB"),
        ("RTX 4090", "RTX4090-24GB"),
        ("a100-40", "A100-40GB"),
        ("L4", "L4-24GB"),
        ("l40s", "L40S-48GB"),
    ],
)
def test_case_spaces_dashes_and_a_single_size_may_be_left_out(text: str, label: str) -> None:
    assert find(text).label == label


def test_a_family_of_several_sizes_must_be_told_apart() -> None:
    with pytest.raises(SimulationError, match="'A100' comes in several sizes: write A100-80GB or A100-40GB"):
        find("A100")


@pytest.mark.parametrize(("text", "nearest"), [("H101-80GB", "H100-80GB"), ("RTX4080", "RTX4090-24GB")])
def test_an_unknown_product_is_answered_with_the_nearest_and_all_accepted(text: str, nearest: str) -> None:
    with pytest.raises(SimulationError, match=f"nearest is {nearest}") as caught:
        find(text)
    assert text in str(caught.value)
    assert all(product.label in str(caught.value) for product in PRODUCTS)
