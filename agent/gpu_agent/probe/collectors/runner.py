"""Finds and runs collectors, which are third-party code, and merges their reports with NVML's.

One of the three places where every exception is caught. A report passes validation before anything else uses
it. GPUs
are distinguished by uuid and PCI address; the first report to list a GPU has it.
"""

import importlib
import os
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import TypeVar

from gpu_agent.probe import pci
from gpu_agent.probe.collectors.protocol import INTERFACE, Collector, InstalledCollector, Surroundings
from gpu_agent.probe.collectors.validation import validate
from gpu_agent.records import dataclass, replace
from gpu_agent.wire.inventory import Gpu, GpuReport, Outcome

GROUP = "gpu_agent.collectors"
NVML = "nvml"
"""The name of the agent's own reading beside the collectors'."""

_OUR_PACKAGE = "gpu_agent"
_METADATA = (".dist-info", ".egg-info")
_LISTING = "entry_points.txt"
_T = TypeVar("_T")
MakeCollector = Callable[[Surroundings], Collector]


@dataclass(frozen=True, slots=True)
class CollectorFailure:
    """No report: the collector could not be loaded, raised, or gave an invalid report."""

    detail: str
    """A sentence with the next step."""


class CollectorRunner:
    """One collector; it is made at the first read, and again after a read that failed.

    It starts no thread and has no deadline: the caller does, since a collector may never return.
    """

    def __init__(self, installed: InstalledCollector, surroundings: Surroundings) -> None:
        self.name = installed.name
        self._installed = installed
        self._surroundings = surroundings
        self._collector: Collector | None = None

    def read(self, deadline_seconds: float) -> GpuReport | CollectorFailure:
        """Read once. Blocks for as long as the collector does, and raises none of its exceptions."""
        return _catch_everything(lambda: self._read(deadline_seconds), self._failed)

    def _read(self, deadline_seconds: float) -> GpuReport | CollectorFailure:
        if self._collector is None:
            self._collector = self._make()
        return validate(self._collector.read(deadline_seconds))

    def _failed(self, error: BaseException) -> CollectorFailure:
        self._collector = None
        return CollectorFailure(failed_sentence(self.name, error))

    def _make(self) -> Collector:
        make = self._installed.load()
        if not callable(make):
            raise TypeError(f"its entry point names {type(make).__name__}, which cannot be called")
        made = make(self._surroundings)
        interface = getattr(made, "interface", None)
        if interface != INTERFACE:
            raise TypeError(
                f"it was written for interface {interface!r} and this agent has {INTERFACE}: update it"
            )
        collector: Collector = made
        return collector


def failed_sentence(name: str, error: BaseException) -> str:
    """Say that a collector failed and how, with the next step; its own text is cut and stays on one line."""
    if isinstance(error, _MissingError):
        return str(error)
    text = _catch_everything(lambda: str(error), lambda _: "")  # `__str__` is the collector's code too
    text = " ".join("".join(each if each.isprintable() else " " for each in text).split())[:200]
    what = f"{type(error).__name__}: {text}" if text else type(error).__name__
    return (
        f"The collector {name!r} failed ({what}): update or remove the package that brings it, "
        "or leave it out of the setting `collectors`."
    )


def silent_sentence(name: str, seconds: float) -> str:
    """Say that a collector let the deadline pass."""
    return (
        f"The collector {name!r} did not answer within {seconds:g} s: see `dmesg` for messages of its "
        "driver, or leave it out of the setting `collectors`."
    )


def _catch_everything(work: Callable[[], _T], failed: Callable[[BaseException], _T]) -> _T:
    try:
        return work()
    except BaseException as error:  # noqa: BLE001 - the border; a thread of ours has no Ctrl-C to handle
        return failed(error)


# ---- one reading of every collector, for a command


@dataclass(frozen=True, slots=True)
class StartedCollectors:
    """Collectors that are being read, each in a thread that never keeps the program from ending."""

    threads: tuple[tuple[str, threading.Thread], ...]
    answers: dict[str, GpuReport | CollectorFailure]
    """Filled by the threads."""
    started_at: float
    """Monotonic seconds."""
    deadline_seconds: float


def start_collectors(
    wanted: Iterable[str] | None, surroundings: Surroundings, *, deadline_seconds: float
) -> StartedCollectors:
    """Read the wanted collectors (`None`: all that are installed), all at once; returns at once."""
    started_at = time.monotonic()
    answers: dict[str, GpuReport | CollectorFailure] = {}

    def read(runner: CollectorRunner) -> None:
        answers[runner.name] = runner.read(deadline_seconds)

    runners = [CollectorRunner(one, surroundings) for one in find_collectors(wanted)]
    threads = [
        (one.name, threading.Thread(target=read, args=(one,), name=f"collector-{one.name}", daemon=True))
        for one in runners
    ]
    for _, thread in threads:
        thread.start()
    return StartedCollectors(tuple(threads), answers, started_at, deadline_seconds)


