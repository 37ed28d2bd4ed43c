from gpu_agent.cli.outcome import MEANINGS, ExitCode, Failure


def test_every_exit_code_is_explained() -> None:
    assert set(MEANINGS) == set(ExitCode)


def test_a_failure_carries_its_sentence_and_its_code() -> None:
    failure = Failure("no registry answers", code=ExitCode.UNREACHABLE)
    assert (str(failure), failure.code) == ("no registry answers", 5)
