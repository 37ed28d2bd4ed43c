import signal

from gpu_agent.cli.hearing import heard


def test_a_signal_is_heard_for_as_long_as_the_block_lasts() -> None:
    before, told = signal.getsignal(signal.SIGTERM), list[int]()
    with heard([signal.SIGTERM], lambda number, _: told.append(number)):
        signal.raise_signal(signal.SIGTERM)
    assert told == [signal.SIGTERM]
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_signal_that_was_to_be_ignored_stays_so() -> None:
    before, told = signal.signal(signal.SIGHUP, signal.SIG_IGN), list[int]()
    try:
        with heard([signal.SIGHUP], lambda number, _: told.append(number)):
            signal.raise_signal(signal.SIGHUP)
        assert told == []
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)
