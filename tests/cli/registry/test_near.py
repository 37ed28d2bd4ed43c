import pytest

from gpu_agent.cli.registry.near import did_you_mean, nearest

IDS = ["node-3ECEA4E2", "node-7F00A1B2", "gpu-box-1", "gpu-box-2", "gpu-box-3", "gpu-box-4"]


@pytest.mark.parametrize(
    ("meant", "near"),
    [
        ("node-3ECEA4E3", ["node-3ECEA4E2"]),
        ("node-3ecea4e2", ["node-3ECEA4E2"]),
        ("3ecea", ["node-3ECEA4E2"]),
        ("7f00", ["node-7F00A1B2"]),
        ("gpu-box", ["gpu-box-1", "gpu-box-2", "gpu-box-3"]),
        ("node-00000000", []),
        ("x", []),
        ("", []),
    ],
)
def test_ids_that_hold_the_word_come_first_then_those_like_it(meant: str, near: list[str]) -> None:
    assert nearest(meant, IDS) == near


def test_nothing_is_said_where_nothing_is_near() -> None:
    assert did_you_mean("nobody", IDS) == ""
    assert did_you_mean("gpu-box", IDS[2:4]) == "; did you mean gpu-box-1 or gpu-box-2?"
