import asyncio
import json

from gpu_agent.registry.dispatch.verdict import Excluded, Exclusion, Explanation
from gpu_agent.server.explanation_json import NODES_IN_A_PIECE, written
from gpu_agent.server.operator.models import ExplanationAnswer


def excluded(count: int) -> tuple[Excluded, ...]:
    reason = Exclusion.MODEL_NOT_AVAILABLE
    return tuple(Excluded(f"node-{n}", reason, 'model "m"', "not installed") for n in range(count))


async def text_of(explanation: Explanation) -> bytes:
    return b"".join([piece async for piece in written(explanation)])


async def test_an_explanation_reads_as_the_api_says() -> None:
    explanation = Explanation('job "1"', ("node-a", "node-b"), excluded(2))
    answer = ExplanationAnswer.model_validate_json(await text_of(explanation))
    assert (answer.job_id, answer.able) == ('job "1"', ("node-a", "node-b"))
    assert [(one.node_id, one.reason, one.need) for one in answer.excluded] == [
        ("node-0", "model_not_available", 'model "m"'),
        ("node-1", "model_not_available", 'model "m"'),
    ]
    assert answer.counts == {"model_not_available": 2}


async def test_an_explanation_of_nobody_is_one_too() -> None:
    assert json.loads(await text_of(Explanation("job-1", (), ()))) == {
        "job_id": "job-1",
        "able": [],
        "excluded": [],
        "counts": {},
    }


async def test_others_have_their_turn_between_the_pieces_of_a_long_one() -> None:
    count = 3 * NODES_IN_A_PIECE + 1
    explanation = Explanation("job-1", tuple(f"node-{n}" for n in range(count)), excluded(count))
    turns = 0

    async def other() -> None:
        nonlocal turns
        while True:
            await asyncio.sleep(0)
            turns += 1

    async with asyncio.TaskGroup() as group:
        counting = group.create_task(other())
        answer = json.loads(await text_of(explanation))
        counting.cancel()
    assert (len(answer["able"]), len(answer["excluded"])) == (count, count)
    assert turns >= 6
