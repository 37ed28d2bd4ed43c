import json
import signal
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from gpu_agent.cli.agent.status_watch import status_changes, summary_line
from gpu_agent.cli.output.text import plain_text
from gpu_agent.node.control.status import Instant
from gpu_agent.node.jobs import AnnouncedJob, of_process
from gpu_agent.node.public_jobs import Limit, Pause, PublicJobsState
from gpu_agent.session.types import State
from gpu_agent.wire.control import StatusDocument
from gpu_agent.wire.inventory import GpuReport, Health, Outcome
from tests.cli.terminal import OnTerminal
from tests.node.control_harness import (
    GPU,
    INVENTORY,
    READY,
    FakeAgent,
    jobs_in_flight,
    serving,
    snapshot,
    status_of,
)
from tests.programs import COMMAND, eventually
from tests.waiting import patience

DEGRADED = READY.model_copy(update={"status": "degraded", "reason": "no usable GPU"})


@contextmanager
def watching(*words: str) -> Iterator["subprocess.Popen[str]"]:
    """A watch whose output is read as it comes."""
    command = [*COMMAND, "status", "--watch", *words]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as watch:
        try:
            yield watch
        finally:
            watch.kill()


def until(watch: "subprocess.Popen[str]", words: str) -> str:
    """Read until a line has these words; fails with what it says where there is none."""
    assert watch.stdout is not None
    for said in watch.stdout:
        if words in said:
            return said
    raise AssertionError(watch.communicate())


def test_a_terminal_shows_each_change_and_is_restored(tmp_path: Path) -> None:
    agent = FakeAgent()
    with (
        serving(tmp_path / "s", agent=agent) as served,
        OnTerminal("status", "--watch", "--socket", str(served.path)) as watch,
    ):
        watch.await_words("Ctrl-C ends")
        agent.state = snapshot(registry_status=DEGRADED)
        watch.await_words("no usable GPU")
        watch.send(signal.SIGINT)
        assert watch.wait() == 0
        _, left = watch.shown.rsplit("\x1b[?1049l", 1)
    assert "no usable GPU" in left
    assert "Traceback" not in watch.shown


def test_an_agent_that_restarts_is_waited_for_on_the_terminal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # a long path would break the line that is waited for
    with serving(Path("s")):
        watch = OnTerminal("status", "--watch", "--socket", "s")
        watch.await_words("Ctrl-C ends")
    with watch:
        watch.await_words("the page is of")
        with serving(Path("s")):
            eventually(
                lambda: watch.shown.rfind("Ctrl-C ends") > watch.shown.rfind("the page is of") + 100,
                within_seconds=20,
                what="a page without that",
            )
            watch.send(signal.SIGTERM)
            assert watch.wait() == 0


def test_a_pipe_gets_the_page_then_a_line_for_each_change(tmp_path: Path) -> None:
    agent = FakeAgent()
    with serving(tmp_path / "s", agent=agent) as served, watching("--socket", str(served.path)) as watch:
        until(watch, "No models")
        agent.state = snapshot(registry_status=DEGRADED)
        assert until(watch, "degraded").rstrip().endswith("  node-A is degraded: no usable GPU")
        agent.state = snapshot(state=State.BACKING_OFF, last_refusal="connection refused")
        assert until(watch, "not connected").rstrip().endswith("node-A is not connected: connection refused")
        watch.send_signal(signal.SIGINT)
        assert watch.wait(patience(20)) == 0


def test_json_is_a_document_on_a_line_for_each_change(tmp_path: Path) -> None:
    agent = FakeAgent()
    with (
        serving(tmp_path / "s", agent=agent) as served,
        watching("--json", "--socket", str(served.path)) as watch,
    ):
        assert json.loads(until(watch, "{"))["ready"] is True
        agent.state = snapshot(registry_status=DEGRADED)
        assert json.loads(until(watch, "{"))["ready"] is False


def test_a_pipe_reports_once_that_the_agent_is_gone_and_once_that_it_is_back(tmp_path: Path) -> None:
    there = ExitStack()
    served = there.enter_context(serving(tmp_path / "s"))
    with there, watching("--socket", str(served.path)) as watch:
        assert watch.stderr is not None
        until(watch, "No models")
        there.close()
        assert watch.stderr.readline() == f"gpu-agent: no agent answers at {tmp_path / 's'}; waiting for it\n"
        with serving(tmp_path / "s"):
            assert watch.stderr.readline() == "gpu-agent: the agent answers again\n"
            watch.send_signal(signal.SIGINT)
            assert watch.wait(patience(20)) == 0


def test_without_an_agent_there_is_nothing_to_watch(tmp_path: Path) -> None:
    with OnTerminal("status", "--watch", "--socket", str(tmp_path / "s")) as watch:
        assert watch.wait() == 5
    assert "no agent answers" in watch.shown
    assert "\x1b[?1049h" not in watch.shown


LOST = replace(GPU, health=Health.LOST)


def answer(*jobs: str, now: float = 100.0, **more: object) -> StatusDocument:
    announced = jobs_in_flight(*(AnnouncedJob(name, of_process(7, 1), 0, 1.5) for name in jobs))
    instant = Instant(monotonic=now, wall=5000.0 + now)
    return StatusDocument.model_validate(status_of(announced, started_at=1.0, instant=instant, **more))


@pytest.mark.parametrize(
    ("after", "changes"),
    [
        (answer(now=200.0), []),
        (answer(registry_status=DEGRADED), ["node-A is degraded: no usable GPU"]),
        (
            answer(state=State.BACKING_OFF, last_refusal="connection refused"),
            ["node-A is not connected: connection refused"],
        ),
        (answer("b", "a"), ["job b has begun", "job a has begun"]),
        (
            answer(drain_reason="new fans", drain_until=200.0),
            ["node-A is ready: 3 healthy heartbeats in a row; its owner drains it: new fans"],
        ),
        (
            answer(public_jobs=PublicJobsState(wanted=True, pauses=(Pause(Limit.SCHEDULE, "not now"),))),
            ["no public jobs: not now"],
        ),
        (answer(public_jobs=PublicJobsState(wanted=False)), ["no public jobs: accept_public_jobs is false"]),
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
def test_what_changed_is_a_line_and_what_only_ages_is_not(after: StatusDocument, changes: list[str]) -> None:
    assert [plain_text(one) for one in status_changes(answer(), after)] == changes


def test_what_ended_is_a_line_too() -> None:
    paused = answer("a", public_jobs=PublicJobsState(wanted=False))
    assert [plain_text(one) for one in status_changes(paused, answer())] == [
        "job a is over",
        "public jobs are accepted",
    ]


@pytest.mark.parametrize(
    ("now", "words"),
    [
        (answer(node_id=None, registry_status=None), "no id yet is connected"),
        (answer(state=State.WAITING_GPU), "node-A is not connected"),
        (answer(state=State.DRAINED, drain_reason="x", drain_until=1.0), "node-A is drained: x"),
    ],
)
def test_the_state_fits_into_a_line(now: StatusDocument, words: str) -> None:
    assert plain_text(summary_line(now)) == words
