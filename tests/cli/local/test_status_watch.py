import json
import signal
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from gpu_agent.cli.lines import line, plain
from gpu_agent.cli.local.status_watch import fitted
from gpu_agent.session.story import State
from tests.cli.a_terminal import OnTerminal
from tests.node.an_agent import READY, AnAgent, picture, serving
from tests.programs import COMMAND, eventually

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


def test_a_terminal_shows_each_change_and_is_given_back_whole(tmp_path: Path) -> None:
    agent = AnAgent()
    with (
        serving(tmp_path / "s", agent=agent) as served,
        OnTerminal("status", "--watch", "--socket", str(served.path)) as watch,
    ):
        watch.await_words("Ctrl-C ends")
        agent.stands = picture(verdict=DEGRADED)
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
    agent = AnAgent()
    with serving(tmp_path / "s", agent=agent) as served, watching("--socket", str(served.path)) as watch:
        until(watch, "No models")
        agent.stands = picture(verdict=DEGRADED)
        assert until(watch, "degraded").rstrip().endswith("  node-A is degraded: no usable GPU")
        agent.stands = picture(state=State.BACKING_OFF, last_refusal="connection refused")
        assert until(watch, "not connected").rstrip().endswith("node-A is not connected: connection refused")
        watch.send_signal(signal.SIGINT)
        assert watch.wait(20) == 0


def test_json_is_a_document_on_a_line_for_each_change(tmp_path: Path) -> None:
    agent = AnAgent()
    with (
        serving(tmp_path / "s", agent=agent) as served,
        watching("--json", "--socket", str(served.path)) as watch,
    ):
        assert json.loads(until(watch, "{"))["ready"] is True
        agent.stands = picture(verdict=DEGRADED)
        assert json.loads(until(watch, "{"))["ready"] is False


def test_a_pipe_is_told_once_that_the_agent_is_gone_and_once_that_it_is_back(tmp_path: Path) -> None:
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
            assert watch.wait(20) == 0


def test_without_an_agent_there_is_nothing_to_watch(tmp_path: Path) -> None:
    with OnTerminal("status", "--watch", "--socket", str(tmp_path / "s")) as watch:
        assert watch.wait() == 5
    assert "no agent answers" in watch.shown
    assert "\x1b[?1049h" not in watch.shown


@pytest.mark.parametrize(
    ("lines", "shown"),
    [(3, ["1", "2", "3"]), (2, ["1", "(2 lines: no room here)"]), (0, ["1", "(2 lines: no room here)"])],
)
def test_what_there_is_no_room_for_is_counted(lines: int, shown: list[str]) -> None:
    assert [plain(one) for one in fitted([line("1"), line("2"), line("3")], lines)] == shown
