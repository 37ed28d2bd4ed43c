"""What an NVML getter's answer may be: values, a reason why there is none, or the end of a GPU.

Runs inside the NVML child, with the binding handed in. It names no getter: those are
`readings`, `memory`, `processes` and `slices`.
"""

import math
import time
from collections.abc import Callable, Sequence
from types import ModuleType

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


class UntoldError(Exception):
    """A value that cannot be told: the answer is none that can be believed, or none was asked for.

    The machine's fault. `known` holds what the same answer said beside it and still counts.
    """

    def __init__(self, detail: str, known: Values | None = None) -> None:
        super().__init__(detail)
        self.known = known or {}


def collect(
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
        if condemns_driver(nvml, error):
            raise
        raise_if_gone(nvml, error, f"reading {fields[0]}")
        return {}, dict.fromkeys(fields, reason(nvml, error))
    except UntoldError as error:
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


def condemns_driver(nvml: ModuleType, error: object) -> bool:
    """Tell whether a code speaks of the whole driver, and not of one getter or one GPU."""
    return getattr(error, "value", None) in (
        nvml.NVML_ERROR_UNINITIALIZED,
        nvml.NVML_ERROR_DRIVER_NOT_LOADED,
        nvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH,
    )


def reason(nvml: ModuleType, error: object) -> str:
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


def words(raised: UnicodeDecodeError) -> str:
    """Save what can be read of a text that is no UTF-8, as some WSL2 drivers send."""
    return text(raised.object)


def text(told: object) -> str:
    """Take a text as it comes: some bindings give bytes."""
    return bytes(told).decode("utf-8", "replace") if isinstance(told, bytes | bytearray) else str(told)


def within(value: int, low: int, high: int) -> int:
    """Give a number back; raises `UntoldError` for one that no GPU has."""
    if not low <= value <= high:
        raise UntoldError(f"the driver answered {value}, which cannot be")
    return value
