"""What this program sends to systemd: ready, reloading, stopping, a status line, and that it is alive.

Each message is one datagram to the socket in `NOTIFY_SOCKET`; the protocol is sd_notify(3)'s. Without such a
socket nothing is sent. A failure is logged once. The watchdog is fed from the event loop, and only while the
program is live, so a stalled loop feeds nothing.
"""

import asyncio
import os
import socket
import time
from collections.abc import Callable, Mapping

from gpu_agent.runtime.logs import Logger

SEND_SECONDS = 0.2
"""How long a datagram may wait for room in systemd's queue."""
MAX_STATUS_LENGTH = 400
ENDED = "ended: "
"""How the status line begins of a program that ended for a reason that a person must remove."""
LIVENESS_CHECK_SECONDS = 5.0
"""The longest interval between two checks; a short watchdog timeout makes it shorter."""

_SOCKET, _WATCHDOG, _WATCHDOG_PID = "NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"
_MICROSECONDS = 1_000_000
_CHECKS_PER_TIMEOUT = 4
"""So many checks fit into the watchdog's timeout: one that is late costs nothing."""
_CONFIRM_AFTER = 0.1
"""A problem is confirmed after this part of the interval, before it is reported."""
_LOG = Logger("runtime")


class SystemdNotifier:
    """The service manager of this process; sends nothing where there is none."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        """`environ` is this process's environment, as systemd made it."""
        name = environ.get(_SOCKET, "")
        self._address = name if name.startswith("/") else f"\0{name[1:]}" if name.startswith("@") else None
        self._watchdog_seconds = _watchdog_of(environ) if self.listens else None
        self._status = ""
        self._failed = False

    @property
    def listens(self) -> bool:
        """True where systemd named a socket for this process."""
        return self._address is not None

    @property
    def watchdog_seconds(self) -> float | None:
        """How long systemd waits for the next `alive` before it ends this process; None: for ever."""
        return self._watchdog_seconds

    def ready(self) -> None:
        """Report that the program has started, or has read its settings again."""
        self._send("READY=1")

    def reloading(self) -> None:
        """Report that the settings are being read again; `ready` has to follow."""
        self._send("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")

    def stopping(self) -> None:
        """Report that the program is stopping."""
        self._send("STOPPING=1")

    def alive(self) -> None:
        """Feed the watchdog."""
        self._send("WATCHDOG=1")

    def extend(self, seconds: float) -> None:
        """Ask for so many seconds from now on, beyond what the unit allows for a start or a stop."""
        self._send(f"EXTEND_TIMEOUT_USEC={round(seconds * _MICROSECONDS)}")

    def status(self, sentence: str) -> None:
        """Set the line that `systemctl status` shows; sent when it has changed."""
        line = "".join(letter if letter.isprintable() else " " for letter in sentence)[:MAX_STATUS_LENGTH]
        if line != self._status:
            self._status = line
            self._send(f"STATUS={line}")

    def ended(self, why: str) -> None:
        """Set the status line that stays after the end of the program, until its next start."""
        self.status(f"{ENDED}{why}")

    def _send(self, *lines: str) -> None:
        if self._address is None:
            return
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as connection:
                connection.settimeout(SEND_SECONDS)
                connection.sendto("\n".join(lines).encode(), self._address)
        except OSError as error:
            if not self._failed:
                self._failed = True
                _LOG.warning("systemd_notification_failed", problem=str(error), message=lines[0])


async def notify_liveness(
    systemd: SystemdNotifier,
    *,
    status_line: Callable[[], str],
    find_problem: Callable[[], str | None],
    on_change: Callable[[str | None], None],
) -> None:
    """Check again and again until cancelled; feed the watchdog while there is no problem.

    `on_change` receives a problem when it begins, and None when it ends, with systemd and without.
    """
    timeout = systemd.watchdog_seconds
    interval = LIVENESS_CHECK_SECONDS
    if timeout is not None:
        interval = min(interval, timeout / _CHECKS_PER_TIMEOUT)
    has_problem = False
    while True:
        systemd.status(status_line())
        problem = find_problem()
        if problem is not None and not has_problem:  # after a suspend all is late at once: let the others run
            await asyncio.sleep(interval * _CONFIRM_AFTER)
            problem = find_problem()
        if problem is None:
            systemd.alive()
        if has_problem is not (problem is not None):
            has_problem = not has_problem
            on_change(problem)
        await asyncio.sleep(interval)


def _watchdog_of(environ: Mapping[str, str]) -> float | None:
    """Read the watchdog's timeout; one that is meant for another process does not count."""
    stated, pid = environ.get(_WATCHDOG, ""), environ.get(_WATCHDOG_PID, "")
    if pid and pid != str(os.getpid()):
        return None
    if not (stated.isascii() and stated.isdigit() and int(stated) > 0):
        return None
    return int(stated) / _MICROSECONDS
