import asyncio
import socket
import sys
from collections.abc import Iterator

import pytest

from gpu_agent.server.round_trip import round_trip_seconds


class Transport(asyncio.BaseTransport):
    """Of a true socket; nothing is read or written through it."""

    def __init__(self, connection: socket.socket) -> None:
        super().__init__({"socket": connection})


@pytest.fixture
def connection() -> Iterator[socket.socket]:
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        socket.create_connection(server.getsockname()) as connection,
        server.accept()[0],
    ):
        yield connection


def test_a_connection_on_this_machine_takes_less_than_a_second_there_and_back(
    connection: socket.socket,
) -> None:
    seconds = round_trip_seconds(Transport(connection))
    assert seconds is not None
    assert 0 < seconds < 1


def test_of_a_connection_that_is_closed_or_was_never_made_nothing_is_known(connection: socket.socket) -> None:
    connection.close()
    assert round_trip_seconds(Transport(connection)) is None
    with socket.socket() as unused:
        assert round_trip_seconds(Transport(unused)) is None


def test_where_the_kernel_does_not_tell_nothing_is_known(
    connection: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    assert round_trip_seconds(Transport(connection)) is None
