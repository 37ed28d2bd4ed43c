import threading

import pytest

from gpu_agent.probe.models.shelf import Shelf
from gpu_agent.probe.models.walk import Walk
from tests.probe.models.held_source import HeldSource
from tests.programs import eventually

PATIENT_SECONDS = 20.0
SHORT_SECONDS = 0.05


def shelves(count: int) -> list[Shelf]:
    return [Shelf(HeldSource(f"/{number}")) for number in range(count)]


def test_each_shelf_is_visited_in_order_and_hears_how_many_come_after() -> None:
    way = shelves(3)
    visited: list[tuple[Shelf, int]] = []

    def visit(shelf: Shelf, others: int) -> bool:
        visited.append((shelf, others))
        return False

    assert Walk(way, visit).got_on(PATIENT_SECONDS)
    assert visited == [(way[0], 2), (way[1], 1), (way[2], 0)]


def test_one_that_wants_more_is_visited_again_when_all_others_were() -> None:
    one, two = way = shelves(2)
    visited: list[Shelf] = []

    def visit(shelf: Shelf, _: int) -> bool:
        visited.append(shelf)
        return shelf is one and visited.count(one) < 3

    assert Walk(way, visit).got_on(PATIENT_SECONDS)
    assert visited == [one, two, one, one]


def test_one_that_hangs_is_left_behind_and_another_goes_the_rest_of_the_way() -> None:
    one, two, three = way = shelves(3)
    release = threading.Event()
    visited: list[Shelf] = []

    def visit(shelf: Shelf, _: int) -> bool:
        if shelf is two:
            release.wait(PATIENT_SECONDS)
        visited.append(shelf)
        return False

    walk = Walk(way, visit)
    assert not walk.got_on(SHORT_SECONDS)
    assert walk.leave() == (three,)
    assert Walk([three], visit).got_on(PATIENT_SECONDS)
    release.set()
    assert walk.ended.wait(PATIENT_SECONDS)
    assert visited == [one, three, two], "whoever was left behind goes no further"


def test_one_that_gets_on_slowly_is_waited_for() -> None:
    (shelf,) = shelves(1)
    ticks = threading.Event()

    def visit(shelf: Shelf, _: int) -> bool:
        for _ in range(4):
            ticks.wait(0.5)  # nobody sets it
            shelf.heard_at += 0.5
        return False

    assert Walk([shelf], visit).got_on(1.5)


def test_a_walk_that_breaks_off_is_told_by_its_thread_and_never_passes_for_whole(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    told: list[type[BaseException]] = []
    monkeypatch.setattr(threading, "excepthook", lambda ended: told.append(ended.exc_type))

    def visit(_: Shelf, __: int) -> bool:
        raise ZeroDivisionError

    walk = Walk(shelves(1), visit)
    with pytest.raises(RuntimeError, match="broke off"):
        walk.got_on(PATIENT_SECONDS)
    eventually(lambda: told == [ZeroDivisionError], within_seconds=PATIENT_SECONDS, what="its end told")
