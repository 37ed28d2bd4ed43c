"""A server that is no agent, at the path of an agent's socket."""

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from gpu_agent.local.connection import MAX_REQUEST_BYTES
from tests.waiting import patience


@contextmanager
def answering_with(path: Path, words: bytes) -> Iterator[None]:
    """Something listens there that is no agent of ours, and sends this to any caller."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()

        def talk() -> None:
            with listener.accept()[0] as connection:
                connection.recv(MAX_REQUEST_BYTES)
                connection.sendall(words)
                if not words:
                    connection.recv(1)

        thread = threading.Thread(target=talk, daemon=True)
        thread.start()
        yield
        thread.join(patience(5))
