import time

import pytest

from gpu_agent.server.lag import INTERVAL_SECONDS, LagSampler, unanswered
from tests.server.harness import until


def test_a_stall_counts_once_for_every_question_that_went_unanswered_in_it() -> None:
    assert unanswered(0.0) == [0.0]
    assert unanswered(0.015) == [0.015]
    assert unanswered(0.05) == pytest.approx([0.05, 0.03, 0.01])
    assert len(unanswered(1.0)) == pytest.approx(1.0 / INTERVAL_SECONDS, abs=1)


def test_a_night_asleep_is_not_made_up_for_question_by_question() -> None:
    assert len(unanswered(40_000.0)) < 1000
    assert unanswered(40_000.0)[0] == 40_000.0


async def test_a_loop_that_stands_still_is_seen_to_be_late() -> None:
    late: list[float] = []
    sampler = LagSampler(late.append, monotonic=time.monotonic)
    sampler.start()
    await until(lambda: len(late) >= 2, what="a quiet loop sampled")
    late.clear()
    time.sleep(0.2)  # noqa: ASYNC251 - the stall itself
    await until(lambda: late, what="the stall noted")
    assert max(late) > 0.15
    assert len(late) >= 0.15 / INTERVAL_SECONDS
    sampler.stop()


async def test_stopped_it_asks_no_more() -> None:
    late: list[float] = []
    sampler = LagSampler(late.append, monotonic=time.monotonic)
    sampler.stop()
    sampler.start()
    await until(lambda: late, what="a first sample")
    sampler.stop()
    known = len(late)
    other = LagSampler(late.append, monotonic=time.monotonic)
    other.start()
    await until(lambda: len(late) > known, what="a sampler that still runs")
    other.stop()
    assert len(late) == known + 1
