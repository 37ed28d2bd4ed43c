"""What systemd hears of a program that it runs: ready, reloading, stopping, alive, and how it stands.

Each is one datagram to the socket that `NOTIFY_SOCKET` names, by path or in the abstract name space; the
protocol is sd_notify(3)'s. Where no such socket is named nobody is told anything. A telling that fails is
logged once and costs nothing else: it refuses to decide what is told, and never waits for systemd for long.
"""

import os
import socket
import time
from collections.abc import Mapping

from gpu_agent.runtime.logs import EventLog

SEND_SECONDS = 0.2
"""How long a datagram may wait for room in systemd's queue."""
LONGEST_STATUS = 200

_SOCKET, _WATCHDOG, _WATCHDOG_PID = "NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"
_MICROSECONDS = 1_000_000
_LOG = EventLog("runtime")


class Systemd:
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
