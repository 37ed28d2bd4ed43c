from pathlib import Path

import pytest

from gpu_agent.cli.client.local import agent_failure, agent_options, request_agent
from gpu_agent.cli.command import Arguments, ExitCode, Failure
from gpu_agent.local.connection import NoAgentError, RefusedError
from gpu_agent.wire.control import JobsDocument, StatusDocument
from tests.cli.given import given
from tests.local.foreign_server import answering_with
from tests.node.control_harness import serving


def arguments(path: Path) -> Arguments:
    return given(agent_options(json_is="it"), "--socket", str(path))


def test_a_request_goes_to_the_socket_that_is_named(tmp_path: Path) -> None:
    with serving(tmp_path / "s") as served:
        status = request_agent(arguments(served.path), "status", StatusDocument)
        assert (status.model.node_id, status.document["node_id"]) == ("node-A", "node-A")
        assert request_agent(arguments(served.path), "job_start", JobsDocument, job_id="j").model.in_flight


def test_without_a_socket_it_is_looked_for_by_the_rule(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serving(tmp_path / "s") as served:
        monkeypatch.setenv("GPU_AGENT_SOCKET", str(served.path))
        assert request_agent(given(agent_options(json_is="it")), "status", StatusDocument).model.ready


def test_where_no_agent_answers_the_command_ends_with_5(tmp_path: Path) -> None:
    with pytest.raises(Failure, match="no agent answers at") as failed:
        request_agent(arguments(tmp_path / "s"), "status", StatusDocument)
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
def test_a_refusal_is_distinguished_from_no_answer(
    error: NoAgentError | RefusedError, code: ExitCode
) -> None:
    assert (str(agent_failure(error)), agent_failure(error).code) == (str(error), code)


def test_an_answer_that_lacks_something_is_of_another_version(tmp_path: Path) -> None:
    answer = b'{"ok": true, "answer": {"node_id": "n"}}\n'
    with (
        answering_with(tmp_path / "s", answer),
        pytest.raises(Failure, match=r"cannot read.*\(schema: Field required\).*another version"),
    ):
        request_agent(arguments(tmp_path / "s"), "status", StatusDocument)
