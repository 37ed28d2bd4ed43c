"""Runs collectors, which are third-party code, and merges their reports with NVML's.

One of the three places where every exception is caught. A report passes validation before anyone sees it.
GPUs are told apart by uuid and PCI address; the first reading to list one has it.
"""

import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TypeVar

from gpu_agent.probe.collectors.protocol import (
    INTERFACE,
    Collector,
    InstalledCollector,
    Surroundings,
    find_collectors,
)
from gpu_agent.probe.collectors.validation import validate
from gpu_agent.wire.inventory import Gpu, GpuReport, Outcome

# The border to collectors: made, asked and listened to here, and whatever goes wrong there is a value
# here.
#
# One of the three places where every exception is caught: a collector is somebody else's code. It
# starts no thread and keeps no deadline; whoever asks does, since a collector may never return.


_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class CollectorFailure:
    """No report: the collector could not be loaded, raised, or said what cannot be admitted."""

    detail: str
    """A sentence with the next step."""


class CollectorRunner:
    """One collector behind its border; it is made at the first read, and again after one that failed."""

    def __init__(self, installed: InstalledCollector, surroundings: Surroundings) -> None:
        self.name = installed.name
        self._installed = installed
        self._surroundings = surroundings
        self._collector: Collector | None = None

    def read(self, deadline_seconds: float) -> GpuReport | CollectorFailure:
        """Ask it once. Blocks for as long as the collector does, and raises nothing of its."""
        return _catch_everything(lambda: self._read(deadline_seconds), self._failed)

    def _read(self, deadline_seconds: float) -> GpuReport | CollectorFailure:
        if self._collector is None:
            self._collector = self._made()
        return validate(self._collector.read(deadline_seconds))

    def _failed(self, error: BaseException) -> CollectorFailure:
        self._collector = None
        return CollectorFailure(failed_sentence(self.name, error))

    def _made(self) -> Collector:
        make = self._installed.load()
        if not callable(make):
            raise TypeError(f"its entry point names {type(make).__name__}, which cannot be called")
        made = make(self._surroundings)
        written_for = getattr(made, "interface", None)
        if written_for != INTERFACE:
            raise TypeError(
                f"it was written for interface {written_for!r} and this agent has {INTERFACE}: update it"
            )
        collector: Collector = made
        return collector


def failed_sentence(name: str, error: BaseException) -> str:
    """Say that a collector failed and how, with the next step; its own words are cut and kept on one line."""
    words = " ".join("".join(each if each.isprintable() else " " for each in _error_text(error)).split())[
        :200
    ]
    said = f"{type(error).__name__}: {words}" if words else type(error).__name__
    return (
        f"The collector {name!r} failed ({said}): update or remove the package that brings it, "
        "or leave it out of the setting `collectors`."
    )


def silent_sentence(name: str, seconds: float) -> str:
    """Say that a collector let the deadline pass."""
    return (
        f"The collector {name!r} did not answer within {seconds:g} s: see `dmesg` for messages of its "
        "driver, or leave it out of the setting `collectors`."
    )


def _error_text(error: BaseException) -> str:
    """What it says of itself, by code of the collector's too."""
    return _catch_everything(lambda: str(error), lambda _: "")


def _catch_everything(work: Callable[[], _T], failed: Callable[[BaseException], _T]) -> _T:
    try:
        return work()
    except BaseException as error:  # noqa: BLE001 - the border; a thread of ours has no Ctrl-C to heed
        return failed(error)


# One reading of every collector for a command: all at once, each in a thread, none waited for too long.
#
# What does not answer in time is left behind with its thread, which never keeps the program from
# ending. Asks nobody twice; the daemon, which does, has a shell of its own.


@dataclass(frozen=True, slots=True)
class StartedCollectors:
    """Collectors that were asked, and when."""

    asked: tuple[tuple[str, threading.Thread], ...]
    answers: dict[str, GpuReport | CollectorFailure]
    """Filled by the threads."""
    asked_at: float
    """Monotonic seconds."""
    deadline_seconds: float