def collect_reports(started: StartedCollectors) -> dict[str, GpuReport]:
    """Fetch the reports; a collector that failed, or has not answered by the deadline, is broken."""
    return {name: _report(started, name, thread) for name, thread in started.threads}


def _report(started: StartedCollectors, name: str, thread: threading.Thread) -> GpuReport:
    thread.join(max(0.0, started.started_at + started.deadline_seconds - time.monotonic()))
    answer = started.answers.get(name)
    if isinstance(answer, GpuReport):
        return answer
    detail = silent_sentence(name, started.deadline_seconds) if answer is None else answer.detail
    return GpuReport(outcome=Outcome.DRIVER_BROKEN, detail=detail)


# ---- one report out of all


def merge_reports(nvml: GpuReport, others: Mapping[str, GpuReport]) -> GpuReport:
    """Merge NVML's report and the collectors', in their order; where those found nothing it is NVML's itself.

    A reading that failed takes nothing from the others: its sentence stands in `detail`.
    """
    if not any(one.gpus or one.detail or one.driver_version for one in others.values()):
        return nvml
    reports = (nvml, *others.values())
    outcome = _outcome(nvml, reports)
    return replace(
        nvml,
        outcome=outcome,
        detail=" ".join(dict.fromkeys(_sentences(nvml, others.values(), outcome))) or None,
        gpus=tuple(_renumber(_distinct(reports))),
        driver_version=next((one.driver_version for one in reports if one.driver_version), None),
        took_ms=max(one.took_ms for one in reports),
    )


def _outcome(nvml: GpuReport, reports: Iterable[GpuReport]) -> Outcome:
    """`ok` where any reading has GPUs to offer; else a broken driver counts before one that is not there."""
    if any(one.outcome is Outcome.OK and one.offered for one in reports):
        return Outcome.OK
    broken = any(one.outcome is Outcome.DRIVER_BROKEN for one in reports)
    return Outcome.DRIVER_BROKEN if broken else nvml.outcome


def _sentences(nvml: GpuReport, others: Iterable[GpuReport], outcome: Outcome) -> Iterator[str]:
    """Report every failure; report a driver that is not there only where no GPU was found."""
    found = outcome is Outcome.OK and nvml.outcome is not Outcome.OK
    if nvml.detail and not (found and nvml.outcome is Outcome.NO_DRIVER):
        yield nvml.detail
    for one in others:
        if one.detail and (one.outcome is Outcome.DRIVER_BROKEN or outcome is not Outcome.OK):
            yield one.detail


def _distinct(reports: Iterable[GpuReport]) -> Iterator[tuple[int, Gpu]]:
    """Each GPU once, with the number of the report that it is from."""
    uuids: set[str] = set()
    addresses: set[str] = set()
    for number, report in enumerate(reports):
        listed = [gpu for gpu in report.gpus if gpu.uuid not in uuids and _pci_address(gpu) not in addresses]
        uuids.update(gpu.uuid for gpu in listed)
        addresses.update(address for gpu in listed if (address := _pci_address(gpu)))
        yield from ((number, gpu) for gpu in listed)


def _pci_address(gpu: Gpu) -> str | None:
    """The PCI address with a short domain; a MIG device has its GPU's, so it has none of its own."""
    if gpu.pci_bus_id is None or gpu.parent_uuid is not None:
        return None
    domain, _, rest = gpu.pci_bus_id.lower().partition(":")
    return f"{domain.lstrip('0')}:{rest}"


def _renumber(gpus: Iterable[tuple[int, Gpu]]) -> Iterator[Gpu]:
    """Continue each report's indices where the report before ended: an index is one GPU's."""
    current, first, following = 0, 0, 0
    for number, gpu in gpus:
        if number != current:
            current, first = number, following
        index = None if gpu.index is None else gpu.index + first
        following = max(following, 0 if index is None else index + 1)
        yield gpu if index == gpu.index else replace(gpu, index=index)


# ---- which collectors are installed


