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

# What systemd hears of a program that it runs: ready, reloading, stopping, alive, and how it stands.
#
# Each is one datagram to the socket that `NOTIFY_SOCKET` names, by path or in the abstract name space; the
# protocol is sd_notify(3)'s. Where no such socket is named nobody is told anything. A telling that fails
# is
# logged once and costs nothing else: it refuses to decide what is told, and never waits for systemd for
# long.


SEND_SECONDS = 0.2
"""How long a datagram may wait for room in systemd's queue."""
LONGEST_STATUS = 200

_SOCKET, _WATCHDOG, _WATCHDOG_PID = "NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"
_MICROSECONDS = 1_000_000
_LOG = Logger("runtime")


class SystemdNotifier:
    """The service manager of this process; deaf where there is none."""

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
        """Started, or done with reading the settings again."""
        self._tell("READY=1")

    def reloading(self) -> None:
        """Begin to read the settings again; `ready` has to follow."""
        self._tell("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")

    def stopping(self) -> None:
        """Begin to leave."""
        self._tell("STOPPING=1")

    def alive(self) -> None:
        """Feed the watchdog."""
        self._tell("WATCHDOG=1")

    def extend(self, seconds: float) -> None:
        """Ask for so long from now on, beyond what the unit gives a start or a stop."""
        self._tell(f"EXTEND_TIMEOUT_USEC={round(seconds * _MICROSECONDS)}")

    def status(self, sentence: str) -> None:
        """Say in one line how this program stands, for `systemctl status`; told when it has changed."""
        line = "".join(letter if letter.isprintable() else " " for letter in sentence)[:LONGEST_STATUS]
        if line != self._status:
            self._status = line
            self._tell(f"STATUS={line}")

    def _tell(self, *lines: str) -> None:
        if self._address is None:
            return
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as door:
                door.settimeout(SEND_SECONDS)
                door.sendto("\n".join(lines).encode(), self._address)
        except OSError as error:
            if not self._failed:
                self._failed = True
                _LOG.warning("systemd_not_told", problem=str(error), told=lines[0])


def _watchdog_of(environ: Mapping[str, str]) -> float | None:
    """Read how often systemd wants a sign of life; what is meant for another process counts for nothing."""
    told, pid = environ.get(_WATCHDOG, ""), environ.get(_WATCHDOG_PID, "")
    if pid and pid != str(os.getpid()):
        return None
    return int(told) / _MICROSECONDS if told.isascii() and told.isdigit() and int(told) > 0 else None


# A program as its service manager sees it: how it stands in a line, and a sign of life while it gets on.
#
# The watchdog is fed from the event loop, so one that stands feeds nothing, and only while nothing ails
# the
# program. What does is told to whoever asked, with a service manager or without. It judges nothing, and
# restarts nothing: that is the service manager's part.


LIVENESS_CHECK_SECONDS = 5.0
"""How often it is looked at, and oftener where the watchdog is in a hurry."""
_LOOKS_WITHIN_PATIENCE = 4
"""So many signs of life are due until the watchdog loses patience: one that is late costs nothing."""
_SECOND_LOOK = 0.1
"""Of the time between two looks: so soon what seems to ail is looked at again before it is told."""


async def notify_liveness(
    systemd: SystemdNotifier,
    *,
    standing: Callable[[], str],
    ailment: Callable[[], str | None],
    changed: Callable[[str | None], None],
) -> None:
    """Look and tell until cancelled. `changed` hears of an ailment that begins, and None at its end."""
    patience = systemd.watchdog_seconds
    every_seconds = (
        LIVENESS_CHECK_SECONDS
        if patience is None
        else min(LIVENESS_CHECK_SECONDS, patience / _LOOKS_WITHIN_PATIENCE)
    )
    ailing = False
    while True:
        systemd.status(standing())
        problem = ailment()
        if problem is not None and not ailing:  # after a stop all are late at once: let the others be woken
            await asyncio.sleep(every_seconds * _SECOND_LOOK)
            problem = ailment()
        if problem is None:
            systemd.alive()
        if ailing is not (problem is not None):
            ailing = not ailing
            changed(problem)
        await asyncio.sleep(every_seconds)
