from gpu_agent.node.reloading import AT_ONCE
from gpu_agent.node.settings import AgentSettings
from gpu_agent.runtime.reloading import reloaded

RUNNING = AgentSettings(registry_url="ws://10.0.0.1/ws/node")


def test_only_settings_that_there_are_can_be_taken_over() -> None:
    assert set(AgentSettings.model_fields) >= AT_ONCE


def test_who_the_agent_is_and_whom_it_calls_waits_for_a_restart() -> None:
    fixed = {"registry_url": "ws://10.0.0.2/ws/node", "simulate": "1xGB10", "state_dir": "/elsewhere"}
    read = RUNNING.model_copy(update={**fixed, "endpoint": "10.0.0.7:9000"})
    told = reloaded(RUNNING, read, at_once=AT_ONCE)
    assert (told.changed, set(told.waiting)) == (("endpoint",), set(fixed))
