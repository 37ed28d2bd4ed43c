"""A disk that hangs for real: a FUSE file system without a server, mounted over a folder.

Whatever looks at the folder meanwhile waits in the kernel; when the disk comes back, those that waited
get an error, and the folder is as it was. Needs root and `/dev/fuse`; it skips elsewhere.
"""

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import pytest

_DETACH = 2


@contextmanager
def hung(folder: Path) -> Iterator[None]:
    """The disk under this folder hangs within the block."""
    try:
        device = os.open("/dev/fuse", os.O_RDWR)
    except OSError as error:
        pytest.skip(f"no disk can be made to hang here: /dev/fuse: {error.strerror}")
    try:
        options = f"fd={device},rootmode=40000,user_id=0,group_id=0"
        if _libc().mount(b"hung", os.fsencode(folder), b"fuse", 0, options.encode()):
            pytest.skip(f"no disk can be made to hang here: mount: {os.strerror(ctypes.get_errno())}")
        try:
            yield
        finally:
            os.close(device)  # waiting threads get an error
            device = -1
            _libc().umount2(os.fsencode(folder), _DETACH)
    finally:
        if device >= 0:
            os.close(device)


@cache
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)
