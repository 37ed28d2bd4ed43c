"""A trace id is one printable word, and lasts for its block and its task."""

import asyncio

import pytest

from gpu_agent.server.http_headers import is_trace_id
from gpu_agent.server.service import caused_by, current_trace_id


@pytest.mark.parametrize("text", ["a", "4bf92f3577b34da6a3ce929d0e0e4736", "req-7:eu/west", "x" * 128])
def test_a_printable_word_is_a_trace_id(text: str) -> None:
    assert is_trace_id(text)


@pytest.mark.parametrize("text", ["", "x" * 129, "a b", "a\nb", "a\0", "ä"])
def test_a_text_that_would_spoil_a_log_is_no_trace_id(text: str) -> None:
    assert not is_trace_id(text)
    with pytest.raises(ValueError, match="is no trace id"), caused_by(text):
        pass


def test_a_trace_lasts_for_its_block() -> None:
    assert current_trace_id() is None
    with caused_by("outer"):
        with caused_by("inner"):
            assert current_trace_id() == "inner"
        with caused_by(None):
            assert current_trace_id() is None
        assert current_trace_id() == "outer"
    assert current_trace_id() is None


async def test_concurrent_tasks_have_traces_of_their_own() -> None:
    async def asking(trace_id: str) -> str | None:
        with caused_by(trace_id):
            await asyncio.sleep(0)
            return current_trace_id()

    async with asyncio.TaskGroup() as group:
        asked = [group.create_task(asking(trace_id)) for trace_id in ("one", "two")]
    assert [task.result() for task in asked] == ["one", "two"]
