"""What NVML's error codes mean: for one value, for one GPU, and for the whole driver.

Runs inside the NVML child, with the binding handed in. A failed getter leaves a reason in `unknowns`; a lost
GPU raises `GpuGoneError`; a library that does not initialize becomes an outcome with the next step.
"""

import math
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from types import ModuleType

from gpu_agent.probe.nvml import device_nodes

# What an NVML getter's answer may be: values, a reason why there is none, or the end of a GPU.
#
# Runs inside the NVML child, with the binding handed in. It names no getter: those are
# `readings`, `memory`, `processes` and `slices`.


Values = dict[str, object]
Getter = tuple[tuple[str, ...], Callable[[ModuleType, object], Values]]
"""The fields that a getter fills, and the getter: (binding, handle) → values."""

MIB = 1 << 20
ABSURD_BYTES = 4 << 40
"""No GPU has more memory than this; drivers that do not know answer 2^64-1."""
TOO_SLOW = "not asked: the GPU took too long over other answers"


class GpuGoneError(Exception):
    """The driver gave this GPU up: its handle must not be used again. The machine's fault.

    `known` holds what it had told before, in the same row of questions.
    """

    def __init__(self, code: str, detail: str) -> None:
        super().__init__(detail)
        self.code = code
        self.detail = detail
        self.known: Values = {}


class UnknownValueError(Exception):
    """A value that cannot be told: the answer is none that can be believed, or none was asked for.

    The machine's fault. `known` holds what the same answer said beside it and still counts.
    """

    def __init__(self, detail: str, known: Values | None = None) -> None:
        super().__init__(detail)
        self.known = known or {}


def run_getters(
    nvml: ModuleType, handle: object, getters: Sequence[Getter], *, patience_seconds: float = math.inf
) -> Values:
    """Run getters; one that fails leaves its fields out and its reason in `unknowns`.

    Once they took longer than the patience together, no more are run: a GPU that is about to fail can
    take so long over each that the others of the machine would not be read for minutes.
    """
    values: Values = {}
    unknowns: dict[str, str] = {}
    began = time.perf_counter()
    for fields, getter in getters:
        if time.perf_counter() - began > patience_seconds:
            unknowns.update(dict.fromkeys(fields, TOO_SLOW))
            continue
        try:
            known, untold = _answer(nvml, handle, fields, getter=getter)
        except GpuGoneError as gone:
            gone.known = values
            raise
        values |= known
        unknowns |= untold
    return {**values, "unknowns": unknowns}


def _answer(
    nvml: ModuleType,
    handle: object,
    fields: tuple[str, ...],
    *,
    getter: Callable[[ModuleType, object], Values],
) -> tuple[Values, dict[str, str]]:
    """Run one getter: what it tells, and why not what it does not."""
    try:
        return getter(nvml, handle), {}
    except nvml.NVMLError as error:
        if is_driver_wide(nvml, error):
            raise
        raise_if_gone(nvml, error, f"reading {fields[0]}")
        return {}, dict.fromkeys(fields, unknown_reason(nvml, error))
    except UnknownValueError as error:
        return error.known, {field: str(error) for field in fields if field not in error.known}
    except nvml.NVMLLibraryMismatchError as error:
        return {}, dict.fromkeys(fields, str(error))
    except UnicodeDecodeError:
        return {}, dict.fromkeys(fields, "the driver answered with a text that is no UTF-8")


def raise_if_gone(nvml: ModuleType, error: object, doing: str) -> None:
    """Raise `GpuGoneError` when a code means that the GPU is lost or waits for a reset."""
    code = getattr(error, "value", None)
    if code in (nvml.NVML_ERROR_GPU_IS_LOST, nvml.NVML_ERROR_UNKNOWN):
        raise GpuGoneError("gpu_lost", f"{doing}: {error}")
    if code == nvml.NVML_ERROR_RESET_REQUIRED:
        raise GpuGoneError("gpu_reset_required", f"{doing}: {error}")


def is_driver_wide(nvml: ModuleType, error: object) -> bool:
    """Tell whether a code speaks of the whole driver, and not of one getter or one GPU."""
    return getattr(error, "value", None) in (
        nvml.NVML_ERROR_UNINITIALIZED,
        nvml.NVML_ERROR_DRIVER_NOT_LOADED,
        nvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH,
    )


def unknown_reason(nvml: ModuleType, error: object) -> str:
    """Say why one value is not known."""
    known = {
        nvml.NVML_ERROR_NOT_SUPPORTED: "not supported by this GPU and driver",
        nvml.NVML_ERROR_FUNCTION_NOT_FOUND: "the installed driver is too old to say",
        nvml.NVML_ERROR_NO_PERMISSION: "the agent's user may not read it",
    }
    return known.get(getattr(error, "value", None)) or f"NVML answered: {error}"


def first_known(nvml: ModuleType, *calls: Callable[[], object]) -> object:
    """Try calls from the newest to the oldest, until one that the installed driver has."""
    *newer, oldest = calls
    for call in newer:
        try:
            return call()
        except (nvml.NVMLError_FunctionNotFound, nvml.NVMLError_ArgumentVersionMismatch):
            continue
    return oldest()


def salvage_text(raised: UnicodeDecodeError) -> str:
    """Save what can be read of a text that is no UTF-8, as some WSL2 drivers send."""
    return as_text(raised.object)


