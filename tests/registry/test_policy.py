from gpu_agent.registry.policy import Policy


def test_nothing_is_allowed_that_was_not_asked_for() -> None:
    assert not Policy().allow_simulated
    assert not Policy().auth_off
