"""Which collectors are installed, and whether a package may provide one."""

import sys
import zipfile
from importlib.metadata import entry_points
from pathlib import Path

import pytest

from gpu_agent.probe.collectors import runner
from gpu_agent.probe.collectors.protocol import Surroundings
from gpu_agent.probe.collectors.runner import CollectorFailure, CollectorRunner, find_collectors, may_provide
from gpu_agent.wire.inventory import GpuReport, Outcome
from tests.probe.collectors.fake_collector import GOOD, bring


def test_the_agents_own_collectors_are_found_like_any_other(tmp_path: Path) -> None:
    for one in find_collectors():
        assert one.name in ("amd", "intel")
        report = CollectorRunner(one, Surroundings(sys_dir=tmp_path)).read(5)
        assert report == GpuReport(outcome=Outcome.OK)


def test_a_package_adds_a_collector_by_an_entry_point(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bring(tmp_path, "acme", GOOD)
    monkeypatch.syspath_prepend(str(tmp_path))
    assert [one.name for one in find_collectors()] == ["acme", "amd", "intel"]


def test_only_the_wanted_collectors_are_found_and_nvml_needs_no_naming() -> None:
    assert [one.name for one in find_collectors(["nvml", "amd", "amd"])] == ["amd"]
    assert find_collectors([]) == ()


def test_a_wanted_collector_that_is_not_installed_names_those_that_are() -> None:
    (absent,) = find_collectors(["rocm"])
    with pytest.raises(LookupError, match="brings a collector 'rocm'; there are: amd, intel, nvml"):
        absent.load()
    failure = CollectorRunner(absent, Surroundings()).read(5)
    assert isinstance(failure, CollectorFailure)
    assert "Correct the name in the setting `collectors`" in failure.detail
    assert "failed" not in failure.detail


def test_a_package_that_cannot_be_imported_is_not_imported_to_be_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bring(tmp_path, "torn", "raise SystemExit('gone')")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert "torn" in [one.name for one in find_collectors()]


GROUP = "some.group"


def package(path: Path, name: str, listing: str | None) -> None:
    folder = path / f"{name}-1.0.dist-info"
    folder.mkdir(parents=True)
    if listing is not None:
        (folder / "entry_points.txt").write_text(listing)


def provided(*paths: Path) -> bool:
    return may_provide(GROUP, beside="ours", paths=map(str, paths))


def test_a_package_that_brings_one_is_noticed_wherever_it_is(tmp_path: Path) -> None:
    package(tmp_path / "a", "plain", None)
    package(tmp_path / "a", "other", "[console_scripts]\nx = y:z\n")
    assert provided(tmp_path / "nowhere", tmp_path / "a") is False
    package(tmp_path / "b", "theirs", f"[{GROUP}]\nx = y:Z\n")
    assert provided(tmp_path / "a", tmp_path / "b") is True


def test_our_own_package_does_not_count(tmp_path: Path) -> None:
    package(tmp_path, "ours", f"[{GROUP}]\nx = y:Z\n")
    assert provided(tmp_path) is False
    package(tmp_path, "ours_too", f"[{GROUP}]\nx = y:Z\n")
    assert provided(tmp_path) is True


def test_a_zip_of_packages_may_provide_anything(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "packages.zip", "w"):
        pass
    assert provided(tmp_path / "packages.zip") is True


def test_it_agrees_with_the_librarys_search(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [path for path in sys.path if not Path(path).is_file()])
    for group in (runner.GROUP, "console_scripts", "pytest11"):
        theirs = [one for one in entry_points(group=group) if one.dist and one.dist.name != "gpu-agent"]
        assert may_provide(group, beside="gpu_agent") is bool(theirs)


def test_our_own_collectors_are_those_of_the_package() -> None:
    ours = entry_points(group=runner.GROUP)
    assert {one.name: one.load() for one in ours} == {name: load() for name, load in runner.OURS.items()}
