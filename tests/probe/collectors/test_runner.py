import asyncio
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from gpu_agent.probe.collectors.protocol import InstalledCollector, Surroundings
from gpu_agent.probe.collectors.runner import (
    CollectorFailure,
    CollectorRunner,
    collect_reports,
    failed_sentence,
    find_collectors,
    merge_reports,
    silent_sentence,
    start_collectors,
)
from gpu_agent.wire.inventory import Gpu, GpuReport, Outcome
from tests.probe.collectors.fake_collector import GOOD as FAKE_COLLECTOR_GOOD
from tests.probe.collectors.fake_collector import bring
from tests.waiting import patience

GPU = Gpu(uuid="X-1", name="X", memory_mb=1024)
GOOD = GpuReport(outcome=Outcome.OK, gpus=(GPU,))


class _Collector:
    interface = 1

    def __init__(self, read_gpus: Callable[[], object]) -> None:
        self._read_gpus = read_gpus

    def read(self, deadline_seconds: float) -> GpuReport:
        assert deadline_seconds == 5
        return self._read_gpus()  # type: ignore[return-value]  # the point: a collector may give anything


def attempted(load: Callable[[], object]) -> GpuReport | CollectorFailure:
    return CollectorRunner(InstalledCollector("odd", load), Surroundings()).read(5)


def collecting(read_gpus: Callable[[], object]) -> Callable[[], object]:
    return lambda: lambda _: _Collector(read_gpus)


def raising(error: BaseException) -> Callable[[], object]:
    def read_gpus() -> object:
        raise error

    return read_gpus


def test_what_a_collector_reads_passes() -> None:
    assert attempted(collecting(lambda: GOOD)) == GOOD


class _Speechless(Exception):  # noqa: N818 - a collector's own
    def __str__(self) -> str:
        raise RuntimeError


@pytest.mark.parametrize(
    ("load", "says"),
    [
        (raising(ImportError("no module named 'rocm'")), "ImportError: no module named 'rocm'"),
        (lambda: 7, "its entry point names int, which cannot be called"),
        (lambda: raising(OSError("nothing")), "TypeError"),
        (lambda: lambda _: object(), "written for interface None and this agent has 1: update it"),
        (collecting(raising(ValueError("bad\nlines\tof text"))), "ValueError: bad lines of text"),
        (collecting(raising(ValueError("\x1b[31mred"))), "ValueError: [31mred"),
        (collecting(raising(SystemExit(3))), "SystemExit: 3"),
        (collecting(raising(RecursionError())), "(RecursionError)"),
        (collecting(raising(KeyboardInterrupt())), "(KeyboardInterrupt)"),
        (collecting(raising(asyncio.CancelledError())), "(CancelledError)"),
        (collecting(raising(GeneratorExit("over"))), "GeneratorExit: over"),
        (collecting(raising(_Speechless())), "(_Speechless)"),
        (collecting(raising(ValueError("x" * 5000))), "x" * 100),
        (collecting(lambda: None), "it gave NoneType in place of a GpuReport"),
        (collecting(lambda: {"gpus": []}), "it gave dict in place of a GpuReport"),
    ],
)
def test_whatever_goes_wrong_is_a_sentence_with_the_next_step(load: Callable[[], object], says: str) -> None:
    answer = attempted(load)
    assert isinstance(answer, CollectorFailure)
    assert says in answer.detail
    assert answer.detail.startswith("The collector 'odd' failed (")
    assert "leave it out of the setting `collectors`" in answer.detail
    assert len(answer.detail) < 500
    assert "\n" not in answer.detail


def test_a_collector_is_made_once_and_again_after_it_failed() -> None:
    made: list[int] = []
    fails = iter([False, False, True, False])

    def read_gpus() -> object:
        if next(fails):
            raise OSError
        return GOOD

    def make(surroundings: Surroundings) -> _Collector:
        assert surroundings == Surroundings()
        made.append(1)
        return _Collector(read_gpus)

    attempt = CollectorRunner(InstalledCollector("odd", lambda: make), Surroundings())
    kinds = [type(attempt.read(5)) for _ in range(4)]
    assert kinds == [GpuReport, GpuReport, CollectorFailure, GpuReport]
    assert len(made) == 2


