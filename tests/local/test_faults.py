from gpu_agent.local.faults import LocalError, NoAgentError, RefusedError


def test_both_faults_are_told_apart_and_caught_together() -> None:
    assert issubclass(NoAgentError, LocalError)
    refused = RefusedError("not you", code="forbidden")
    assert isinstance(refused, LocalError)
    assert (str(refused), refused.code, refused.not_now) == ("not you", "forbidden", False)
    assert RefusedError("later", code="busy").not_now
