"""A conversation with one child: what is heard late, twice or never."""

import asyncio
import subprocess
import sys

from gpu_agent.probe.nvml.conversation import Conversation
from gpu_agent.probe.nvml.process import start


def talk(code: str, told: list[bytes] | None = None) -> tuple[Conversation, list[int]]:
    ends: list[int] = []
    process: subprocess.Popen[bytes] = start((sys.executable, "-c", code), env=None)
    loop = asyncio.get_running_loop()
    heard: list[bytes] = [] if told is None else told
    return Conversation(process, loop, lambda _, status: ends.append(status), told=heard.append), ends


async def test_an_answer_to_an_older_ask_does_not_pay_a_newer_one() -> None:
    conversation, _ = talk(
        "import sys\n"
        "first = sys.stdin.readline(); second = sys.stdin.readline()\n"
        'print(\'{"id": 1, "outcome": "no_driver"}\'); print(\'{"id": 2, "outcome": "ok"}\', flush=True)\n'
        "sys.stdin.readline()\n"
    )
    older = conversation.ask(fresh=False)
    newer = conversation.ask(fresh=False)
    heard = await asyncio.wait_for(newer, 20)
    assert heard is not None
    assert heard.outcome == "ok"
    assert not older.done()
    conversation.leave()
    assert await conversation.gone_within(20)


async def test_an_end_pays_what_is_owed_with_nothing_and_is_told_once() -> None:
    conversation, ends = talk("import sys; sys.stdin.readline(); sys.exit(7)")
    assert await asyncio.wait_for(conversation.ask(fresh=False), 20) is None
    assert await conversation.gone_within(20)
    assert ends == [7]
    assert await conversation.ask(fresh=False) is None


async def test_a_child_that_does_not_end_in_time_is_not_gone() -> None:
    conversation, _ = talk("import sys; sys.stdin.read()")
    assert not await conversation.gone_within(0.01)
    conversation.leave()
    assert await conversation.gone_within(20)


async def test_what_is_told_before_an_end_is_passed_on_though_the_answer_never_comes() -> None:
    told: list[bytes] = []
    conversation, _ = talk(
        "import sys; sys.stdin.readline(); print('{\"heard\": {}}', flush=True); sys.exit(7)", told
    )
    assert await asyncio.wait_for(conversation.ask(fresh=False), 20) is None
    assert told == [b'{"heard": {}}\n']
