"""Twenty real agents, and a registry that is killed under them."""

import signal
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.programs import Agent, Registry
from tests.waiting import patience

pytestmark = pytest.mark.e2e

AGENTS = 20


@pytest.mark.timeout(180)
def test_after_kill_9_of_the_registry_all_agents_are_ready_again_with_their_ids(tmp_path: Path) -> None:
    with ExitStack() as running:
        first = running.enter_context(Registry("--allow-simulated"))
        for number in range(AGENTS):
            running.enter_context(Agent(first.node_url, tmp_path / str(number), simulate="1xT4-16GB"))
        before = {node["node_id"] for node in first.await_ready(AGENTS, within_seconds=60)}
        assert len(before) == AGENTS

        first.send(signal.SIGKILL)
        first.wait(patience(5))
        second = running.enter_context(
            Registry("--allow-simulated", node_port=first.node_port, operator_port=first.operator_port)
        )
        after = {node["node_id"] for node in second.await_ready(AGENTS, within_seconds=20)}
        assert after == before
