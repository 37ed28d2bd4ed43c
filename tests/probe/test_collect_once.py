import time
from pathlib import Path

import pytest

from gpu_agent.probe.collect_once import collect, start_collectors
from gpu_agent.probe.collectors import Surroundings
from gpu_agent.wire.inventory import Outcome
from tests.probe.a_collector import GOOD, bring

HANGS = """
import threading
class Made:
    interface = 1
    def __init__(self, surroundings): pass
    def read(self, deadline_seconds): threading.Event().wait()
"""


def test_one_that_hangs_and_one_that_cannot_be_loaded_leave_the_third_its_gpus(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bring(tmp_path, "hangs", HANGS)
    bring(tmp_path, "torn", "import a_module_that_is_not_there")
    bring(tmp_path, "intel", GOOD)
    monkeypatch.syspath_prepend(str(tmp_path))
    began = time.monotonic()
    started = start_collectors(["hangs", "torn", "intel"], Surroundings(), deadline_seconds=1.0)
    reports = collect(started)
    assert time.monotonic() - began < 10
    assert [gpu.uuid for gpu in reports["intel"].gpus] == ["INTEL-1"]
    assert reports["hangs"].outcome is Outcome.DRIVER_BROKEN
    assert "'hangs' did not answer within 1 s" in (reports["hangs"].detail or "")
    assert "ModuleNotFoundError" in (reports["torn"].detail or "")


def test_where_none_is_wanted_none_is_asked() -> None:
    assert collect(start_collectors([], Surroundings(), deadline_seconds=1)) == {}


def test_all_are_asked_where_nothing_is_said(tmp_path: Path) -> None:
    started = start_collectors(None, Surroundings(sys_dir=tmp_path), deadline_seconds=20)
    assert collect(started)["amd"].gpus == ()
