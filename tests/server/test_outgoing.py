import asyncio
import socket

from gpu_agent.server.outgoing import write_out


async def test_the_pieces_go_out_in_order_and_the_empty_one_ends_our_half() -> None:
    ours, theirs = socket.socketpair()
    transport, _ = await asyncio.get_running_loop().create_connection(asyncio.Protocol, sock=ours)
    write_out(transport, [b"a", b"bc", b""])
    reader, writer = await asyncio.open_connection(sock=theirs)
    assert await asyncio.wait_for(reader.read(), 5) == b"abc"
    assert not transport.is_closing()
    writer.close()
    transport.close()


async def test_a_peer_that_is_gone_by_now_ends_the_whole_of_it() -> None:
    loop = asyncio.get_running_loop()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        there = socket.create_connection(listener.getsockname())
        here, _ = listener.accept()
    transport, _ = await loop.create_connection(asyncio.Protocol, sock=here)
    transport.pause_reading()
    there.close()
    write_out(transport, [b"the peer answers this with a reset", b""])
    assert transport.is_closing()
    await asyncio.sleep(0)
