"""The doctor's look at an agent that runs, or should."""

import socket
from pathlib import Path

from gpu_agent.cli.agent.doctor_service import agent_checks, running_agent
from gpu_agent.runtime.check_results import CheckResult, CheckStatus
from gpu_agent.session.types import State
from gpu_agent.wire.control import StatusDocument
from tests.node.control_harness import jobs_in_flight, status_of


def test_an_agent_that_does_not_answer_fails_where_its_service_runs(tmp_path: Path) -> None:
    path = tmp_path / "agent.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))  # and accepts nothing
        alone = running_agent(path)
        served = running_agent(path, service_runs=True)
    assert isinstance(alone, CheckResult)
    assert isinstance(served, CheckResult)
    assert alone.verdict is CheckStatus.SKIPPED
    assert served.verdict is CheckStatus.FAIL
    assert "systemctl restart gpu-agent" in (served.fix or "")


def test_an_agent_without_a_readable_join_token_fails_with_where_to_put_it() -> None:
    problem = "no join token was sent: /etc/gpu-agent/join-token: Permission denied. Put the token there"
    answer = StatusDocument.model_validate(
        status_of(jobs_in_flight(), state=State.BACKING_OFF, token_problem=problem)
    )
    (result,) = agent_checks(answer)
    assert result.verdict is CheckStatus.FAIL
    assert result.detail.endswith(": no join token was sent: /etc/gpu-agent/join-token: Permission denied")
    assert result.fix == "Put the token there"
