import sys

import pytest

from tests.probe.models.random_trees import judge

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="counts open files in /proc")


@pytest.mark.parametrize("first", range(0, 240, 40))
def test_no_tree_makes_a_scan_raise_overrun_leak_or_show_a_path(first: int) -> None:
    for seed in range(first, first + 40):
        judge(seed)
