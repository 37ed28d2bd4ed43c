"""The network of this process, and a new one in its place for as long as the machines of a cluster run."""

import ctypes
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_NEW_NETWORK = 0x40000000
_LIBC = ctypes.CDLL(None, use_errno=True)


def why_not() -> str | None:
    """Say why no machine can be made here; None where it can."""
    if os.geteuid() != 0:
        return "only root makes network namespaces"
    missing = [name for name in ("ip", "nsenter", "unshare", "etcd") if shutil.which(name) is None]
    return f"missing: {', '.join(missing)}" if missing else None


@contextmanager
def own_network() -> Iterator[None]:
    """Let this thread, and the programs that it starts, route between machines of `add_host`."""
    with Path("/proc/thread-self/ns/net").open("rb") as before:
        _checked(_LIBC.unshare(_NEW_NETWORK))
        try:
            subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
            Path("/proc/sys/net/ipv4/ip_forward").write_text("1")
            yield
        finally:
            _checked(_LIBC.setns(before.fileno(), _NEW_NETWORK))


def _checked(result: int) -> None:
    if result != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
