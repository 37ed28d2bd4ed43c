"""How fast memory is copied between host and GPU, by libcuda through ctypes.

Runs in the child that checks one GPU, which alone is visible to the library. Pinned memory is copied to the
GPU and back several times, and the fastest copy counts: a slow one may have other reasons than the GPU. What
comes back must be what was sent.

Functions and result codes: https://docs.nvidia.com/cuda/cuda-driver-api/
"""

import ctypes
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

LIBRARY = "nvcuda.dll" if os.name == "nt" else "libcuda.so.1"
COPY_BYTES = 32 << 20
ROUNDS = 8
_GB = 1e9
_PATTERN = bytes(range(251)) * 1_000
"""251 bytes are no divisor of a page: a page that lands in another's place differs."""


_IN_USE = frozenset({2, 46})
"""CUDA_ERROR_OUT_OF_MEMORY and CUDA_ERROR_DEVICE_UNAVAILABLE: another process came first."""


class NoCudaError(Exception):
    """The copies cannot be made here, and that says nothing about the GPU."""


class CudaError(Exception):
    """A call of the library failed, or the memory did not come back as it was sent."""


def measure_copies(under_load: Callable[[], None]) -> dict[str, float]:
    """Copy to the first visible GPU and back: `to_gb_s` and `from_gb_s`. `under_load` is called in between.

    Raises:
        NoCudaError: there is no libcuda, or another process uses the GPU.
        CudaError: the GPU cannot be used, or its memory is wrong.
    """
    cuda = _Library()
    with cuda.context(), cuda.host_memory() as host, cuda.device_memory() as device:
        sent = (_PATTERN * (COPY_BYTES // len(_PATTERN) + 1))[:COPY_BYTES]
        ctypes.memmove(host, sent, COPY_BYTES)
        to, back = [], []
        for turn in range(ROUNDS):
            to.append(_timed(lambda: cuda.call("cuMemcpyHtoD_v2", device, host, ctypes.c_size_t(COPY_BYTES))))
            if turn == ROUNDS // 2:
                under_load()
            if turn == 0:
                ctypes.memset(host, 0, COPY_BYTES)
            back.append(
                _timed(lambda: cuda.call("cuMemcpyDtoH_v2", host, device, ctypes.c_size_t(COPY_BYTES)))
            )
            if turn in (0, ROUNDS - 1) and ctypes.string_at(host, COPY_BYTES) != sent:
                raise CudaError("the GPU's memory does not hold what was copied to it")
    return {"to_gb_s": _rate(to), "from_gb_s": _rate(back)}


def _timed(copy: Callable[[], None]) -> float:
    began = time.perf_counter()
    copy()
    return time.perf_counter() - began


def _rate(seconds: list[float]) -> float:
    return round(COPY_BYTES / max(min(seconds), 1e-9) / _GB, 2)


class _Library:
    """libcuda, initialized, with the visible GPU as its device 0."""

    def __init__(self) -> None:
        try:
            self._cuda = ctypes.CDLL(LIBRARY)
        except OSError as error:
            raise NoCudaError(f"there is no {LIBRARY} ({error})") from None
        self.call("cuInit", ctypes.c_uint(0))
        self._device = ctypes.c_int()
        self.call("cuDeviceGet", ctypes.byref(self._device), ctypes.c_int(0))

    def call(self, name: str, *arguments: object) -> None:
        """Call a function; raises `CudaError` with the name of the result."""
        try:
            function = getattr(self._cuda, name)
        except AttributeError:
            raise NoCudaError(f"{LIBRARY} has no {name}: it is too old") from None
        result = function(*arguments)
        if result in _IN_USE:
            raise NoCudaError(f"another process has the GPU or its memory ({self._name_of(result)})")
        if result != 0:
            raise CudaError(f"{name} failed: {self._name_of(result)}")

    @contextmanager
    def context(self) -> Iterator[None]:
        """Hold the GPU's primary context, and let go of it."""
        context = ctypes.c_void_p()
        self.call("cuDevicePrimaryCtxRetain", ctypes.byref(context), self._device)
        self.call("cuCtxSetCurrent", context)
        yield
        self.call("cuDevicePrimaryCtxRelease_v2", self._device)

    @contextmanager
    def host_memory(self) -> Iterator[ctypes.c_void_p]:
        """Hold pinned memory of the host."""
        memory = ctypes.c_void_p()
        self.call("cuMemHostAlloc", ctypes.byref(memory), ctypes.c_size_t(COPY_BYTES), ctypes.c_uint(0))
        yield memory
        self.call("cuMemFreeHost", memory)

    @contextmanager
    def device_memory(self) -> Iterator[ctypes.c_uint64]:
        """Hold memory of the GPU."""
        memory = ctypes.c_uint64()
        self.call("cuMemAlloc_v2", ctypes.byref(memory), ctypes.c_size_t(COPY_BYTES))
        yield memory
        self.call("cuMemFree_v2", memory)

    def _name_of(self, result: int) -> str:
        name = ctypes.c_char_p()
        try:
            self._cuda.cuGetErrorName(ctypes.c_int(result), ctypes.byref(name))
        except AttributeError:
            return f"error {result}"
        return name.value.decode("ascii", "replace") if name.value else f"error {result}"
