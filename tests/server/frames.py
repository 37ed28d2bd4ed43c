"""WebSocket frames as a client writes them, however odd."""

import os
import struct


def masked(payload: bytes, *, opcode: int = 1, fin: bool = True) -> bytes:
    mask = os.urandom(4)
    length = len(payload)
    head = bytes([opcode | (0x80 if fin else 0)])
    if length < 126:
        head += bytes([0x80 | length])
    elif length < 65536:
        head += b"\xfe" + struct.pack("!H", length)
    else:
        head += b"\xff" + struct.pack("!Q", length)
    return head + mask + bytes(byte ^ mask[at & 3] for at, byte in enumerate(payload))


def fragmented(payload: bytes) -> bytes:
    half = len(payload) // 2
    return masked(payload[:half], fin=False) + pinged(b"", opcode=0, rest=payload[half:])


def pinged(payload: bytes, *, opcode: int = 1, rest: bytes = b"") -> bytes:
    return masked(b"are you there", opcode=9) + masked(payload + rest, opcode=opcode)
