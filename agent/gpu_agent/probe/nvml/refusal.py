"""Why NVML will not start: no library, or one that is there and broken, each with the next step.

Runs inside the NVML child, with the binding and the surroundings handed in. It mends nothing and
tries nothing twice.
"""

import sys
from collections.abc import Mapping
from types import ModuleType

from gpu_agent.probe import device_nodes
from gpu_agent.probe.nvml.answers import Values

LIBRARY = "nvml.dll" if sys.platform == "win32" else "libnvidia-ml.so.1"

_HIDDEN = ("void", "none", "")
"""Values of NVIDIA_VISIBLE_DEVICES by which a container gets no GPU."""


def refusal(nvml: ModuleType, error: BaseException, *, root: str, environ: Mapping[str, str]) -> Values:
    """Describe an error that came from the library as a whole."""
    code = getattr(error, "value", None)
    if code == nvml.NVML_ERROR_GPU_NOT_FOUND:
        return no_gpu(root=root, environ=environ)
    if code == nvml.NVML_ERROR_LIBRARY_NOT_FOUND:
        return _library_not_loaded(error.__context__, environ)
    nodes = _node_troubles(nvml, code, root)
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
    hidden = _hidden(environ)
    nodes = device_nodes.troubles(root) if device_nodes.module_is_loaded(root) else []
    return {"outcome": "ok", "gpus": [], "detail": " ".join([detail, *_sentences([*hidden, *nodes])])}


def _node_troubles(nvml: ModuleType, code: object, root: str) -> str:
    """Look at the device nodes where an error may come from them; without its module there are none."""
    suspects = (nvml.NVML_ERROR_NO_PERMISSION, nvml.NVML_ERROR_UNKNOWN, nvml.NVML_ERROR_DRIVER_NOT_LOADED)
    if code not in suspects or not device_nodes.module_is_loaded(root):
        return ""
    return " ".join(_sentences(device_nodes.troubles(root)))


def _library_not_loaded(cause: BaseException | None, environ: Mapping[str, str]) -> Values:
    said = str(cause or "")
    if not said or isinstance(cause, FileNotFoundError) or ("No such file" in said and LIBRARY in said):
        hidden = _sentences(_hidden(environ))
        found = f"No NVIDIA driver was found ({LIBRARY})"
        mend = ": install it; in a container, start it with the GPU and the `utility` driver capability."
        detail = " ".join([f"{found}.", *hidden]) if hidden else f"{found}{mend}"
        return {"outcome": "no_driver", "detail": detail}
    return {
        "outcome": "driver_broken",
        "detail": f"The NVIDIA library is there and cannot be loaded ({said}): reinstall the driver.",
    }


def _hidden(environ: Mapping[str, str]) -> list[str]:
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
