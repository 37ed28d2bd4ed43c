from pathlib import Path

import pytest

from gpu_agent.probe.amd import AmdGpus
from gpu_agent.probe.collectors import installed
from tests.probe.a_collector import GOOD, bring


def test_the_agents_own_second_collector_is_found_as_any_other() -> None:
    found = {one.name: one for one in installed()}
    assert found["amd"].load() is AmdGpus


def test_a_package_adds_a_collector_by_an_entry_point(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bring(tmp_path, "intel", GOOD)
    monkeypatch.syspath_prepend(str(tmp_path))
    assert [one.name for one in installed()] == ["amd", "intel"]


def test_only_the_wanted_ones_run_and_nvml_always_does_so_it_needs_no_naming() -> None:
    assert [one.name for one in installed(["nvml", "amd", "amd"])] == ["amd"]
    assert installed([]) == ()


def test_a_wanted_collector_that_nobody_brings_says_which_there_are() -> None:
    (absent,) = installed(["rocm"])
    with pytest.raises(LookupError, match="no package brings a collector 'rocm'; there are: amd, nvml"):
        absent.load()


def test_a_package_that_cannot_be_imported_is_not_imported_to_be_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bring(tmp_path, "torn", "raise SystemExit('gone')")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert "torn" in [one.name for one in installed()]
