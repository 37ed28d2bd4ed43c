"""What NVML's error codes mean: for one value, for one GPU, and for the whole driver.

Runs inside the NVML child, with the binding handed in. A value that NVML does not give has a reason in
`unknowns`; a lost GPU raises `GpuGoneError`; a library that does not initialize is an outcome with the next
step.
"""

import sys
from collections.abc import Callable, Mapping
from types import ModuleType

from gpu_agent.probe.nvml import device_nodes

Values = dict[str, object]
"""What the child reports of a GPU or a reading, as JSON will hold it."""

LIBRARY = "nvml.dll" if sys.platform == "win32" else "libnvidia-ml.so.1"

NOT_SUPPORTED = "not supported by this GPU and driver"
TOO_OLD = "the installed driver is too old to say"
"""Why a value is not known as long as the driver stays the same, as `NOT_SUPPORTED` is."""

_HIDING = ("void", "none", "")
"""Values of NVIDIA_VISIBLE_DEVICES that keep every GPU out of a container."""


class GpuGoneError(Exception):
    """The driver gave this GPU up: its handle must not be used again. The machine's fault.

    `known` holds the values that the GPU gave earlier in the same reading.
    """

    def __init__(self, code: str, detail: str) -> None:
        super().__init__(detail)
        self.code = code
        self.detail = detail
        self.known: Values = {}


class UnknownValueError(Exception):
    """A value is unknown: NVML gave one that cannot be true, or the call was skipped. The machine's fault.

    `known` holds the values of the same answer that are still valid.
    """

    def __init__(self, detail: str, known: Values | None = None) -> None:
        super().__init__(detail)
        self.known = known or {}


# ---- one value


def unknown_reason(nvml: ModuleType, error: object) -> str:
    """Say why one value is not known."""
    known = {
        nvml.NVML_ERROR_NOT_SUPPORTED: NOT_SUPPORTED,
        nvml.NVML_ERROR_FUNCTION_NOT_FOUND: TOO_OLD,
        nvml.NVML_ERROR_NO_PERMISSION: "the agent's user may not read it",
    }
    return known.get(getattr(error, "value", None)) or f"NVML answered: {error}"


def is_lasting(nvml: ModuleType, error: object) -> bool:
    """Whether a getter fails as long as the library stays open: the driver or the GPU does not have it."""
    return getattr(error, "value", None) in (
        nvml.NVML_ERROR_NOT_SUPPORTED,
        nvml.NVML_ERROR_FUNCTION_NOT_FOUND,
    )


def first_known(nvml: ModuleType, *calls: Callable[[], object]) -> object:
    """Try calls from the newest to the oldest, until one that the installed driver has."""
    *newer, oldest = calls
    for call in newer:
        try:
            return call()
        except (nvml.NVMLError_FunctionNotFound, nvml.NVMLError_ArgumentVersionMismatch):
            continue
    return oldest()


def as_text(value: object) -> str:
    """Return the value as text: some bindings give bytes."""
    return bytes(value).decode("utf-8", "replace") if isinstance(value, bytes | bytearray) else str(value)


def salvage_text(error: UnicodeDecodeError) -> str:
    """Return what can be read of a text that is no UTF-8, as some WSL2 drivers send."""
    return as_text(error.object)


# ---- one GPU


def raise_if_gone(nvml: ModuleType, error: object, doing: str) -> None:
    """Raise `GpuGoneError` when a code means that the GPU is lost or waits for a reset."""
    code = getattr(error, "value", None)
    if code in (nvml.NVML_ERROR_GPU_IS_LOST, nvml.NVML_ERROR_UNKNOWN):
        raise GpuGoneError("gpu_lost", f"{doing}: {error}")
    if code == nvml.NVML_ERROR_RESET_REQUIRED:
        raise GpuGoneError("gpu_reset_required", f"{doing}: {error}")


# ---- the whole driver


