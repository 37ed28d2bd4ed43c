"""Memory that a long-running process needed only for its start, and holds without using it.

Imports next to nothing: the NVML child uses it too.
"""

import ctypes
import sys


def return_free_memory() -> None:
    """Return what is free on the C library's heap to the kernel; only GNU's library on Linux can."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)
