import asyncio
import socket
import subprocess
import sys

import pytest

from gpu_agent.runtime.address import Address, bound_address


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("127.0.0.1:8080", Address("127.0.0.1", 8080)),
        ("localhost:0", Address("localhost", 0)),
        ("[::1]:8080", Address("::1", 8080)),
        ("0.0.0.0:65535", Address("0.0.0.0", 65535)),
        (" gpu-box.local:1 ", Address("gpu-box.local", 1)),
    ],
)
def test_host_and_port_are_read_and_written_back(text: str, address: Address) -> None:
    assert Address.parse(text) == address
    assert Address.parse(str(address)) == address


@pytest.mark.parametrize(
    "text", ["", "8080", ":8080", "127.0.0.1", "127.0.0.1:", "127.0.0.1:http", "127.0.0.1:-1", "a:\u0661"]
)
def test_what_is_no_host_and_port_says_how_to_write_one(text: str) -> None:
    with pytest.raises(ValueError, match=r"write it like 127\.0\.0\.1:8080"):
        Address.parse(text)


def test_a_bare_ipv6_address_is_asked_for_brackets() -> None:
    with pytest.raises(ValueError, match="in brackets"):
        Address.parse("::1:8080")


def test_a_port_beyond_the_last_is_refused() -> None:
    with pytest.raises(ValueError, match="at most 65535"):
        Address.parse("127.0.0.1:65536")


@pytest.mark.parametrize(
    ("host", "loopback"),
    [
        ("127.0.0.1", True),
        ("127.9.9.9", True),
        ("::1", True),
        ("localhost", True),
        ("LOCALHOST", True),
        ("0.0.0.0", False),
        ("::", False),
        ("10.0.0.1", False),
        ("gpu-box.local", False),
        ("localhost.example.org", False),
    ],
)
def test_only_addresses_of_this_machine_are_loopback(host: str, *, loopback: bool) -> None:
    assert Address(host, 1).is_loopback is loopback


def test_port_0_is_replaced_by_the_one_that_the_system_chose() -> None:
    with Address("127.0.0.1", 0).bind() as listener:
        bound = bound_address(listener)
    assert bound.host == "127.0.0.1"
    assert bound.port > 0


BOUND = """
import sys
from gpu_agent.runtime.address import Address
sys.addaudithook(lambda event, of: event == "socket.bind" and print(of[1][0]))
Address(sys.argv[1], 0).bind().close()
"""


@pytest.mark.parametrize("name", ["localhost", "LOCALHOST"])
def test_what_counts_as_loopback_by_its_name_is_not_left_to_a_resolver(name: str) -> None:
    said = subprocess.run([sys.executable, "-c", BOUND, name], capture_output=True, text=True, check=True)
    assert said.stdout.split() == ["127.0.0.1"]


async def test_connections_of_a_listener_do_not_wait_to_fill_a_segment() -> None:
    accepted: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    def take(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        peer = writer.get_extra_info("socket")
        accepted.set_result(peer.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
        writer.close()

    listener = Address("127.0.0.1", 0).bind()
    async with await asyncio.start_server(take, sock=listener):
        _, writer = await asyncio.open_connection(*listener.getsockname())
        assert await accepted != 0
        writer.close()
