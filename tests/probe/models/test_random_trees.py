import sys
import tempfile
from pathlib import Path

import pytest

from gpu_agent.probe.models.files import open_root
from tests.probe.models.random_trees import judge, judge_rest

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="counts open files in /proc")


@pytest.mark.parametrize("first", range(0, 240, 40))
def test_no_tree_makes_a_scan_raise_overrun_leak_or_show_a_path(first: int) -> None:
    for seed in range(first, first + 40):
        judge(seed)


@pytest.mark.parametrize("first", range(0, 75, 25))
def test_a_scanner_that_rests_misses_no_change(first: int) -> None:
    if not open_root(Path(tempfile.gettempdir())).local:
        pytest.skip("temporary files are on no local file system that is known")
    assert sum(judge_rest(seed) for seed in range(first, first + 25)) > 100
