import pytest

from gpu_agent.cli.asking.sse import Message, messages


@pytest.mark.parametrize(
    ("written", "read"),
    [
        (b"id: 7\nevent: x\ndata: {}\n\n", [Message("7", "{}")]),
        (b"data:a\ndata: b\n\n", [Message(None, "a\nb")]),
        (b": keeps the connection\n\n", [Message(None, "")]),
        (b"id: 9\n\n", [Message("9", "")]),
        (b"id\ndata: x\r\n\r\n", [Message("", "x")]),
        (b"retry: 500\nunknown: x\n\ndata: y\n\n", [Message(None, ""), Message(None, "y")]),
        (b"id: a\0b\ndata: z\n\n", [Message(None, "z")]),
        (b"data: cut off", []),
        (b"", []),
    ],
)
def test_blocks_are_read_as_the_standard_has_them(written: bytes, read: list[Message]) -> None:
    assert list(messages(written.splitlines(keepends=True))) == read
