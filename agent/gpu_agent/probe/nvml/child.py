"""The NVML child: a process of its own that asks the NVIDIA driver, and answers in JSON lines.

A driver call can hang in the kernel, crash, or end the process that makes it; so it is made
here, where the only thing lost is this process. It imports nothing heavy, keeps no time,
decides nothing about health, and never prints into the pipe that carries its answers. It opens the
library once, not at every reading, and is started by exec: the library never lives through a fork.

    {"id": 1, "ask": "read"}                   →  {"id": 1, "outcome": "ok", "gpus": [...], "took_ms": 3.1}
    {"id": 2, "ask": "read", "fresh": true}    →  the same, with the library opened anew
    {"id": 3, "ask": "read", "listen": true}   →  the same, and before it a line for each GPU of which the
                                                  driver told: {"heard": {"GPU-1…": {"xid_95": 1}}}
    {"id": 4, "ask": "read", "silent": {...}}  →  the same, but these GPUs are not asked: each as a line
                                                  told of it before, {"heard": {...}, "silent": {...}}
    {"ask": "end"}, or the end of stdin        →  the process ends

Outcomes: `no_driver` (no library), `driver_broken` (it is there and will not work; `detail` names
the next step), `ok` (so many GPUs, each with its own state in `reasons` and `unknowns`).
"""

import io
import json
import os
import re
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from functools import partial

import pynvml

from gpu_agent.probe.nvml import cuda_visible
from gpu_agent.probe.nvml.device import Device
from gpu_agent.probe.nvml.errors import (
    Values,
    as_text,
    first_known,
    init_error,
    is_driver_wide,
    no_gpu,
    salvage_text,
)
from gpu_agent.probe.nvml.events import EventSets, quarantining_event
from gpu_agent.probe.nvml.stuck_child import set_process_name

# Where in the driver's list the GPUs are that must not be asked, found without asking them.
#
# A GPU whose own processor failed hangs each question, also the one for its handle, and hangs it for
# every new process. The kernel's list of the driver's GPUs says which place is whose, as the driver
# counts by PCI address. Where that list does not fit the driver's count, a GPU is taken to be where it
# was; this module opens no library and refuses to find out by trying.


_BUS_ID = re.compile(r"([0-9a-f]{4,8}):([0-9a-f]{2}):([0-9a-f]{2})\.([0-7])")

_Address = tuple[int, ...]


def quarantined_positions(silent: Mapping[str, Values], count: int, *, root: str = "/") -> dict[int, Values]:
    """Say which of so many places hold a silent GPU, each known by its `index` and `pci_bus_id` of before."""
    listed = _listed(root) if silent else []
    found: dict[int, Values] = {}
    for who in silent.values():
        address = _address(who.get("pci_bus_id"))
        if len(listed) == count and address is not None:
            if address in listed:
                found[listed.index(address)] = who
            continue
        place = who.get("index")
        if isinstance(place, int) and place < count:
            found[place] = who
    return found


def _listed(root: str) -> list[_Address]:
    """The addresses of the driver's GPUs in its own order."""
    try:
        names = os.listdir(f"{root.rstrip('/')}/proc/driver/nvidia/gpus")  # noqa: PTH208 - pathlib weighs
    except OSError:
        return []
    return sorted(address for name in names if (address := _address(name)) is not None)


def _address(bus_id: object) -> _Address | None:
    found = _BUS_ID.fullmatch(str(bus_id or "").lower())
    return None if found is None else tuple(int(part, 16) for part in found.groups())


# The NVML child: a process of its own that asks the NVIDIA driver, and answers in JSON lines.
#
# A driver call can hang in the kernel, crash, or end the process that makes it; so it is made
# here, where the only thing lost is this process. It imports nothing heavy, keeps no time,
# decides nothing about health, and never prints into the pipe that carries its answers. It opens the
# library once, not at every reading, and is started by exec: the library never lives through a fork.
#
#     {"id": 1, "ask": "read"}                   →  {"id": 1, "outcome": "ok", "gpus": [...], "took_ms":
# 3.1}
#     {"id": 2, "ask": "read", "fresh": true}    →  the same, with the library opened anew
#     {"id": 3, "ask": "read", "listen": true}   →  the same, and before it a line for each GPU of which
# the
#                                                   driver told: {"heard": {"GPU-1…": {"xid_95": 1}}}
#     {"id": 4, "ask": "read", "silent": {...}}  →  the same, but these GPUs are not asked: each as a line
#                                                   told of it before, {"heard": {...}, "silent": {...}}
#     {"ask": "end"}, or the end of stdin        →  the process ends
#
# Outcomes: `no_driver` (no library), `driver_broken` (it is there and will not work; `detail` names
# the next step), `ok` (so many GPUs, each with its own state in `reasons` and `unknowns`).


_NEWEST_CUDA = 99_990
_MOST_GPUS = 256
"""No machine has more; a driver that says so is not believed."""


