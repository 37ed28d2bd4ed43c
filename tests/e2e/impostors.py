"""A listener where an agent's registry should be, which records every byte that it receives."""

import contextlib
import socket
import ssl
import threading
from types import TracebackType
from typing import Self

from tests.waiting import patience


class Impostor:
    """Answers on a port of its own, behind TLS where it has a context, with the same words to everybody."""

    def __init__(self, context: ssl.SSLContext | None, words: bytes = b"") -> None:
        self.heard = b""
        """All that it received, decrypted."""
        self.visits = 0
        self._context = context
        self._words = words
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._thread = threading.Thread(target=self._serve, daemon=True)

    @property
    def url(self) -> str:
        return f"wss://localhost:{self.port}/ws/node"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join(patience(10))
        assert not self._thread.is_alive()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self.visits += 1
            with connection, contextlib.suppress(OSError):
                connection.settimeout(3)
                self._meet(connection)

    def _meet(self, connection: socket.socket) -> None:
        if self._context is None:
            self._talk(connection)
            return
        with self._context.wrap_socket(connection, server_side=True) as encrypted:
            self._talk(encrypted)

    def _talk(self, connection: socket.socket) -> None:
        self.heard += connection.recv(65536)
        connection.sendall(self._words)
