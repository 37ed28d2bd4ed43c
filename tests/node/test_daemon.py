import json
from pathlib import Path

import pytest

from gpu_agent.node.daemon import End, run
from gpu_agent.node.identity import hold
from gpu_agent.node.settings import AgentSettings


@pytest.mark.usefixtures("logging_restored")
def test_a_second_agent_on_one_state_directory_leaves_with_the_first_one_s_pid(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = AgentSettings(registry_url="ws://127.0.0.1:1/ws/node", state_dir=tmp_path)
    with hold(tmp_path):
        assert run(settings, lambda: settings) is End.UNUSABLE_STATE
    said = json.loads(capsys.readouterr().err.splitlines()[-1])
    assert said["event"] == "state_directory_unusable"