class Library:
    """NVML as this process has it: closed, or open with one slot for each GPU."""

    def __init__(
        self, say: Callable[[Values], None], *, root: str = "/", environ: Mapping[str, str] | None = None
    ) -> None:
        """`say` is given what cannot wait; the kernel's file systems are in `root`, or a recorded tree is."""
        self._say = say
        self._root = root
        self._environ = environ or {}
        self._opened = False
        self._slots: list[Device] = []
        self._versions: Values = {}
        self._silent: dict[str, Values] = {}
        self._listener = EventSets(pynvml, self._heard)

    def read(
        self, *, fresh: bool = False, listen: bool = False, silent: Mapping[str, Values] | None = None
    ) -> Values:
        """Read every GPU but the silent ones, opening the library where it is not; `listen` to events too."""
        started = time.perf_counter()
        self._silent.update(silent or {})
        if fresh:
            self._close()
        try:
            answer = self._read_all(self._listener if listen else None)
        except (pynvml.NVMLError, pynvml.NVMLLibraryMismatchError) as error:
            self._close()
            answer = init_error(pynvml, error, root=self._root, environ=self._environ)
        return {**answer, "took_ms": round((time.perf_counter() - started) * 1000, 3)}

    def _read_all(self, listener: EventSets | None) -> Values:
        if not self._opened:
            pynvml.nvmlInit()
            self._opened = True
            self._versions = {"driver_version": _driver_version(), "cuda_version": _cuda_version()}
        count = self._count()
        if len(self._slots) != count:
            self._listener.close()
            self._slots = self._new_slots(count)
        if not self._slots:
            self._close()  # an open library does not hear of a GPU that comes
            return {**self._versions, **no_gpu(root=self._root, environ=self._environ)}
        driver_version = self._versions.get("driver_version")
        gpus = _without_duplicate_uuids(
            gpu for slot in self._slots for gpu in slot.read(driver_version, listener)
        )
        if listener is not None:
            listener.explain(gpus)
        cuda_visible.mark(gpus, self._environ)
        return {"outcome": "ok", **self._versions, "gpus": gpus}

    def _new_slots(self, count: int) -> list[Device]:
        silent = quarantined_positions(self._silent, count, root=self._root)
        return [Device(pynvml, index, root=self._root, silent=silent.get(index)) for index in range(count)]

    def _heard(self, uuid: str, counts: dict[str, int]) -> None:
        """Pass on what the driver told, and who must not be asked from now on."""
        said: Values = {"heard": {uuid: counts}}
        if why := quarantining_event(counts):
            silent = {slot.key: slot.told_of(why) for slot in self._slots if slot.key == uuid}
            self._silent |= silent
            said["silent"] = silent
        self._say(said)

    def _count(self) -> int:
        """Count the GPUs; where one of them fails the very count, those that are known are all there are."""
        try:
            return min(int(pynvml.nvmlDeviceGetCount()), _MOST_GPUS)
        except pynvml.NVMLError as error:
            if not self._slots or is_driver_wide(pynvml, error):
                raise
            return len(self._slots)

    def _close(self) -> None:
        self._listener.close()
        self._slots = []
        if not self._opened:
            return
        self._opened = False
        try:
            pynvml.nvmlShutdown()
        except pynvml.NVMLError:
            return  # a library that will not close is opened again all the same


def main() -> None:
    """Answer asks from stdin until it ends, then leave without ceremony."""
    set_process_name()
    asks, answers = _take_over_pipes()
    library = Library(
        partial(_write_line, answers),
        root=sys.argv[1] if len(sys.argv) > 1 else "/",
        environ=os.environ,
    )
    for line in asks:
        ask = json.loads(line)
        if ask["ask"] == "end":
            break
        reading = library.read(
            fresh=bool(ask.get("fresh")), listen=bool(ask.get("listen")), silent=ask.get("silent")
        )
        _write_line(answers, {"id": ask["id"], **reading})
    os._exit(0)  # the driver library's own exit handlers are known to hang


def _write_line(answers: io.TextIOWrapper, said: Mapping[str, object]) -> None:
    answers.write(json.dumps(said, separators=(",", ":")) + "\n")
    answers.flush()


def _take_over_pipes() -> tuple[io.TextIOWrapper, io.TextIOWrapper]:
    """Take stdin and stdout away from the driver library, which is known to print."""
    asks = os.fdopen(os.dup(0), "r", encoding="utf-8")
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    nowhere = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nowhere, 0)
    os.dup2(2, 1)
    os.close(nowhere)
    return asks, answers


def _without_duplicate_uuids(gpus: Iterable[Values]) -> list[Values]:
    """Leave out the UUID of a GPU that another one has already: everything is told apart by it."""
    listed: list[Values] = []
    taken: set[object] = set()
    for gpu in gpus:
        uuid = gpu.get("uuid")
        if uuid not in taken:
            listed.append(gpu)
        elif not gpu.get("parent_uuid"):
            listed.append({name: value for name, value in gpu.items() if name != "uuid"})
        if uuid:
            taken.add(uuid)
    return listed


def _driver_version() -> str | None:
    try:
        return as_text(pynvml.nvmlSystemGetDriverVersion())
    except pynvml.NVMLError:
        return None
    except UnicodeDecodeError as raised:
        return salvage_text(raised)


def _cuda_version() -> str | None:
    try:
        told = first_known(
            pynvml, pynvml.nvmlSystemGetCudaDriverVersion_v2, pynvml.nvmlSystemGetCudaDriverVersion
        )
    except pynvml.NVMLError:
        return None
    version = int(str(told))
    if not 0 < version <= _NEWEST_CUDA:
        return None
    return f"{version // 1000}.{version % 1000 // 10}"


if __name__ == "__main__":
    main()
