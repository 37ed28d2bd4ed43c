"""Keeps one GPU busy, with nothing but the driver's `libcuda`: it fills memory again and again.

    CUDA_VISIBLE_DEVICES=GPU-… python -m tests.gpu.cuda_load [--mb 2048]

It prints `busy` once the GPU works, and ends with its standard input.
"""

import argparse
import ctypes
import sys
import threading

LIBRARY = "libcuda.so.1"
MIB = 1 << 20
_FILLS_A_TURN = 64


class CudaError(Exception):
    """A call of `libcuda` failed."""


def main() -> int:
    """Work until standard input ends."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--mb", type=int, default=2048, help="memory that it takes, in MiB")
    arguments = parser.parse_args()
    ended = threading.Event()
    try:
        fill = _open(arguments.mb * MIB)
        fill()
    except (OSError, CudaError) as error:
        print(f"no load: {error}", flush=True)
        return 1
    print("busy", flush=True)
    threading.Thread(target=_await_end, args=(ended,), daemon=True).start()
    while not ended.is_set():
        fill()
    return 0


def _await_end(ended: threading.Event) -> None:
    sys.stdin.read()
    ended.set()


class _Fill:
    """Fills the same memory, many times a turn, and waits for the GPU to end that."""

    def __init__(self, cuda: ctypes.CDLL, address: ctypes.c_uint64, size: int) -> None:
        self._cuda, self._address, self._size = cuda, address, size

    def __call__(self) -> None:
        for value in range(_FILLS_A_TURN):
            _check("cuMemsetD8", self._cuda.cuMemsetD8_v2(self._address, value, ctypes.c_size_t(self._size)))
        _check("cuCtxSynchronize", self._cuda.cuCtxSynchronize())


def _open(size: int) -> _Fill:
    cuda = ctypes.CDLL(LIBRARY)
    device, context, address = ctypes.c_int(), ctypes.c_void_p(), ctypes.c_uint64()
    _check("cuInit", cuda.cuInit(0))
    _check("cuDeviceGet", cuda.cuDeviceGet(ctypes.byref(device), 0))
    _check("cuCtxCreate", cuda.cuCtxCreate_v2(ctypes.byref(context), 0, device))
    _check("cuMemAlloc", cuda.cuMemAlloc_v2(ctypes.byref(address), ctypes.c_size_t(size)))
    return _Fill(cuda, address, size)


def _check(call: str, code: int) -> None:
    if code:
        raise CudaError(f"{call} answered {code}")


if __name__ == "__main__":
    sys.exit(main())