def is_driver_wide(nvml: ModuleType, error: object) -> bool:
    """Whether a code concerns the whole driver, not one getter or one GPU."""
    return getattr(error, "value", None) in (
        nvml.NVML_ERROR_UNINITIALIZED,
        nvml.NVML_ERROR_DRIVER_NOT_LOADED,
        nvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH,
    )


def init_error(nvml: ModuleType, error: BaseException, *, root: str, environ: Mapping[str, str]) -> Values:
    """Describe an error of the library as a whole: the outcome, and the next step as `detail`."""
    code = getattr(error, "value", None)
    if code == nvml.NVML_ERROR_GPU_NOT_FOUND:
        return no_gpu(root=root, environ=environ)
    if code == nvml.NVML_ERROR_LIBRARY_NOT_FOUND:
        return _library_not_loaded(error.__context__, environ, root)
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
    otherwise = f"NVML would not start ({error}): run `nvidia-smi` and fix what it reports."
    return {"outcome": "driver_broken", "detail": sentences.get(code, otherwise)}


def no_gpu(*, root: str, environ: Mapping[str, str]) -> Values:
    """Describe a driver that works and lists no GPU."""
    hiding = _hiding_variables(environ)
    nodes = device_nodes.node_problems(root) if device_nodes.is_module_loaded(root) else []
    sentences = ["The NVIDIA driver works and found no GPU.", *_sentences([*hiding, *nodes])]
    return {"outcome": "ok", "gpus": [], "detail": " ".join(sentences)}


def _device_node_problems(nvml: ModuleType, code: object, root: str) -> str:
    """Check the device nodes where they may be the cause; without the kernel module there are none."""
    suspects = (nvml.NVML_ERROR_NO_PERMISSION, nvml.NVML_ERROR_UNKNOWN, nvml.NVML_ERROR_DRIVER_NOT_LOADED)
    if code not in suspects or not device_nodes.is_module_loaded(root):
        return ""
    return " ".join(_sentences(device_nodes.node_problems(root)))


def _library_not_loaded(cause: BaseException | None, environ: Mapping[str, str], root: str) -> Values:
    error = str(cause or "")
    absent = isinstance(cause, FileNotFoundError) or ("No such file" in error and LIBRARY in error)
    if error and not absent:
        return {
            "outcome": "driver_broken",
            "detail": f"The NVIDIA library is there and cannot be loaded ({error}): reinstall the driver.",
        }
    found = f"No NVIDIA driver was found ({LIBRARY})"
    hiding = _sentences(_hiding_variables(environ))
    if hiding:
        return {"outcome": "no_driver", "detail": " ".join([f"{found}.", *hiding])}
    next_step = "install it; in a container, start it with the GPU and the `utility` driver capability"
    if device_nodes.has_no_gpu(root):
        found += ", and no NVIDIA GPU on the PCI bus"
        next_step = "in a container or virtual machine, start it with the GPU"
    return {"outcome": "no_driver", "detail": f"{found}: {next_step}."}


def _hiding_variables(environ: Mapping[str, str]) -> list[str]:
    """Name the variables that keep GPUs, or NVML itself, out of this container."""
    found: list[str] = []
    devices = environ.get("NVIDIA_VISIBLE_DEVICES")
    if devices is not None and devices.strip().lower() in _HIDING:
        found.append(
            f"NVIDIA_VISIBLE_DEVICES={_printable(devices)} keeps every GPU out of this container: start it "
            "with `all`, or with the GPUs that it may use"
        )
    capabilities = environ.get("NVIDIA_DRIVER_CAPABILITIES")
    listed = {one.strip().lower() for one in (capabilities or "").split(",")}
    if capabilities is not None and not listed & {"utility", "all"}:
        found.append(
            f"NVIDIA_DRIVER_CAPABILITIES={_printable(capabilities)} leaves out `utility`, which the agent "
            "needs: add it"
        )
    return found


def _printable(value: str) -> str:
    return value.strip().encode("ascii", "backslashreplace").decode()


def _sentences(parts: list[str]) -> list[str]:
    return [f"{part[0].upper()}{part[1:]}." for part in parts]
