from dataclasses import replace
from typing import Any

import pytest

from gpu_agent.cli.bars import PLAIN, RICH
from gpu_agent.cli.lines import plain, width
from gpu_agent.cli.local.status_page import status_page
from gpu_agent.node.socket.jobs import Announced
from gpu_agent.node.socket.status import Moment, status
from gpu_agent.session.story import State
from gpu_agent.wire.inventory import GpuReport, Outcome
from gpu_agent.wire.messages import Check, NodeStatusMessage, StatusDetails
from tests.node.an_agent import INVENTORY, READY, picture

NOW = 1_700_000_000.0
JOB = Announced("job-1", 2345678, NOW - 60, pid=4711, held_by="process", holder="process-4711-1")
FAILS = StatusDetails(
    checks=(
        Check(name="gpu", ok=False, detail="no GPU is usable"),
        Check(name="models", ok=True, detail="fine"),
    ),
    clears_when="a GPU is usable again",
)
DEGRADED = NodeStatusMessage(
    node_id="node-A", status="degraded", reason="no usable GPU", reason_code="gpu_unavailable", details=FAILS
)
UNHEARD = "The agent runs, and the registry does not hear it:"


def answer(jobs: tuple[Announced, ...] = (), **more: object) -> dict[str, Any]:
    moment = Moment(monotonic=100.0, wall=NOW)
    return status(picture(**more), jobs, announced=True, started_at=NOW - 9, moment=moment)


def page(columns: int | None = None, **more: Any) -> list[str]:  # noqa: ANN401 - parts of a picture
    return [plain(one) for one in status_page(answer(**more), columns, PLAIN, now=NOW)]


def test_the_registrys_word_stands_first_with_its_reason() -> None:
    assert page()[:2] == ["node-A  ready  (health_checks_passed)", "3 healthy beats in a row"]


def test_a_degraded_machine_says_what_would_change_it_and_which_check_fails() -> None:
    said = page(verdict=DEGRADED)
    assert said[:3] == [
        "node-A  degraded  (gpu_unavailable)",
        "no usable GPU",
        "Changes when: a GPU is usable again",
    ]
    checks = said.index("CHECK  DETAIL")
    assert said[checks + 1 : checks + 3] == ["gpu    no GPU is usable", ""]


@pytest.mark.parametrize(
    ("stands", "head"),
    [
        (
            {"state": State.BACKING_OFF, "last_refusal": "connection refused", "verdict": DEGRADED},
            [
                "node-A  not connected",
                f"{UNHEARD} it waits to try again: connection refused.",
            ],
        ),
        (
            {"state": State.YIELDED},
            [
                "node-A  not connected",
                f"{UNHEARD} a newer session has its id. `gpu-agent resume` has it try again.",
            ],
        ),
        (
            {"state": State.DRAINED, "drain_reason": "new fans", "drain_until": 1.0},
            [
                "node-A  drained",
                "Emptied, as its owner asked: new fans. `gpu-agent resume` takes it back.",
            ],
        ),
        (
            {"verdict": None, "node_id": None},
            ["no id yet  connected", "The registry has not said yet how it judges this node."],
        ),
    ],
    ids=["away", "yielded", "drained", "fresh"],
)
def test_every_standing_has_its_headline(stands: dict[str, Any], head: list[str]) -> None:
    said = page(**stands)
    assert said[:2] == head
    assert not any(one.startswith("CHECK") for one in said)


def test_jobs_gpus_and_models_have_their_tables() -> None:
    said = "\n".join(page(jobs=(JOB,)))
    assert "\njob-1  " in said
    assert "process 4711\n" in said
    assert "\n0    L4    ok      1/24 GiB" in said
    assert "\nNo models: none found in the caches, none declared" in said


def test_a_machine_that_has_no_gpu_or_only_pretends_says_so() -> None:
    no_driver = replace(INVENTORY, gpu=GpuReport(outcome=Outcome.NO_DRIVER, detail="no driver: install it"))
    assert "no driver: install it" in page(inventory=no_driver)
    none = replace(INVENTORY, gpu=GpuReport(outcome=Outcome.OK))
    assert "No GPU was found." in page(inventory=none)
    assert "SIMULATED: these GPUs do not exist" in page(inventory=replace(INVENTORY, simulated=True))


def test_before_the_first_probe_there_is_a_page_too() -> None:
    said = page(inventory=None)
    assert said[-1].endswith("none has ended yet")


@pytest.mark.parametrize("columns", [40, 60, 80, 120])
def test_it_fits_the_terminal(columns: int) -> None:
    whole = answer(jobs=(JOB,), verdict=DEGRADED, drain_reason="new fans", drain_until=200.0)
    assert all(width(one) <= columns for one in status_page(whole, columns, RICH, now=NOW))


def test_no_word_of_the_registry_steers_the_terminal() -> None:
    evil = READY.model_copy(update={"reason": "\x1b[2J", "reason_code": "\x1b"})
    assert not any("\x1b" in one for one in page(verdict=evil))
