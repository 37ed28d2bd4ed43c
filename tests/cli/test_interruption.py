import signal

import pytest

from gpu_agent.cli.interruption import ENDING, Interruption


@pytest.mark.parametrize("number", ENDING)
def test_each_ending_signal_interrupts_and_its_handler_is_put_back(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    with pytest.raises(KeyboardInterrupt), Interruption():
        signal.raise_signal(number)
    assert signal.getsignal(number) is before


def test_a_second_signal_does_not_break_what_the_first_began() -> None:
    steps: list[str] = []

    def interrupted() -> None:
        with Interruption():
            try:
                signal.raise_signal(signal.SIGINT)
            finally:
                signal.raise_signal(signal.SIGINT)
                signal.raise_signal(signal.SIGTERM)
                steps.append("cleaned")

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert steps == ["cleaned"]


def test_a_signal_waits_until_a_start_is_noted() -> None:
    steps: list[str] = []

    def interrupted() -> None:
        with Interruption() as interruption:
            with interruption.held():
                signal.raise_signal(signal.SIGTERM)
                steps.append("noted")
            steps.append("never")

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert steps == ["noted"]


def test_nothing_is_heard_once_everything_is_being_ended() -> None:
    with Interruption() as interruption:
        interruption.finish()
        signal.raise_signal(signal.SIGINT)


def test_a_signal_that_was_ignored_stays_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with Interruption():
            signal.raise_signal(signal.SIGHUP)
    finally:
        signal.signal(signal.SIGHUP, before)
