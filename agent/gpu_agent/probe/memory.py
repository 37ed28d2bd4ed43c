"""Memory that a long-running process needed only for its start, and holds without using it.

Imports next to nothing: the NVML child uses it too.
"""

import ctypes
import sys

_ARENA_MAX = -8
"""malloc.h's M_ARENA_MAX"""


def keep_one_heap() -> None:
    """Have all threads share one heap of the C library's: each other one holds what a thread once needed.

    Python has an allocator of its own for what is small. Only GNU's library on Linux can; call it before any
    thread starts.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(_ARENA_MAX, 1)


def return_free_memory() -> None:
    """Return what is free on the C library's heap to the kernel; only GNU's library on Linux can."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)
