"""The NVML child: a process of its own that calls the NVIDIA driver and answers in JSON lines.

A driver call can hang in the kernel, crash, or end the process that makes it; so it is made here, where only
this process is lost. The child imports nothing heavy, has no timeouts of its own, judges no health, and never
prints into the pipe that carries its answers. It opens the library once, not at every reading; the library
never lives through a fork.

Requests, a line each, and their answers:

    {"id": 1, "request": "read"}
        {"id": 1, "outcome": "ok", "gpus": [...], "took_ms": 3.1}
    {"id": 2, "request": "read", "reopen": true}
        the same, with the library closed and opened again
    {"id": 3, "request": "read", "events": true}
        the same, and before it a line for each GPU that had events: {"events": {"GPU-1…": {"xid_95": 1}}}
    {"id": 4, "request": "read", "quarantined": {...}}
        the same, without asking these GPUs; each was reported before: {"events": {...}, "quarantined": {...}}
    {"id": 5, "request": "read", "events": true, "look_every": 5.0}
        the same, and until the next request a look at every GPU so often. The first look that finds something
        sends a line, and is the last: {"changed": true}. Events that it took come before that line.
    {"id": 6, "request": "read", "whole": true}
        the same, with the values that change slowly, which are read only now and then otherwise
    {"request": "end"}, or the end of stdin
        the process ends

Outcomes: `no_driver` (no library), `driver_broken` (the library is there and does not work; `detail` names
the next step), `ok` (the GPUs, each with its own `reasons` and `unknowns`).
"""

import io
import json
import os
import select
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from functools import partial

from gpu_agent.probe import pci
from gpu_agent.probe.memory import return_free_memory
from gpu_agent.probe.nvml import cuda_visible
from gpu_agent.probe.nvml.binding import pynvml
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
from gpu_agent.probe.nvml.stuck_child import Registration

_NEWEST_CUDA = 99_990
_MOST_GPUS = 256
"""No machine has more; a driver that says so is not believed."""


def main(root: str = "/") -> None:
    """Answer requests from stdin until it ends, then exit without the driver's exit handlers."""
    registration = Registration()
    requests, answers = _take_over_pipes()
    library = Library(
        partial(_write_line, answers),
        root=root,
        environ=os.environ,
    )
    for number, line in enumerate(requests):
        if number == 1:
            return_free_memory()  # it is asked again: it will live long
        request = json.loads(line)
        if request["request"] == "end":
            break
        registration.renew()
        reading = library.read(
            reopen=bool(request.get("reopen")),
            with_events=bool(request.get("events")),
            whole=bool(request.get("whole")),
            quarantined=request.get("quarantined"),
        )
        _write_line(answers, {"id": request["id"], **reading})
        if every_seconds := request.get("look_every"):
            _look_until_asked(library, requests.fileno(), every_seconds)
    os._exit(0)  # the driver library's own exit handlers are known to hang


def _look_until_asked(library: "Library", requests: int, every_seconds: float) -> None:
    """Look at the GPUs again and again, until a request waits or a look finds something."""
    while not select.select((requests,), (), (), every_seconds)[0]:
        if library.look():
            return


