import os
import signal
import subprocess

import pytest

from gpu_agent.cli.signals import ENDING, FORWARDED, Interruption, SignalForwarder, handle_signals
from tests.waiting import patience


def test_a_signal_is_heard_for_as_long_as_the_block_lasts() -> None:
    before, received = signal.getsignal(signal.SIGTERM), list[int]()
    with handle_signals([signal.SIGTERM], lambda number, _: received.append(number)):
        signal.raise_signal(signal.SIGTERM)
    assert received == [signal.SIGTERM]
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_signal_that_was_to_be_ignored_stays_so() -> None:
    before, received = signal.signal(signal.SIGHUP, signal.SIG_IGN), list[int]()
    try:
        with handle_signals([signal.SIGHUP], lambda number, _: received.append(number)):
            signal.raise_signal(signal.SIGHUP)
        assert received == []
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


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


def test_a_signal_that_came_before_the_command_waits_for_it() -> None:
    with SignalForwarder() as handing:
        os.kill(os.getpid(), signal.SIGTERM)
        with subprocess.Popen(["sleep", "60"]) as command:
            handing.forward_to(command)
            assert command.wait(patience(10)) == -signal.SIGTERM


def test_signals_are_handed_on_while_the_command_runs() -> None:
    with SignalForwarder() as handing, subprocess.Popen(["sleep", "60"]) as command:
        handing.forward_to(command)
        os.kill(os.getpid(), signal.SIGHUP)
        assert command.wait(patience(10)) == -signal.SIGHUP


def test_what_was_heard_before_is_heard_again_afterwards() -> None:
    before = [signal.getsignal(number) for number in FORWARDED]
    with SignalForwarder():
        assert [signal.getsignal(number) for number in FORWARDED] != before
    assert [signal.getsignal(number) for number in FORWARDED] == before


@pytest.fixture
def _ignored() -> object:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.mark.usefixtures("_ignored")
def test_what_was_reported_to_be_ignored_stays_so() -> None:
    with SignalForwarder():
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
