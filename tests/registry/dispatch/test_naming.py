import pytest

from gpu_agent.registry.dispatch import naming
from tests.registry.dispatch.nodes import gpu, gpus, model, node


def test_many_names_are_a_few_in_order_and_a_count() -> None:
    assert naming.listed(["b", "a"]) == "a, b"
    assert naming.listed(map(str, range(10, 22))) == "10, 11, 12, 13, 14, 15, 16, 17 and 4 more"
    assert naming.listed(["b", "a"], in_order=True) == "b, a"
    assert naming.listed([]) == "none"


def test_gpus_that_are_alike_are_counted_so_that_none_of_many_is_left_out() -> None:
    states = [gpu(str(place), name=f"NVIDIA L{place // 12}") for place in range(16)]
    assert naming.gpus(node(gpus=gpus(*states))) == "12x NVIDIA L0 ok, 4x NVIDIA L1 ok"


def test_gpus_are_named_with_their_health() -> None:
    parent = gpu("m", name="NVIDIA H100")
    parent.is_parent = True
    record = node(gpus=gpus(gpu("a"), gpu("b", health="lost"), parent))
    assert naming.gpus(record) == "NVIDIA L4 ok, NVIDIA L4 lost, NVIDIA H100 MIG parent"
    assert naming.gpus(node(gpus=gpus())) == "no GPU"


def test_free_memory_is_told_gpu_by_gpu_and_debt_counts_as_none() -> None:
    assert naming.memory([24_000, None, -5]) == "24000 MiB, unknown, 0 MiB"
    assert naming.memory([1] * 10).endswith("1 MiB and 2 more")
    assert naming.memory([]) == "no GPU"


@pytest.mark.parametrize(
    ("installed", "reported", "state"),
    [
        ((), None, "not installed"),
        ((model("m", enabled=False),), None, "disabled"),
        ((model("m", status="downloading"),), None, "downloading"),
        ((model("m", status="downloading"),), {"m": "error"}, "error"),
        ((model("m", enabled=False, status="ready"), model("m", status="error")), None, "error"),
    ],
)
def test_the_state_of_a_model_is_one_word(
    installed: tuple[object, ...], reported: dict[str, str] | None, state: str
) -> None:
    assert naming.model_state(node(models=installed, capability_state=reported), "m") == state


def test_a_model_that_can_serve_is_ready_whatever_its_other_versions_are() -> None:
    record = node(models=(model("m", status="error"), model("m")), ready_models=frozenset({"m"}))
    assert naming.model_state(record, "m") == "ready"