class Library:
    """NVML in this process: closed, or open with one device for each GPU."""

    def __init__(
        self, write: Callable[[Values], None], *, root: str = "/", environ: Mapping[str, str] | None = None
    ) -> None:
        """`write` sends a line at once.

        `root` is where the kernel's file systems, or a recorded tree, are.
        """
        self._write = write
        self._root = root
        self._environ = environ or {}
        self._opened = False
        self._devices: list[Device] = []
        self._versions: Values = {}
        self._quarantined: dict[str, Values] = {}
        self._events = EventSets(pynvml, self._send_events)

    def read(
        self,
        *,
        reopen: bool = False,
        with_events: bool = False,
        whole: bool = False,
        quarantined: Mapping[str, Values] | None = None,
    ) -> Values:
        """Read every GPU but the quarantined ones, opening the library where it is not open."""
        started = time.perf_counter()
        self._quarantined.update(quarantined or {})
        self._events.may_identify = not self._quarantined
        if reopen:
            self._close()
        try:
            answer = self._read_all(self._events if with_events else None, whole=whole)
        except (pynvml.NVMLError, pynvml.NVMLLibraryMismatchError) as error:
            self._close()
            answer = init_error(pynvml, error, root=self._root, environ=self._environ)
        return {**answer, "took_ms": round((time.perf_counter() - started) * 1000, 3)}

    def look(self) -> bool:
        """Find out whether a reading would show more than other figures, and send that it would."""
        if self._opened and self._is_as_before():
            return False
        self._write({"changed": True})
        return True

    def _is_as_before(self) -> bool:
        try:
            return self._count() == len(self._devices) and all(
                device.is_as_before(self._events) for device in self._devices
            )
        except pynvml.NVMLError:
            return False

    def _read_all(self, events: EventSets | None, *, whole: bool) -> Values:
        if not self._opened:
            pynvml.nvmlInit()
            self._opened = True
            self._versions = {"driver_version": _driver_version(), "cuda_version": _cuda_version()}
        count = self._count()
        if len(self._devices) != count:
            self._events.close()
            self._devices = self._new_devices(count)
        if not self._devices:
            self._close()  # an open library does not notice a GPU that is added
            return {**self._versions, **no_gpu(root=self._root, environ=self._environ)}
        driver_version = self._versions.get("driver_version")
        gpus = _without_duplicate_uuids(
            gpu for device in self._devices for gpu in device.read(driver_version, events, whole=whole)
        )
        cuda_visible.mark(gpus, self._environ)
        return {"outcome": "ok", **self._versions, "gpus": gpus}

    def _count(self) -> int:
        """Count the GPUs; where one GPU makes the count itself fail, the known ones are all there are."""
        try:
            return min(int(pynvml.nvmlDeviceGetCount()), _MOST_GPUS)
        except pynvml.NVMLError as error:
            if not self._devices or is_driver_wide(pynvml, error):
                raise
            return len(self._devices)

    def _new_devices(self, count: int) -> list[Device]:
        positions = quarantined_positions(self._quarantined, count, root=self._root)
        return [
            Device(pynvml, index, root=self._root, quarantined=positions.get(index)) for index in range(count)
        ]

    def _send_events(self, uuid: str, counts: dict[str, int]) -> None:
        """Send the events of one GPU, and its identity where it must not be queried from now on."""
        line: Values = {"events": {uuid: counts}}
        if why := quarantining_event(counts):
            found = {device.key: device.quarantine(why) for device in self._devices if device.key == uuid}
            self._quarantined |= found
            line["quarantined"] = found
        self._write(line)

    def _close(self) -> None:
        self._events.close()
        self._devices = []
        if not self._opened:
            return
        self._opened = False
        try:
            pynvml.nvmlShutdown()
        except pynvml.NVMLError:
            return  # a library that does not close is opened again all the same


def quarantined_positions(
    quarantined: Mapping[str, Values], count: int, *, root: str = "/"
) -> dict[int, Values]:
    """Find where in the driver's list of `count` GPUs the quarantined ones are, without querying them.

    Every query of such a GPU hangs, even the one for its handle, and hangs each new process as well. The
    driver lists GPUs by PCI address, and the kernel lists those addresses. Where the kernel's list does not
    have as many GPUs, a GPU is assumed to be at its last `index`.
    """
    listed = _listed_addresses(root) if quarantined else []
    found: dict[int, Values] = {}
    for identity in quarantined.values():
        address = pci.parse_address(identity.get("pci_bus_id"))
        if len(listed) == count and address is not None:
            if address in listed:
                found[listed.index(address)] = identity
            continue
        index = identity.get("index")
        if isinstance(index, int) and index < count:
            found[index] = identity
    return found


def _listed_addresses(root: str) -> list[pci.PciAddress]:
    """The PCI addresses of the driver's GPUs, in the driver's order."""
    try:
        names = os.listdir(f"{root.rstrip('/')}/proc/driver/nvidia/gpus")  # noqa: PTH208 - pathlib weighs
    except OSError:
        return []
    return sorted(address for name in names if (address := pci.parse_address(name)) is not None)


def _without_duplicate_uuids(gpus: Iterable[Values]) -> list[Values]:
    """Drop the UUID of a GPU that another GPU has already: the UUID is the key everywhere."""
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
    except UnicodeDecodeError as error:
        return salvage_text(error)


def _cuda_version() -> str | None:
    try:
        number = first_known(
            pynvml, pynvml.nvmlSystemGetCudaDriverVersion_v2, pynvml.nvmlSystemGetCudaDriverVersion
        )
    except pynvml.NVMLError:
        return None
    version = int(str(number))
    if not 0 < version <= _NEWEST_CUDA:
        return None
    return f"{version // 1000}.{version % 1000 // 10}"


def _take_over_pipes() -> tuple[io.TextIOWrapper, io.TextIOWrapper]:
    """Take stdin and stdout away from the driver library, which is known to print."""
    requests = os.fdopen(os.dup(0), "r", encoding="utf-8")
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    nowhere = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nowhere, 0)
    os.dup2(2, 1)
    os.close(nowhere)
    return requests, answers


def _write_line(answers: io.TextIOWrapper, line: Mapping[str, object]) -> None:
    answers.write(json.dumps(line, separators=(",", ":")) + "\n")
    answers.flush()


if __name__ == "__main__":
    main(*sys.argv[1:2])
