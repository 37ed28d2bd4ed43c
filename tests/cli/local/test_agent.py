import argparse
from pathlib import Path

import pytest

from gpu_agent.cli.local.agent import JOBS, STATUS, add_local, asked, failure
from gpu_agent.cli.outcome import ExitCode, Failure
from gpu_agent.local.faults import NoAgentError, RefusedError
from tests.local.stranger import saying
from tests.node.an_agent import serving


def arguments(path: Path) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_local(parser, json_is="it")
    return parser.parse_args(["--socket", str(path)])


def test_an_agent_is_asked_at_the_socket_that_is_named(tmp_path: Path) -> None:
    with serving(tmp_path / "s") as served:
        assert asked(arguments(served.path), "status", shape=STATUS)["node_id"] == "node-A"
        assert asked(arguments(served.path), "job_start", shape=JOBS, job_id="j")["in_flight"]


def test_without_a_socket_it_is_looked_for_by_the_rule(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parser = argparse.ArgumentParser()
    add_local(parser, json_is="it")
    with serving(tmp_path / "s") as served:
        monkeypatch.setenv("GPU_AGENT_SOCKET", str(served.path))
        assert asked(parser.parse_args([]), "status", shape=STATUS)["ready"]


def test_where_no_agent_answers_the_command_ends_with_5(tmp_path: Path) -> None:
    with pytest.raises(Failure, match="no agent answers at") as failed:
        asked(arguments(tmp_path / "s"), "status", shape=STATUS)
    assert failed.value.code == ExitCode.UNREACHABLE


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (NoAgentError("away"), ExitCode.UNREACHABLE),
        (RefusedError("not you", code="forbidden"), ExitCode.REFUSED),
        (RefusedError("later", code="busy"), ExitCode.UNREACHABLE),
        (RefusedError("late", code="overdue"), ExitCode.UNREACHABLE),
    ],
)
def test_a_no_is_told_apart_from_no_answer(error: NoAgentError | RefusedError, code: ExitCode) -> None:
    assert (str(failure(error)), failure(error).code) == (str(error), code)


def test_an_answer_that_lacks_something_is_of_another_version(tmp_path: Path) -> None:
    answer = b'{"ok": true, "answer": {"node_id": "n"}}\n'
    with saying(tmp_path / "s", answer), pytest.raises(Failure, match="no connected as this command knows"):
        asked(arguments(tmp_path / "s"), "status", shape=STATUS)
