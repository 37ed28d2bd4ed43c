from hypothesis import given
from hypothesis import strategies as st

from gpu_agent.server.allowance import Allowance, Rate


def allowed(*, per_second: float, at_once: float) -> Allowance:
    return Allowance(Rate.of(per_second=per_second, at_once=at_once))


def test_so_much_at_once_and_no_more() -> None:
    allowance = allowed(per_second=8, at_once=3)
    assert [allowance.spend(100.0) for _ in range(4)] == [True, True, True, False]


def test_it_fills_up_again_with_time_and_never_beyond_what_is_allowed_at_once() -> None:
    allowance = allowed(per_second=8, at_once=3)
    for _ in range(3):
        allowance.spend(100.0)
    assert not allowance.spend(100.0625)
    assert allowance.spend(100.125)
    assert not allowance.spend(100.125)
    assert [allowance.spend(10_000.0) for _ in range(4)] == [True, True, True, False]


def test_what_is_refused_costs_nothing() -> None:
    allowance = allowed(per_second=1, at_once=4)
    assert not allowance.spend(0.0, 5)
    assert allowance.spend(0.0, 4)


def test_it_says_when_there_is_enough_again() -> None:
    allowance = allowed(per_second=2, at_once=1)
    assert allowance.refills_in(50.0) == 0.0
    allowance.spend(50.0)
    assert allowance.refills_in(50.0) == 0.5
    assert allowance.spend(50.0 + allowance.refills_in(50.0))


def test_what_is_paid_ahead_is_among_what_is_allowed_at_once() -> None:
    rate = Rate.of(per_second=1, at_once=20, ahead=4)
    had, paid_until, left = 0, 0.0, rate.ahead
    while (paid := rate.paid(paid_until, 100.0, 1 - left)) is not None:
        had, (paid_until, left) = had + 1, paid
    assert had == 20


@given(st.lists(st.tuples(st.floats(0, 3), st.integers(1, 5)), min_size=50, max_size=200))
def test_paying_ahead_never_allows_more_than_paying_one_by_one(asked: list[tuple[float, int]]) -> None:
    rate, exact = Rate.of(per_second=2, at_once=12, ahead=4), allowed(per_second=2, at_once=12)
    now, paid_until, left = 100.0, 0.0, rate.ahead
    for waits, count in asked:
        now += waits
        paid = rate.paid(paid_until, now, count - left)
        if paid is not None:
            paid_until, left = paid
            assert exact.spend(now + 1e-6, count)
