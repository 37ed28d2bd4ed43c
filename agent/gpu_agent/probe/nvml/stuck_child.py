"""An NVML child of an earlier command that was asked to end and is still stuck in the driver.

It is found by its process name and by its pending SIGTERM, as `/proc` shows them: no file remembers it. Of a
stuck process nothing is read that could block the reader as well, as its command line could. Linux only.
"""

import os
import time

CHILD_NAME = "gpu-agent-nvml"
"""The process name of an NVML child; the kernel stores 15 bytes."""

_ENDING_SECONDS = 0.5
"""A child that is only slow to end has ended after so long, on a busy machine too."""
_POLL_SECONDS = 0.01
"""Polled, because nothing can wait for the end of a process that is no child of ours."""
_ENDED = frozenset({"Z", "X"})
_PENDING = ("SigPnd", "ShdPnd")
_SIGTERM_BIT = 1 << 14
"""SIGTERM in the masks of pending signals; importing `signal` for its name would cost the child."""


def set_process_name(name: str = CHILD_NAME) -> None:
    """Give this process its name; without `/proc` it has none."""
    try:
        with open("/proc/self/comm", "w", encoding="ascii") as file:  # noqa: PTH123 - pathlib costs the child
            file.write(name)
    except OSError:
        return


def find_stuck_child(name: str = CHILD_NAME) -> int | None:
    """Return the process id of a stuck child of this user's; None where there is none."""
    for pid in _pids_named(name):
        if _is_stuck(pid):
            return int(pid)
    return None


def _pids_named(name: str) -> list[str]:
    try:
        pids = [entry for entry in os.listdir("/proc") if entry.isdigit()]  # noqa: PTH208 - before pathlib
    except OSError:
        return []
    return [pid for pid in pids if _read(pid, "comm").strip() == name and _is_ours(pid)]


def _is_ours(pid: str) -> bool:
    """Any user may give a program this name: one of another user's must not block our reading."""
    try:
        return os.stat(f"/proc/{pid}").st_uid == os.geteuid()  # noqa: PTH116 - before pathlib
    except OSError:
        return False


def _is_stuck(pid: str) -> bool:
    """Whether its SIGTERM stays pending for longer than a slow child takes to end."""
    deadline = time.monotonic() + _ENDING_SECONDS
    while _has_pending_sigterm(pid):
        if time.monotonic() >= deadline:
            return True
        time.sleep(_POLL_SECONDS)
    return False


def _has_pending_sigterm(pid: str) -> bool:
    status = dict(line.partition(":")[::2] for line in _read(pid, "status").splitlines())
    if status.get("State", "Z").strip()[:1] in _ENDED:
        return False
    return any(int(status.get(mask, "0"), 16) & _SIGTERM_BIT for mask in _PENDING)


def _read(pid: str, name: str) -> str:
    try:
        with open(f"/proc/{pid}/{name}", encoding="utf-8", errors="replace") as file:  # noqa: PTH123 - as above
            return file.read()
    except OSError:
        return ""