def as_text(told: object) -> str:
    """Take a text as it comes: some bindings give bytes."""
    return bytes(told).decode("utf-8", "replace") if isinstance(told, bytes | bytearray) else str(told)


def check_range(value: int, low: int, high: int) -> int:
    """Give a number back; raises `UntoldError` for one that no GPU has."""
    if not low <= value <= high:
        raise UnknownValueError(f"the driver answered {value}, which cannot be")
    return value


# Why NVML will not start: no library, or one that is there and broken, each with the next step.
#
# Runs inside the NVML child, with the binding and the surroundings handed in. It mends nothing and
# tries nothing twice.


LIBRARY = "nvml.dll" if sys.platform == "win32" else "libnvidia-ml.so.1"

_HIDDEN = ("void", "none", "")
"""Values of NVIDIA_VISIBLE_DEVICES by which a container gets no GPU."""


def init_error(nvml: ModuleType, error: BaseException, *, root: str, environ: Mapping[str, str]) -> Values:
    """Describe an error that came from the library as a whole."""
    code = getattr(error, "value", None)
    if code == nvml.NVML_ERROR_GPU_NOT_FOUND:
        return no_gpu(root=root, environ=environ)
    if code == nvml.NVML_ERROR_LIBRARY_NOT_FOUND:
        return _library_not_loaded(error.__context__, environ)
    nodes = _device_node_problems(nvml, code, root)
    if nodes:
        return {"outcome": "driver_broken", "detail": f"The NVIDIA driver cannot be reached. {nodes}"}
    sentences = {
        nvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH: "The driver and its library have different versions: "
        "reboot, or reload the nvidia kernel module.",
        nvml.NVML_ERROR_DRIVER_NOT_LOADED: "The nvidia kernel module is not loaded: load it with "
        "`modprobe nvidia`, and see `dmesg` if it will not load.",
        nvml.NVML_ERROR_NO_PERMISSION: "The agent may not open the NVIDIA device nodes: give its user, "
        "its container or its systemd unit access to /dev/nvidia*.",
        nvml.NVML_ERROR_UNINITIALIZED: "The driver went away while it was in use: "
        "reboot, or reload the nvidia kernel module.",
        nvml.NVML_ERROR_FUNCTION_NOT_FOUND: "The NVIDIA driver is too old for this agent: update it.",
        nvml.NVML_ERROR_UNKNOWN: "The NVIDIA driver failed without saying why: run `nvidia-smi`; in a "
        "container restart the container, otherwise see `dmesg` and reboot.",
    }
    otherwise = f"NVML would not start ({error}): run `nvidia-smi` and mend what it reports."
    return {"outcome": "driver_broken", "detail": sentences.get(code, otherwise)}


def no_gpu(*, root: str, environ: Mapping[str, str]) -> Values:
    """Describe a driver that works and lists no GPU."""
    detail = "The NVIDIA driver works and found no GPU."
    hidden = _hiding_variables(environ)
    nodes = device_nodes.node_problems(root) if device_nodes.is_module_loaded(root) else []
    return {"outcome": "ok", "gpus": [], "detail": " ".join([detail, *_sentences([*hidden, *nodes])])}


def _device_node_problems(nvml: ModuleType, code: object, root: str) -> str:
    """Look at the device nodes where an error may come from them; without its module there are none."""
    suspects = (nvml.NVML_ERROR_NO_PERMISSION, nvml.NVML_ERROR_UNKNOWN, nvml.NVML_ERROR_DRIVER_NOT_LOADED)
    if code not in suspects or not device_nodes.is_module_loaded(root):
        return ""
    return " ".join(_sentences(device_nodes.node_problems(root)))


def _library_not_loaded(cause: BaseException | None, environ: Mapping[str, str]) -> Values:
    said = str(cause or "")
    if not said or isinstance(cause, FileNotFoundError) or ("No such file" in said and LIBRARY in said):
        hidden = _sentences(_hiding_variables(environ))
        found = f"No NVIDIA driver was found ({LIBRARY})"
        fix = ": install it; in a container, start it with the GPU and the `utility` driver capability."
        detail = " ".join([f"{found}.", *hidden]) if hidden else f"{found}{fix}"
        return {"outcome": "no_driver", "detail": detail}
    return {
        "outcome": "driver_broken",
        "detail": f"The NVIDIA library is there and cannot be loaded ({said}): reinstall the driver.",
    }


def _hiding_variables(environ: Mapping[str, str]) -> list[str]:
    """Name what a container was told that keeps its GPUs, or the library that tells of them, away."""
    found: list[str] = []
    devices = environ.get("NVIDIA_VISIBLE_DEVICES")
    if devices is not None and devices.strip().lower() in _HIDDEN:
        found.append(
            f"NVIDIA_VISIBLE_DEVICES={_printable(devices)} keeps every GPU out of this container: start it "
            "with `all`, or with the GPUs that it may use"
        )
    capabilities = environ.get("NVIDIA_DRIVER_CAPABILITIES")
    told = {one.strip().lower() for one in (capabilities or "").split(",")}
    if capabilities is not None and not told & {"utility", "all"}:
        found.append(
            f"NVIDIA_DRIVER_CAPABILITIES={_printable(capabilities)} leaves out `utility`, which the agent "
            "needs: add it"
        )
    return found


def _printable(value: str) -> str:
    return value.strip().encode("ascii", "backslashreplace").decode()


def _sentences(parts: list[str]) -> list[str]:
    return [f"{part[0].upper()}{part[1:]}." for part in parts]