def test_the_sentences_name_the_collector() -> None:
    assert "'x' did not answer within 5 s" in silent_sentence("x", 5.0)
    assert "'x' failed (KeyError" in failed_sentence("x", KeyError("k"))


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
    bring(tmp_path, "acme", FAKE_COLLECTOR_GOOD)
    monkeypatch.syspath_prepend(str(tmp_path))
    began = time.monotonic()
    started = start_collectors(["hangs", "torn", "acme"], Surroundings(), deadline_seconds=1.0)
    reports = collect_reports(started)
    assert time.monotonic() - began < patience(10)
    assert [gpu.uuid for gpu in reports["acme"].gpus] == ["INTEL-1"]
    assert reports["hangs"].outcome is Outcome.DRIVER_BROKEN
    assert "'hangs' did not answer within 1 s" in (reports["hangs"].detail or "")
    assert "ModuleNotFoundError" in (reports["torn"].detail or "")


def test_an_empty_list_runs_no_collector() -> None:
    assert collect_reports(start_collectors([], Surroundings(), deadline_seconds=1)) == {}


def test_all_collectors_run_by_default(tmp_path: Path) -> None:
    started = start_collectors(None, Surroundings(sys_dir=tmp_path), deadline_seconds=20)
    assert collect_reports(started)["amd"].gpus == ()


NVIDIA = tuple(
    Gpu(uuid=f"GPU-{number}", name="A100", index=number, pci_bus_id=f"00000000:0{number + 1}:00.0")
    for number in range(2)
)
RADEON = Gpu(uuid="AMD-1", name="Radeon", index=0, vendor="amd", pci_bus_id="0000:41:00.0")
ONE = GpuReport(outcome=Outcome.OK, gpus=NVIDIA, driver_version="570.1", took_ms=3)
AMD = GpuReport(outcome=Outcome.OK, gpus=(RADEON,), driver_version="amdgpu 6.8", took_ms=7)
NOTHING = GpuReport(outcome=Outcome.OK)
NO_DRIVER = GpuReport(outcome=Outcome.NO_DRIVER, detail="No NVIDIA driver was found.")
BARE = GpuReport(outcome=Outcome.NO_DRIVER, detail="The AMD GPU has no driver.")
BROKEN = GpuReport(outcome=Outcome.DRIVER_BROKEN, detail="It is broken.")


def test_gpus_of_all_collectors_make_one_report_and_each_index_is_one_gpus() -> None:
    report = merge_reports(ONE, {"amd": AMD})
    assert [(gpu.uuid, gpu.index) for gpu in report.gpus] == [("GPU-0", 0), ("GPU-1", 1), ("AMD-1", 2)]
    assert (report.outcome, report.driver_version, report.took_ms) == (Outcome.OK, "570.1", 7)


def test_without_collectors_the_report_is_nvmls_own() -> None:
    assert merge_reports(ONE, {}) is ONE


def test_a_gpu_that_two_collectors_list_is_the_first_ones() -> None:
    same_uuid = Gpu(uuid="GPU-0", name="also an A100", index=0)
    same_place = Gpu(uuid="DCGM-2", name="also an A100", index=1, pci_bus_id="0000:02:00.0")
    report = merge_reports(ONE, {"dcgm": GpuReport(outcome=Outcome.OK, gpus=(same_uuid, same_place))})
    assert report.gpus == NVIDIA


def test_mig_devices_share_their_gpus_address() -> None:
    mig_devices = tuple(
        Gpu(uuid=f"MIG-{n}", name="1g", parent_uuid="GPU-0", pci_bus_id=NVIDIA[0].pci_bus_id)
        for n in range(3)
    )
    report = merge_reports(GpuReport(outcome=Outcome.OK, gpus=(NVIDIA[0], *mig_devices)), {"amd": AMD})
    assert [gpu.uuid for gpu in report.gpus] == ["GPU-0", "MIG-0", "MIG-1", "MIG-2", "AMD-1"]
    assert report.gpus[-1].index == 1


