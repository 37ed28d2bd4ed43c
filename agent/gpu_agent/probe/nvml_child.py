"""The NVML child: a process of its own that asks the NVIDIA driver, and answers in JSON lines.

A driver call can hang in the kernel, crash, or end the process that makes it; so it is made
here, where the only thing lost is this process. It imports nothing heavy, keeps no time,
decides nothing about health, and never prints into the pipe that carries its answers.

    {"id": 1, "ask": "read"}                   →  {"id": 1, "outcome": "ok", "gpus": [...], "took_ms": 3.1}
    {"id": 2, "ask": "read", "fresh": true}    →  the same, with the library opened anew
    {"id": 3, "ask": "read", "listen": true}   →  the same, with what the driver told of since the last
    {"ask": "end"}, or the end of stdin        →  the process ends

Outcomes: `no_driver` (no library), `driver_broken` (it is there and will not work; `detail` names
the next step), `ok` (so many GPUs, each with its own state in `reasons` and `unknowns`).
"""

import io
import json
import os
import sys
import time

import pynvml

from gpu_agent.probe.nvml_answers import Values, words
from gpu_agent.probe.nvml_events import Listener
from gpu_agent.probe.nvml_gpu import Slot

LIBRARY = "nvml.dll" if sys.platform == "win32" else "libnvidia-ml.so.1"


class Library:
    """NVML as this process has it: closed, or open with one slot for each GPU."""

    def __init__(self, *, root: str = "/") -> None:
        """`root` is where the kernel's file systems are found: `/`, or a recorded tree."""
        self._root = root
        self._opened = False
        self._slots: list[Slot] = []
        self._versions: Values = {}
        self._listener = Listener(pynvml)

    def read(self, *, fresh: bool = False, listen: bool = False) -> Values:
        """Read every GPU, opening the library first where it is not open; `listen` to events as well."""
        started = time.perf_counter()
        if fresh:
            self._close()
        try:
            answer = self._read_all(self._listener if listen else None)
        except (pynvml.NVMLError, pynvml.NVMLLibraryMismatchError) as error:
            self._close()
            answer = _refusal(error)
        return {**answer, "took_ms": round((time.perf_counter() - started) * 1000, 3)}

    def _read_all(self, listener: Listener | None) -> Values:
        if not self._opened:
            pynvml.nvmlInit()
            self._opened = True
            self._versions = {"driver_version": _driver_version(), "cuda_version": _cuda_version()}
        count = pynvml.nvmlDeviceGetCount()
        if len(self._slots) != count:
            self._listener.close()
            self._slots = [Slot(pynvml, index, root=self._root) for index in range(count)]
        driver_version = self._versions.get("driver_version")
        gpus = [gpu for slot in self._slots for gpu in slot.read(driver_version, listener)]
        if listener is not None:
            listener.add_to(gpus)
        return {"outcome": "ok", **self._versions, "gpus": gpus}

    def _close(self) -> None:
        self._slots = []
        if not self._opened:
            return
        self._opened = False
        self._listener.close()
        try:
            pynvml.nvmlShutdown()
        except pynvml.NVMLError:
            return  # a library that will not close is opened again all the same


def main() -> None:
    """Answer asks from stdin until it ends, then leave without ceremony."""
    asks, answers = _own_pipes()
    library = Library(root=sys.argv[1] if len(sys.argv) > 1 else "/")
    for line in asks:
        ask = json.loads(line)
        if ask["ask"] == "end":
            break
        reading = library.read(fresh=bool(ask.get("fresh")), listen=bool(ask.get("listen")))
        answer = {"id": ask["id"], **reading}
        answers.write(json.dumps(answer, separators=(",", ":")) + "\n")
        answers.flush()
    os._exit(0)  # the driver library's own exit handlers are known to hang


def _own_pipes() -> tuple[io.TextIOWrapper, io.TextIOWrapper]:
    """Take stdin and stdout away from the driver library, which is known to print."""
    asks = os.fdopen(os.dup(0), "r", encoding="utf-8")
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    nowhere = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nowhere, 0)
    os.dup2(2, 1)
    return asks, answers


def _driver_version() -> str | None:
    try:
        return str(pynvml.nvmlSystemGetDriverVersion())
    except pynvml.NVMLError:
        return None
    except UnicodeDecodeError as raised:
        return words(raised)


def _cuda_version() -> str | None:
    try:
        version = int(pynvml.nvmlSystemGetCudaDriverVersion_v2())
    except pynvml.NVMLError:
        return None
    return f"{version // 1000}.{version % 1000 // 10}"


def _refusal(error: BaseException) -> Values:
    """Tell a library that is missing from one that is there and broken, with the next step."""
    code = getattr(error, "value", None)
    if code == pynvml.NVML_ERROR_GPU_NOT_FOUND:
        return {"outcome": "ok", "gpus": [], "detail": "The NVIDIA driver works and found no GPU."}
    if code == pynvml.NVML_ERROR_LIBRARY_NOT_FOUND:
        return _library_not_loaded(error.__context__)
    sentences = {
        pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH: "The driver and its library have different versions: "
        "reboot, or reload the nvidia kernel module.",
        pynvml.NVML_ERROR_DRIVER_NOT_LOADED: "The nvidia kernel module is not loaded: load it with "
        "`modprobe nvidia`, and see `dmesg` if it will not load.",
        pynvml.NVML_ERROR_NO_PERMISSION: "The agent may not open the NVIDIA device nodes: give its user, "
        "its container or its systemd unit access to /dev/nvidia*.",
        pynvml.NVML_ERROR_UNINITIALIZED: "The driver went away while it was in use: "
        "reboot, or reload the nvidia kernel module.",
        pynvml.NVML_ERROR_FUNCTION_NOT_FOUND: "The NVIDIA driver is too old for this agent: update it.",
        pynvml.NVML_ERROR_UNKNOWN: "The NVIDIA driver failed without saying why: run `nvidia-smi`; in a "
        "container restart the container, otherwise see `dmesg` and reboot.",
    }
    otherwise = f"NVML would not start ({error}): run `nvidia-smi` and mend what it reports."
    return {"outcome": "driver_broken", "detail": sentences.get(code, otherwise)}


def _library_not_loaded(cause: BaseException | None) -> Values:
    said = str(cause or "")
    if not said or isinstance(cause, FileNotFoundError) or ("No such file" in said and LIBRARY in said):
        return {
            "outcome": "no_driver",
            "detail": f"No NVIDIA driver was found ({LIBRARY}): install it; in a container, start it "
            "with the GPU and the `utility` driver capability.",
        }
    return {
        "outcome": "driver_broken",
        "detail": f"The NVIDIA library is there and cannot be loaded ({said}): reinstall the driver.",
    }


if __name__ == "__main__":
    main()