def start_collectors(
    wanted: Iterable[str] | None, surroundings: Surroundings, *, deadline_seconds: float
) -> StartedCollectors:
    """Ask those that are wanted (`None`: all that are installed); returns at once."""
    asked_at = time.monotonic()
    answers: dict[str, GpuReport | CollectorFailure] = {}

    def ask(attempt: CollectorRunner) -> None:
        answers[attempt.name] = attempt.read(deadline_seconds)

    attempts = [CollectorRunner(one, surroundings) for one in find_collectors(wanted)]
    threads = [
        (one.name, threading.Thread(target=ask, args=(one,), name=f"collector-{one.name}", daemon=True))
        for one in attempts
    ]
    for _, thread in threads:
        thread.start()
    return StartedCollectors(tuple(threads), answers, asked_at, deadline_seconds)


def collect_reports(started: StartedCollectors) -> dict[str, GpuReport]:
    """Fetch the answers; whoever is silent at the deadline, counted from the ask, or failed, is broken."""
    return {name: _answer(started, name, thread) for name, thread in started.asked}


def _answer(started: StartedCollectors, name: str, thread: threading.Thread) -> GpuReport:
    thread.join(max(0.0, started.asked_at + started.deadline_seconds - time.monotonic()))
    answer = started.answers.get(name)
    if isinstance(answer, GpuReport):
        return answer
    detail = silent_sentence(name, started.deadline_seconds) if answer is None else answer.detail
    return GpuReport(outcome=Outcome.DRIVER_BROKEN, detail=detail)


# All readings of one machine as one report: NVML's own, and what collectors found beside it.
#
# GPUs are told apart by uuid and by their place on the PCI bus, and the first to list one has it. A
# reading that failed takes nothing from the others: its sentence stands in `detail`. Judges no GPU.


def merge_reports(own: GpuReport, others: Mapping[str, GpuReport]) -> GpuReport:
    """Join NVML's report and the collectors', in their order; without others it is `own` itself."""
    if not others:
        return own
    everyone = (own, *others.values())
    outcome = _outcome(own, everyone)
    return replace(
        own,
        outcome=outcome,
        detail=" ".join(dict.fromkeys(_sentences(own, others.values(), outcome))) or None,
        gpus=tuple(_renumber(_distinct(everyone))),
        driver_version=next((one.driver_version for one in everyone if one.driver_version), None),
        took_ms=max(one.took_ms for one in everyone),
    )


def _outcome(own: GpuReport, everyone: Iterable[GpuReport]) -> Outcome:
    """`ok` where any reading gave GPUs; else what is broken goes before what is merely not there."""
    if any(one.outcome is Outcome.OK and one.gpus for one in everyone):
        return Outcome.OK
    broken = any(one.outcome is Outcome.DRIVER_BROKEN for one in everyone)
    return Outcome.DRIVER_BROKEN if broken else own.outcome


def _sentences(own: GpuReport, others: Iterable[GpuReport], outcome: Outcome) -> Iterator[str]:
    """A failure is always told; that somebody's driver is not there, only where nothing else is."""
    found = outcome is Outcome.OK and own.outcome is not Outcome.OK
    if own.detail and not (found and own.outcome is Outcome.NO_DRIVER):
        yield own.detail
    for one in others:
        if one.detail and (one.outcome is Outcome.DRIVER_BROKEN or outcome is not Outcome.OK):
            yield one.detail


def _distinct(reports: Iterable[GpuReport]) -> Iterator[tuple[int, Gpu]]:
    """Each GPU once, with the number of the report that it is from."""
    uuids: set[str] = set()
    places: set[str] = set()
    for number, report in enumerate(reports):
        listed = [gpu for gpu in report.gpus if gpu.uuid not in uuids and _pci_address(gpu) not in places]
        uuids.update(gpu.uuid for gpu in listed)
        places.update(place for gpu in listed if (place := _pci_address(gpu)))
        yield from ((number, gpu) for gpu in listed)


def _pci_address(gpu: Gpu) -> str | None:
    """Where a GPU sits, with the domain as short as it is; slices share their parent's place."""
    if gpu.pci_bus_id is None or gpu.parent_uuid is not None:
        return None
    domain, _, rest = gpu.pci_bus_id.lower().partition(":")
    return f"{domain.lstrip('0')}:{rest}"


def _renumber(gpus: Iterable[tuple[int, Gpu]]) -> Iterator[Gpu]:
    """Go on counting where the report before ended: an index is one GPU's."""
    current, first, following = 0, 0, 0
    for number, gpu in gpus:
        if number != current:
            current, first = number, following
        index = None if gpu.index is None else gpu.index + first
        following = max(following, 0 if index is None else index + 1)
        yield gpu if index == gpu.index else replace(gpu, index=index)
