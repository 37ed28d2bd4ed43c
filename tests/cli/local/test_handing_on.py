import os
import signal
import subprocess

import pytest

from gpu_agent.cli.local.handing_on import HANDED_ON, HandingOn


def test_a_signal_that_came_before_the_command_waits_for_it() -> None:
    with HandingOn() as handing:
        os.kill(os.getpid(), signal.SIGTERM)
        with subprocess.Popen(["sleep", "60"]) as command:
            handing.to(command)
            assert command.wait(10) == -signal.SIGTERM


def test_signals_are_handed_on_while_the_command_runs() -> None:
    with HandingOn() as handing, subprocess.Popen(["sleep", "60"]) as command:
        handing.to(command)
        os.kill(os.getpid(), signal.SIGHUP)
        assert command.wait(10) == -signal.SIGHUP


def test_what_was_heard_before_is_heard_again_afterwards() -> None:
    before = [signal.getsignal(number) for number in HANDED_ON]
    with HandingOn():
        assert [signal.getsignal(number) for number in HANDED_ON] != before
    assert [signal.getsignal(number) for number in HANDED_ON] == before


@pytest.fixture
def _ignored() -> object:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.mark.usefixtures("_ignored")
def test_what_was_told_to_be_ignored_stays_so() -> None:
    with HandingOn():
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
