"""The NVML child: a process of its own that asks the NVIDIA driver, and answers in JSON lines.

A driver call can hang in the kernel, crash, or end the process that makes it; so it is made
here, where the only thing lost is this process. It imports nothing heavy, keeps no time,
decides nothing about health, and never prints into the pipe that carries its answers.

    {"id": 1, "ask": "read"}                   →  {"id": 1, "outcome": "ok", "gpus": [...], "took_ms": 3.1}
    {"id": 2, "ask": "read", "fresh": true}    →  the same, with the library opened anew
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

from gpu_agent.probe import nvml_readings
from gpu_agent.probe.nvml_readings import GpuGoneError, Values

LIBRARY = "nvml.dll" if sys.platform == "win32" else "libnvidia-ml.so.1"

_KEPT = ("memory_mb", "memory_kind")
"""Figures that belong to who a GPU is: known for a lost one as well."""


class Slot:
    """One place in the driver's list: a handle while it is good, and who the GPU was."""

    __slots__ = ("gone", "handle", "identity", "index")

    def __init__(self, index: int) -> None:
        self.index = index
        self.identity: Values = {}
        self.handle: object = None
        self.gone: GpuGoneError | None = None

    def read(self) -> Values:
        """Read this GPU; raises `NVMLError` only when the whole driver has failed."""
        if self.gone is not None:
            return self._without_figures(self.gone.code, self.gone.detail)
        try:
            if self.handle is None:
                self.handle = self._acquire()
            if not self.identity:
                self.identity = nvml_readings.identity(pynvml, self.handle)
            figures = nvml_readings.figures(pynvml, self.handle)
        except GpuGoneError as gone:
            self.gone, self.handle = gone, None
            return self._without_figures(gone.code, gone.detail)
        except _Refused as refused:
            return self._without_figures("gpu_inaccessible", str(refused))
        self.identity |= {name: figures[name] for name in _KEPT if name in figures}
        return self._described(figures, [])

    def _acquire(self) -> object:
        try:
            return pynvml.nvmlDeviceGetHandleByIndex(self.index)
        except pynvml.NVMLError as error:
            if nvml_readings.condemns_driver(pynvml, error):
                raise
            nvml_readings.raise_if_gone(pynvml, error, "opening the GPU")
            raise _Refused(f"opening the GPU: {error}") from error

    def _without_figures(self, code: str, detail: str) -> Values:
        return self._described({}, [{"code": code, "detail": detail}])

    def _described(self, figures: Values, reasons: list[dict[str, str]]) -> Values:
        unknowns = {**_mapping(self.identity.get("unknowns")), **_mapping(figures.get("unknowns"))}
        return {**self.identity, **figures, "index": self.index, "reasons": reasons, "unknowns": unknowns}


class Library:
    """NVML as this process has it: closed, or open with one slot for each GPU."""

    def __init__(self) -> None:
        self._opened = False
        self._slots: list[Slot] = []
        self._versions: Values = {}

    def read(self, *, fresh: bool = False) -> Values:
        """Read every GPU, opening the library first where it is not open."""
        started = time.perf_counter()
        if fresh:
            self._close()
        try:
            answer = self._read_all()
        except (pynvml.NVMLError, pynvml.NVMLLibraryMismatchError) as error:
            self._close()
            answer = _refusal(error)
        return {**answer, "took_ms": round((time.perf_counter() - started) * 1000, 3)}

    def _read_all(self) -> Values:
        if not self._opened:
            pynvml.nvmlInit()
            self._opened = True
            self._versions = {"driver_version": _driver_version(), "cuda_version": _cuda_version()}
        count = pynvml.nvmlDeviceGetCount()
        if len(self._slots) != count:
            self._slots = [Slot(index) for index in range(count)]
        return {"outcome": "ok", **self._versions, "gpus": [slot.read() for slot in self._slots]}

    def _close(self) -> None:
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
    asks, answers = _own_pipes()
    library = Library()
    for line in asks:
        ask = json.loads(line)
        if ask["ask"] == "end":
            break
        answer = {"id": ask["id"], **library.read(fresh=bool(ask.get("fresh")))}
        answers.write(json.dumps(answer, separators=(",", ":")) + "\n")
        answers.flush()
    os._exit(0)  # the driver library's own exit handlers are known to hang


class _Refused(Exception):  # noqa: N818 - an event of this module, not an error of ours
    """The driver lists a GPU and will not open it, though it is not lost."""


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
        return nvml_readings.words(raised)


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
    words = str(cause or "")
    if not words or isinstance(cause, FileNotFoundError) or ("No such file" in words and LIBRARY in words):
        return {
            "outcome": "no_driver",
            "detail": f"No NVIDIA driver was found ({LIBRARY}): install it; in a container, start it "
            "with the GPU and the `utility` driver capability.",
        }
    return {
        "outcome": "driver_broken",
        "detail": f"The NVIDIA library is there and cannot be loaded ({words}): reinstall the driver.",
    }


def _mapping(value: object) -> dict[str, object]:
    return value if isinstance(value, dict) else {}


if __name__ == "__main__":
    main()
