from dataclasses import replace
from typing import Any

import pytest

from gpu_agent.cli.lines import plain
from gpu_agent.cli.local.status_changes import changes, standing
from gpu_agent.node.limits import Limit, Pause
from gpu_agent.node.public_pool import Standing
from gpu_agent.node.socket.jobs import Announced
from gpu_agent.node.socket.status import Moment, status
from gpu_agent.session.story import State
from gpu_agent.wire.inventory import GpuReport, Health, Outcome
from tests.node.an_agent import GPU, INVENTORY, READY, picture

LOST = replace(GPU, health=Health.LOST)
DEGRADED = READY.model_copy(update={"status": "degraded", "reason": "no usable GPU"})


def job(name: str) -> Announced:
    return Announced(name, 0, 1.5, pid=7, held_by="process", holder="process-7-1")


def answer(*jobs: str, now: float = 100.0, **more: object) -> dict[str, Any]:
    moment = Moment(monotonic=now, wall=5000.0 + now)
    return status(picture(**more), [job(one) for one in jobs], announced=True, started_at=1.0, moment=moment)


@pytest.mark.parametrize(
    ("after", "told"),
    [
        (answer(now=200.0), []),
        (answer(verdict=DEGRADED), ["node-A is degraded: no usable GPU"]),
        (
            answer(state=State.BACKING_OFF, last_refusal="connection refused"),
            ["node-A is not connected: connection refused"],
        ),
        (answer("b", "a"), ["job b has begun", "job a has begun"]),
        (
            answer(drain_reason="new fans", drain_until=200.0),
            ["node-A is ready: 3 healthy beats in a row; its owner drains it: new fans"],
        ),
        (
            answer(public_jobs=Standing(wanted=True, pauses=(Pause(Limit.SCHEDULE, "not now"),))),
            ["no public jobs: not now"],
        ),
        (answer(public_jobs=Standing(wanted=False)), ["no public jobs: accept_public_jobs is false"]),
        (
            answer(inventory=replace(INVENTORY, gpu=GpuReport(outcome=Outcome.OK, gpus=(LOST,)))),
            [
                "GPU 0: ok → lost",
                "Could not register: no GPU is usable; see its health above.",
            ],
        ),
        (answer(inventory=None), []),
    ],
)
def test_what_changed_is_told_and_what_only_ages_is_not(after: dict[str, Any], told: list[str]) -> None:
    assert [plain(one) for one in changes(answer(), after)] == told


def test_what_ended_is_told_too() -> None:
    paused = answer("a", public_jobs=Standing(wanted=False))
    assert [plain(one) for one in changes(paused, answer())] == ["job a is over", "public jobs are accepted"]


@pytest.mark.parametrize(
    ("now", "words"),
    [
        (answer(node_id=None, verdict=None), "no id yet is connected"),
        (answer(state=State.WAITING_GPU), "node-A is not connected"),
        (answer(state=State.DRAINED, drain_reason="x", drain_until=1.0), "node-A is drained: x"),
    ],
)
def test_how_it_stands_fits_into_a_line(now: dict[str, Any], words: str) -> None:
    assert plain(standing(now)) == words
