import pytest

from gpu_agent.session.backoff import Backoff


def _backoff(dice: float) -> Backoff:
    return Backoff(first_seconds=1, ceiling_seconds=60, draw=lambda: dice)


def test_delays_double_from_the_first_to_the_ceiling() -> None:
    backoff = _backoff(1.0)
    assert [backoff.next_delay() for _ in range(8)] == [1, 2, 4, 8, 16, 32, 60, 60]


def test_the_jitter_is_full_from_nothing_to_the_bound() -> None:
    assert _backoff(0.0).next_delay() == 0
    assert _backoff(0.25).next_delay() == 0.25


def test_what_a_peer_asked_for_is_the_least_and_the_jitter_spreads_above_it() -> None:
    assert _backoff(0.5).next_delay(at_least=30) == 30.5


def test_a_million_failures_overflow_nothing() -> None:
    backoff = _backoff(1.0)
    for _ in range(1_000_000):
        backoff.next_delay()
    assert backoff.next_delay() == 60


def test_a_reset_begins_anew() -> None:
    backoff = _backoff(1.0)
    backoff.next_delay()
    backoff.next_delay()
    backoff.reset()
    assert backoff.next_delay() == 1


@pytest.mark.parametrize(("dice", "delay"), [(0.0, 45), (0.5, 60), (1.0, 75)])
def test_at_the_ceiling_the_jitter_lies_around_it(dice: float, delay: float) -> None:
    assert _backoff(dice).delay_at_ceiling() == delay
    assert _backoff(dice).delay_at_ceiling(at_least=300) == 300
