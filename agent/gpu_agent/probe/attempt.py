"""The border to collectors: made, asked and listened to here, and whatever goes wrong there is a value here.

One of the three places where every exception is caught: a collector is somebody else's code. It
starts no thread and keeps no deadline; whoever asks does, since a collector may never return.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from gpu_agent.probe.admission import admitted
from gpu_agent.probe.collectors import INTERFACE, Collector, Installed, Surroundings
from gpu_agent.wire.inventory import GpuReport

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Failed:
    """No report: the collector could not be loaded, raised, or said what cannot be admitted."""

    detail: str
    """A sentence with the next step."""


class Attempt:
    """One collector behind its border; it is made at the first read, and again after one that failed."""

    def __init__(self, installed: Installed, surroundings: Surroundings) -> None:
        self.name = installed.name
        self._installed = installed
        self._surroundings = surroundings
        self._collector: Collector | None = None

    def read(self, deadline_seconds: float) -> GpuReport | Failed:
        """Ask it once. Blocks for as long as the collector does, and raises nothing of its."""
        return _behind_the_border(lambda: self._read(deadline_seconds), self._failed)

    def _read(self, deadline_seconds: float) -> GpuReport | Failed:
        if self._collector is None:
            self._collector = self._made()
        return admitted(self._collector.read(deadline_seconds))

    def _failed(self, error: BaseException) -> Failed:
        self._collector = None
        return Failed(failed_sentence(self.name, error))

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
    words = " ".join("".join(each if each.isprintable() else " " for each in _words(error)).split())[:200]
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


def _words(error: BaseException) -> str:
    """What it says of itself, by code of the collector's too."""
    return _behind_the_border(lambda: str(error), lambda _: "")


def _behind_the_border(work: Callable[[], _T], failed: Callable[[BaseException], _T]) -> _T:
    try:
        return work()
    except BaseException as error:  # noqa: BLE001 - the border; a thread of ours has no Ctrl-C to heed
        return failed(error)
