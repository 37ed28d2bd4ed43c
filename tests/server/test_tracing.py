import asyncio

import pytest

from gpu_agent.server.tracing import caused_by, current_trace_id, is_trace_id


@pytest.mark.parametrize("text", ["a", "4bf92f3577b34da6a3ce929d0e0e4736", "req-7:eu/west", "x" * 128])
def test_printable_words_name_traces(text: str) -> None:
    assert is_trace_id(text)


@pytest.mark.parametrize("text", ["", "x" * 129, "a b", "a\nb", "a\0", "ä"])
def test_what_would_upset_a_log_names_none(text: str) -> None:
    assert not is_trace_id(text)
    with pytest.raises(ValueError, match="names no trace"), caused_by(text):
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


async def test_tasks_side_by_side_have_traces_of_their_own() -> None:
    async def asking(trace_id: str) -> str | None:
        with caused_by(trace_id):
            await asyncio.sleep(0)
            return current_trace_id()

    async with asyncio.TaskGroup() as group:
        asked = [group.create_task(asking(trace_id)) for trace_id in ("one", "two")]
    assert [task.result() for task in asked] == ["one", "two"]
