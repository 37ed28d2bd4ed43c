"""An NVML child of an earlier command that was asked to end and is still stuck in the driver.

It is found by its process name and by the pending SIGTERM, as `/proc` shows them: no file remembers it.
Of a stuck process nothing is read that could block the reader as well, as its command line could. Linux only.
"""

import os
import time

CHILD_NAME = "gpu-agent-nvml"
"""What an NVML child calls itself; the kernel keeps 15 bytes."""

_ENDING_SECONDS = 0.5
"""One that only takes its time to end is gone after so long, on a busy machine too."""
_GLANCE_SECONDS = 0.01
"""Between two looks at it: nothing waits for the end of a process that is no child of ours."""
_ENDED = frozenset({"Z", "X"})
_PENDING = ("SigPnd", "ShdPnd")
_ASKED_TO_END = 1 << 14
"""SIGTERM among what waits; `signal`, which has it by name, would be one more thing for the child to load."""


def set_process_name(name: str = CHILD_NAME) -> None:
    """Let this process be told apart by its name; where the kernel keeps none, it stays nameless."""
    try:
        with open("/proc/self/comm", "w", encoding="ascii") as told:  # noqa: PTH123 - pathlib costs the child
            told.write(name)
    except OSError:
        return


def find_stuck_child(name: str = CHILD_NAME) -> int | None:
    """The process id of a stuck child of this user's; None where there is none."""
    for pid in _named(name):
        if _is_stuck(pid):
            return int(pid)
    return None


def _is_stuck(pid: str) -> bool:
    """Whether it heeds nobody for as long as one could that only takes its time."""
    deadline = time.monotonic() + _ENDING_SECONDS
    while _ignores_sigterm(pid):
        if time.monotonic() >= deadline:
            return True
        time.sleep(_GLANCE_SECONDS)
    return False


def _named(name: str) -> list[str]:
    try:
        pids = [entry for entry in os.listdir("/proc") if entry.isdigit()]  # noqa: PTH208 - before pathlib
    except OSError:
        return []
    return [pid for pid in pids if _read(pid, "comm").strip() == name and _is_ours(pid)]


def _is_ours(pid: str) -> bool:
    """Whoever may run a program may name it so: another user's keeps nobody from looking."""
    try:
        return os.stat(f"/proc/{pid}").st_uid == os.geteuid()  # noqa: PTH116 - before pathlib
    except OSError:
        return False


def _ignores_sigterm(pid: str) -> bool:
    """Whether it still runs, and SIGTERM waits for it to come back from the kernel."""
    told = dict(line.partition(":")[::2] for line in _read(pid, "status").splitlines())
    if told.get("State", "Z").strip()[:1] in _ENDED:
        return False
    return any(int(told.get(which, "0"), 16) & _ASKED_TO_END for which in _PENDING)


def _read(pid: str, fact: str) -> str:
    try:
        with open(f"/proc/{pid}/{fact}", encoding="utf-8", errors="replace") as told:  # noqa: PTH123 - as above
            return told.read()
    except OSError:
        return ""
