"""Further addresses of a registry: ports that relay to its own, and can be shut as a machine that fails."""

import contextlib
import socket
import struct
import threading
from types import TracebackType
from typing import Self

from tests.waiting import patience

_RESET = struct.pack("ii", 1, 0)


class Door:
    """Relays to a port of this machine while the block runs, or until it is shut."""

    def __init__(self, to_port: int, *, port: int = 0) -> None:
        self._to = ("127.0.0.1", to_port)
        self._listener = socket.create_server(("127.0.0.1", port))
        self.port: int = self._listener.getsockname()[1]
        self.open: set[socket.socket] = set()
        """The connections of nodes that it relays."""
        self._lock = threading.Lock()
        self._threads = [threading.Thread(target=self._accept, daemon=True)]

    @property
    def url(self) -> str:
        return f"ws://127.0.0.1:{self.port}/ws/node"

    def __enter__(self) -> Self:
        self._threads[0].start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.shut()

    def shut(self) -> None:
        """Refuse connections from now on, and reset those that are open."""
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        with self._lock:
            open_now = tuple(self.open)
        for connection in open_now:
            with contextlib.suppress(OSError):
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
                connection.shutdown(socket.SHUT_RD)
        for thread in tuple(self._threads):
            thread.join(patience(10))
            assert not thread.is_alive()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            thread = threading.Thread(target=self._relay, args=(connection,), daemon=True)
            self._threads.append(thread)
            thread.start()

    def _relay(self, connection: socket.socket) -> None:
        with self._lock:
            self.open.add(connection)
        with connection, socket.create_connection(self._to) as onward:
            back = threading.Thread(target=_pump, args=(onward, connection), daemon=True)
            back.start()
            _pump(connection, onward)
            back.join()
        with self._lock:
            self.open.discard(connection)


def _pump(source: socket.socket, target: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(65536):
            target.sendall(data)
    with contextlib.suppress(OSError):
        target.shutdown(socket.SHUT_RDWR)
