"""The doctor's look at an agent that runs, or should."""

import socket
from pathlib import Path

from gpu_agent.cli.agent.doctor_service import running_agent
from gpu_agent.runtime.check_results import CheckResult, CheckStatus


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