@pytest.mark.parametrize(
    ("own", "other", "outcome", "detail"),
    [
        (ONE, NOTHING, Outcome.OK, None),
        (ONE, BARE, Outcome.OK, None),
        (ONE, BROKEN, Outcome.OK, "It is broken."),
        (NO_DRIVER, AMD, Outcome.OK, None),
        (BROKEN, AMD, Outcome.OK, "It is broken."),
        (NO_DRIVER, NOTHING, Outcome.NO_DRIVER, "No NVIDIA driver was found."),
        (NO_DRIVER, BARE, Outcome.NO_DRIVER, "No NVIDIA driver was found. The AMD GPU has no driver."),
        (NO_DRIVER, BROKEN, Outcome.DRIVER_BROKEN, "No NVIDIA driver was found. It is broken."),
        (NOTHING, NOTHING, Outcome.OK, None),
        (NOTHING, BROKEN, Outcome.DRIVER_BROKEN, "It is broken."),
        (BROKEN, NOTHING, Outcome.DRIVER_BROKEN, "It is broken."),
        (BROKEN, BROKEN, Outcome.DRIVER_BROKEN, "It is broken."),
    ],
)
def test_one_reading_that_fails_takes_nothing_from_the_others(
    own: GpuReport, other: GpuReport, outcome: Outcome, detail: str | None
) -> None:
    report = merge_reports(own, {"other": other})
    assert (report.outcome, report.detail) == (outcome, detail)
    assert len(report.gpus) == len(own.gpus) + len(other.gpus)


# Ours, where no card is of their vendors


def answer_of(name: str, sys_dir: Path) -> tuple[GpuReport, bool]:
    """What our collector reports of a machine, and whether it was loaded for that."""
    module = f"gpu_agent.probe.collectors.{name}"
    already = sys.modules.pop(module, None)
    try:
        (installed,) = find_collectors([name])
        report = CollectorRunner(installed, Surroundings(sys_dir=sys_dir)).read(5)
        assert isinstance(report, GpuReport)
        return report, module in sys.modules
    finally:
        if already is not None:
            sys.modules[module] = already


def pci_device(sys_dir: Path, address: str, **files: str) -> Path:
    folder = sys_dir / "bus/pci/devices" / address
    folder.mkdir(parents=True)
    for name, text in files.items():
        (folder / name).write_text(f"{text}\n")
    return folder


def card(sys_dir: Path, name: str, device: Path) -> None:
    folder = sys_dir / "class/drm" / name
    folder.mkdir(parents=True)
    (folder / "device").symlink_to(device)
    (sys_dir / "class/drm" / f"{name}-DP-1").mkdir()


@pytest.mark.parametrize("name", ["amd", "intel"])
def test_our_collector_is_not_loaded_where_no_card_is_of_its_vendor(tmp_path: Path, name: str) -> None:
    assert answer_of(name, tmp_path / "none") == (GpuReport(outcome=Outcome.OK), False)
    card(tmp_path, "card0", pci_device(tmp_path, "0000:03:00.0", vendor="0x1a03", **{"class": "0x030000"}))
    card(tmp_path, "card1", pci_device(tmp_path, "0000:1a:00.0", vendor="0x10de", **{"class": "0x030200"}))
    pci_device(tmp_path, "0000:00:00.0", vendor="0x1022", **{"class": "0x060000"})
    pci_device(tmp_path, "0000:00:01.0", vendor="0x8086", **{"class": "0x060000"})
    assert answer_of(name, tmp_path) == (GpuReport(outcome=Outcome.OK), False)


def test_a_card_without_its_driver_loads_our_collector_which_says_so(tmp_path: Path) -> None:
    pci_device(tmp_path, "0000:03:00.0", vendor="0x1002", **{"class": "0x038000"})
    report, loaded = answer_of("amd", tmp_path)
    assert loaded
    assert "has no driver" in (report.detail or "")
    assert answer_of("intel", tmp_path) == (GpuReport(outcome=Outcome.OK), False)


def test_a_card_whose_vendor_is_not_known_loads_our_collectors(tmp_path: Path) -> None:
    device = pci_device(tmp_path, "0000:03:00.0")
    card(tmp_path, "card0", device)
    assert answer_of("amd", tmp_path)[1]
    assert answer_of("intel", tmp_path)[1]


def test_a_card_that_is_added_later_is_found(tmp_path: Path) -> None:
    (installed,) = find_collectors(["amd"])
    runner = CollectorRunner(installed, Surroundings(sys_dir=tmp_path))
    assert runner.read(5) == GpuReport(outcome=Outcome.OK)
    pci_device(tmp_path, "0000:03:00.0", vendor="0x1002", **{"class": "0x038000"})
    report = runner.read(5)
    assert isinstance(report, GpuReport)
    assert "has no driver" in (report.detail or "")
