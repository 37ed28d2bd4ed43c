"""How a commit is cut for etcd's transactions, and the form of its parts that are stored before they count.

A part is applied in one transaction that deletes it, and only while it exists: each once, and in order.
"""

import json
from collections.abc import Iterator, MutableMapping, Sequence

from gpu_agent.store.etcd.client import Delete, Put

MOST_OPERATIONS = 120
"""In a transaction; etcd's default limit is 128."""
MOST_BYTES = 1 << 20
"""In a transaction; etcd's default limit is 1.5 MiB."""
_RESERVED = 2
"""Operations of a transaction besides those of a part: the commit's number, or the part's own deletion."""
_PART_BYTES = MOST_BYTES // 4

Write = Put | Delete
Part = Sequence[Write]


def parts_of(writes: Sequence[Write]) -> list[list[Write]]:
    """Cut a commit: one part where it fits a transaction. Only a write that is larger makes a larger part."""
    if len(writes) + _RESERVED <= MOST_OPERATIONS and sum(map(_size, writes)) <= MOST_BYTES:
        return [list(writes)]
    return list(_cut(writes, most=MOST_OPERATIONS - _RESERVED, most_bytes=_PART_BYTES))


def stages_of(parts: Sequence[Put]) -> list[list[Write]]:
    """Cut what stores the parts of one commit into transactions."""
    return list(_cut(parts, most=MOST_OPERATIONS - _RESERVED, most_bytes=MOST_BYTES))


def encode_part(part: Part) -> bytes:
    """Write a part as one value: a line of JSON, and behind it the values, as long as that says."""
    head = [
        [one.key.decode(), len(one.value)]
        if isinstance(one, Put)
        else [one.key.decode(), None, None if one.end is None else one.end.decode()]
        for one in part
    ]
    values = b"".join(one.value for one in part if isinstance(one, Put))
    return json.dumps(head).encode() + b"\n" + values


def decode_part(value: bytes) -> list[Write]:
    """Read a part; raises `ValueError`."""
    head, _, rest = value.partition(b"\n")
    writes: list[Write] = []
    for key, length, *end in json.loads(head):
        if length is None:
            writes.append(Delete(key.encode(), end[0].encode() if end[0] is not None else None))
        else:
            writes.append(Put(key.encode(), rest[:length]))
            rest = rest[length:]
    return writes


def apply_part(part: Part, stored: MutableMapping[bytes, bytes]) -> None:
    """Do in memory what a part does in etcd."""
    for one in part:
        if isinstance(one, Put):
            stored[one.key] = one.value
        elif one.end is None:
            stored.pop(one.key, None)
        else:
            for key in [key for key in stored if one.key <= key < one.end]:
                del stored[key]


def _cut(writes: Sequence[Write], *, most: int, most_bytes: int) -> Iterator[list[Write]]:
    part: list[Write] = []
    room = most_bytes
    for one in writes:
        size = _size(one)
        if part and (len(part) == most or size > room):
            yield part
            part, room = [], most_bytes
        part.append(one)
        room -= size
    yield part


def _size(write: Write) -> int:
    return len(write.key) + (len(write.value) if isinstance(write, Put) else len(write.end or b""))
