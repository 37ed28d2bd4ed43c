from hypothesis import given, settings
from hypothesis import strategies as st

from gpu_agent.registry.dispatch.gpu_sets import GpuSets
from gpu_agent.registry.dispatch.view import GpuSet

SETS = st.sampled_from(
    [None, (), (("nvidia l4", 1),), (("nvidia l4", 4),), (("rtx 3090", 1), ("rtx 4090", 1)), (("h100", 8),)]
)
DEMANDS = st.tuples(st.sampled_from(["", "rtx", "l4", "h100", "mi300"]), st.integers(0, 8))


@settings(max_examples=80)
@given(st.lists(st.one_of(st.tuples(st.integers(0, 9), SETS), DEMANDS), max_size=40))
def test_answers_stay_right_while_nodes_change(
    steps: list[tuple[int, GpuSet | None] | tuple[str, int]],
) -> None:
    sets, held = GpuSets(), dict.fromkeys(range(10), None)
    state: dict[int, GpuSet | None] = dict(held)
    for first, second in steps:
        if isinstance(first, int) and not isinstance(second, int):
            sets.move(first, state[first], second)
            state[first] = second
        elif isinstance(first, str) and isinstance(second, int):
            able = {
                slot
                for slot, gpus in state.items()
                if gpus is not None and sum(n for name, n in gpus if first in name) >= second
            }
            assert sets.holders(first, second) == sum(1 << slot for slot in able)


def test_more_different_demands_than_are_remembered_are_still_answered() -> None:
    sets = GpuSets()
    sets.move(3, None, (("h100", 8),))
    answers = [sets.holders(f"{'x' * n}h100", 1) for n in range(300)]
    assert answers == [1 << 3] + [0] * 299
    assert sets.holders("h100", 8) == 1 << 3
