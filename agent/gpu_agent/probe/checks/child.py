"""The child that checks one GPU: its PCIe link, and how fast memory is copied to it and back.

A process of its own, as the driver may hang in any call, or end the process that makes it. It is started with
one argument, a JSON object, and prints one:

    {"uuid": "GPU-…", "pci_bus_id": "00000000:1A:00.0", "sys_dir": "/sys", "copies": true}
        {"link": {"width": 16, "max_width": 16, "speed": 32.0, "max_speed": 32.0, "under_load": true},
         "copies": {"to_gb_s": 54.1, "from_gb_s": 53.2}}

A link lowers its speed while nothing is sent, so it is read between two of the copies, directly after one has
ended: the link has not slowed down yet. Before the first copy and after the last one its speed says nothing.
Where there are no copies, `copies` is `{"not_run": "…"}`; copies that failed are `{"problem": "…"}`.
"""

import json
import os
import re
import sys
from collections.abc import Callable

from gpu_agent.probe.checks.cuda import CudaError, NoCudaError, measure_copies
from gpu_agent.probe.nvml.stuck_child import CHECK_NAME, Registration
from gpu_agent.probe.pci import device_folder

_SPEED = re.compile(r"([0-9]+(?:\.[0-9]+)?) GT/s")
_WIDEST = 32
_FIGURE_BYTES = 64

Figures = dict[str, float | bool]


def main() -> None:
    """Check the GPU that the argument names."""
    asked = json.loads(sys.argv[1])
    registration = Registration(asked.get("process_name", CHECK_NAME))
    folder = device_folder(asked["sys_dir"], asked.get("pci_bus_id"))
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # a driver library is known to print
    link = read_link(folder)
    copies: dict[str, object] = {"not_run": asked.get("why_no_copies", "not requested")}
    if asked["copies"]:
        loaded: Figures = {}
        copies = _copies(asked["uuid"], lambda: loaded.update(read_link(folder)))
        link = {**loaded, "under_load": True} if loaded else link
    answer = json.dumps({"link": link, "copies": copies})
    print(f"\n{answer}", file=answers, flush=True)  # what the library printed may lack its line's end
    del registration
    os._exit(0)  # the driver library's own exit handlers are known to hang


def _copies(uuid: str, under_load: Callable[[], None]) -> dict[str, object]:
    os.environ["CUDA_VISIBLE_DEVICES"] = uuid  # another GPU that is broken must not fail this one
    try:
        return dict(measure_copies(under_load))
    except NoCudaError as error:
        return {"not_run": str(error)}
    except CudaError as error:
        return {"problem": str(error)}


def read_link(folder: str | None) -> Figures:
    """Read width and speed (GT/s) of a device's link, and the most that the device can; what is known."""
    if folder is None:
        return {}
    figures: Figures = {}
    for name, end in (("", "current"), ("max_", "max")):
        width, speed = _read(f"{folder}/{end}_link_width"), _SPEED.match(_read(f"{folder}/{end}_link_speed"))
        if width.isdecimal() and 0 < int(width) <= _WIDEST:
            figures[f"{name}width"] = int(width)
        if speed is not None:
            figures[f"{name}speed"] = float(speed[1])
    return figures


def _read(path: str) -> str:
    try:
        with open(path, encoding="ascii", errors="replace") as file:  # noqa: PTH123 - pathlib weighs
            return file.read(_FIGURE_BYTES).strip()
    except OSError:
        return ""


if __name__ == "__main__":
    main()
