"""systemd as a service sees it: a datagram socket that records what it receives."""

import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from tests.waiting import patience


class ServiceManager:
    """Listens at one address, and records all that it receives."""

    def __init__(self, address: str) -> None:
        self.received: list[str] = []
        self._address = address
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(address)

    @property
    def environment(self) -> Mapping[str, str]:
        """What a service finds in its environment."""
        return {"NOTIFY_SOCKET": self._address.replace("\0", "@", 1)}

    def hear(self, *, within_seconds: float = 5) -> str:
        """Wait for the next datagram."""
        self._socket.settimeout(patience(within_seconds))
        self.received.append(self._socket.recv(4096).decode())
        return self.received[-1]

    def hear_until(self, begins: str, *, within_seconds: float = 5) -> str:
        """Wait for a datagram that begins so; those before it are recorded too."""
        while True:
            if (received := self.hear(within_seconds=within_seconds)).startswith(begins):
                return received

    def received_so_far(self) -> list[str]:
        """All that was received until now."""
        self._socket.settimeout(0)
        while True:
            try:
                self.received.append(self._socket.recv(4096).decode())
            except BlockingIOError:
                return self.received

    def close(self) -> None:
        self._socket.close()


@contextmanager
def service_manager(folder: Path) -> Iterator[ServiceManager]:
    """Listen at a path in this folder."""
    manager = ServiceManager(str(folder / "notify"))
    try:
        yield manager
    finally:
        manager.close()