def find_collectors(wanted: Iterable[str] | None = None) -> tuple[InstalledCollector, ...]:
    """List the collectors of all packages by name, or the wanted ones among them; each name once."""
    found = _entry_points()
    names = sorted(found) if wanted is None else [name for name in dict.fromkeys(wanted) if name != NVML]
    return tuple(
        InstalledCollector(name, found.get(name) or _missing_collector(name, tuple(found))) for name in names
    )


def _entry_points() -> dict[str, Callable[[], object]]:
    """Name → loader. `importlib.metadata` is loaded only where another package may provide a collector."""
    if not may_provide(GROUP, beside=_OUR_PACKAGE):
        return {name: _where_cards_are(name, load) for name, load in OURS.items()}
    metadata = importlib.import_module("importlib.metadata")
    return {point.name: point.load for point in metadata.entry_points(group=GROUP)}


def _where_cards_are(name: str, load: Callable[[], MakeCollector]) -> Callable[[], object]:
    return lambda: partial(_WhereCardsAre, vendor=_VENDORS[name], load=load)


class _WhereCardsAre:
    """A collector of ours that is loaded once the machine has a card of its vendor.

    Most machines never have one, and loading both costs a command as much as all else that it reads.
    """

    interface = INTERFACE

    def __init__(self, surroundings: Surroundings, *, vendor: int, load: Callable[[], MakeCollector]) -> None:
        self._surroundings = surroundings
        self._vendor = vendor
        self._load = load
        self._collector: Collector | None = None

    def read(self, deadline_seconds: float) -> GpuReport:
        if self._collector is None:
            if not _may_have_card(str(self._surroundings.sys_dir), self._vendor):
                return GpuReport(outcome=Outcome.OK)
            self._collector = self._load()(self._surroundings)
        return self._collector.read(deadline_seconds)


def _may_have_card(sys_dir: str, vendor: int) -> bool:
    """Whether a card or a PCI device may be a GPU of the vendor's; what cannot be read may be one."""
    for folder, is_of_vendor in (("class/drm", _is_card_of), ("bus/pci/devices", pci.is_gpu)):
        try:
            names = os.listdir(f"{sys_dir}/{folder}")  # noqa: PTH208 - pathlib weighs
        except FileNotFoundError:
            continue
        except OSError:
            return True
        if any(is_of_vendor(f"{sys_dir}/{folder}/{name}", vendor) for name in names):
            return True
    return False


def _is_card_of(folder: str, vendor: int) -> bool:
    number = folder.rpartition("/card")[2]  # `card0-DP-1` is a connector
    return number.isdigit() and pci.vendor_of(f"{folder}/device") in (vendor, None)


def _amd() -> MakeCollector:
    from gpu_agent.probe.collectors.amd import AmdGpus  # noqa: PLC0415 - see `_WhereCardsAre`

    return AmdGpus


def _intel() -> MakeCollector:
    from gpu_agent.probe.collectors.intel import IntelGpus  # noqa: PLC0415 - as above

    return IntelGpus


OURS: dict[str, Callable[[], MakeCollector]] = {"amd": _amd, "intel": _intel}
"""The collectors of this package, as its entry points name them."""
_VENDORS = {"amd": pci.AMD, "intel": pci.INTEL}


class _MissingError(LookupError):
    """The settings name a collector that nothing brings."""


def _missing_collector(name: str, present: tuple[str, ...]) -> Callable[[], object]:
    def load() -> object:
        there = ", ".join(sorted((NVML, *present)))
        raise _MissingError(
            f"No package brings a collector {name!r}; there are: {there}. Correct the name in the setting "
            "`collectors`, or install the package."
        )

    return load


def may_provide(group: str, *, beside: str, paths: Iterable[str] | None = None) -> bool:
    """Whether a package other than `beside` may provide entry points of a group; `paths`: of imports.

    The packages' own files are read, because the standard library's search loads half of it first, and a
    command must be quick. Where not all packages can be seen, the answer is yes.
    """
    for path in dict.fromkeys(sys.path if paths is None else paths):
        if os.path.isfile(path):  # noqa: PTH113 - pathlib weighs
            return True  # a zip, whose packages are not seen from here
        if any(group in listing for listing in _listings(path or ".", beside)):
            return True
    return False


def _listings(path: str, beside: str) -> Iterator[str]:
    try:
        names = os.listdir(path)  # noqa: PTH208 - names are enough
    except OSError:
        return
    for name in names:
        if name.endswith(_METADATA) and not name.startswith(f"{beside}-"):
            yield _read_text(os.path.join(path, name, _LISTING))  # noqa: PTH118 - pathlib weighs


def _read_text(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:  # noqa: PTH123 - pathlib weighs
            return file.read()
    except OSError:
        return ""
