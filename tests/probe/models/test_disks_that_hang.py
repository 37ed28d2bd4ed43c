""""""

import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from gpu_agent.probe.models.declared import Declaration
from gpu_agent.probe.models.directory import ModelFolders
from gpu_agent.probe.models.scanner import (
    DETAIL,
    DISK_SILENT,
    DiskPatience,
    ModelScanner,
    Scan,
    ScanThread,
    SourceState,
)
from gpu_agent.wire.inventory import ModelStatus
from tests.hung_disk import hung
from tests.probe.models.stuck_source import Clock, CostlySource, HeldSource
from tests.programs import eventually

HASTY = DiskPatience(wait_seconds=0.5, silent_after_seconds=0.0, stale_after_seconds=0.0)
"""Everything that is to come of a disk that hangs, at once."""
LENIENT = DiskPatience(wait_seconds=0.5, silent_after_seconds=30.0, stale_after_seconds=30.0)


def statuses(scan: Scan) -> dict[str, ModelStatus]:
    return {model.model_id: model.status for model in scan.models}


def become(true: Callable[[], bool]) -> bool:
    """Whether it is true, now or soon."""
    pause = threading.Event()
    return any(true() or pause.wait(0.005) for _ in range(2000))


def settled(catalogue: ModelScanner) -> bool:
    """Whether nobody is left behind any more, now or soon."""
    return become(lambda: not any(shelf.out for shelf in catalogue.shelves))


def test_a_disk_that_hangs_takes_its_own_models_along_and_no_others() -> None:
    one, two, three = (HeldSource(f"/{name}", name) for name in "abc")
    catalogue = ModelScanner([one, two, three], [Declaration(model_id="stated", version="1")], patience=HASTY)
    before = catalogue.scan()
    two.hold()
    three.models = ("c", "new")
    scan = catalogue.scan()
    two.release.set()
    assert settled(catalogue)
    after = catalogue.scan()
    ready = dict.fromkeys(("stated", "a", "b", "c"), ModelStatus.READY)
    assert statuses(before) == ready
    assert statuses(scan) == {**ready, "b": ModelStatus.ERROR, "new": ModelStatus.READY}
    assert {model.detail for model in scan.models if model.status is ModelStatus.ERROR} == {DETAIL}
    assert (scan.problems, scan.complete) == ({"/b": DISK_SILENT}, True), (
        "it is told of, and the rest was reached"
    )
    assert scan.roomless == {"b": "no answer"}
    assert statuses(after) == {**ready, "new": ModelStatus.READY}
    assert (after.problems, after.complete) == ({}, True)


def test_until_its_silence_has_lasted_its_models_stand_and_nothing_is_said() -> None:
    source = HeldSource("/a", "a")
    catalogue = ModelScanner([source], patience=LENIENT)
    catalogue.scan()
    source.hold()
    scan = catalogue.scan()
    source.release.set()
    assert (statuses(scan), scan.problems) == ({"a": ModelStatus.READY}, {})
    assert not scan.complete


def test_a_model_that_another_disk_holds_too_is_ready_by_that_one() -> None:
    one, two = HeldSource("/a", "both"), HeldSource("/b", "both")
    catalogue = ModelScanner([one, two], patience=HASTY)
    catalogue.scan()
    one.hold()
    scan = catalogue.scan()
    one.release.set()
    assert statuses(scan) == {"both": ModelStatus.READY}


def test_each_disk_that_hangs_keeps_one_thread_and_is_asked_once() -> None:
    held = [HeldSource(f"/held-{number}") for number in range(4)]
    well = HeldSource("/well", "well")
    catalogue = ModelScanner([well, *held], patience=HASTY)
    before = set(threading.enumerate())
    for source in held:
        source.hold()
    for _ in range(5):
        assert statuses(catalogue.scan()) == {"well": ModelStatus.READY}
    assert become(lambda: len(set(threading.enumerate()) - before) == len(held))
    assert {source.looks for source in held} == {1}
    assert well.looks == 5
    for source in held:
        source.release.set()
    assert settled(catalogue)


def test_time_that_is_lost_on_a_disk_that_hangs_is_not_taken_from_the_others() -> None:
    held, well = HeldSource("/held"), HeldSource("/well", *map(str, range(100)))
    held.hold()
    catalogue = ModelScanner([held, well], patience=DiskPatience(wait_seconds=0.3))
    assert len(catalogue.scan(0.25).models) > 1
    held.release.set()


def test_whoever_looks_once_waits_in_the_end_for_a_slow_disk() -> None:
    slow = HeldSource("/slow", "slow")
    slow.hold()
    waker = threading.Timer(0.5, slow.release.set)
    waker.start()
    catalogue = ModelScanner([slow], patience=DiskPatience(wait_seconds=0.05))
    scan = catalogue.scan(answers_within_seconds=20)
    waker.join()
    assert (statuses(scan), scan.complete, scan.problems) == ({"slow": ModelStatus.READY}, True, {})


def test_whoever_looks_once_is_told_which_place_did_not_answer_in_time() -> None:
    held, well = HeldSource("/held"), HeldSource("/well", "well")
    held.hold()
    catalogue = ModelScanner([held, well], patience=DiskPatience(wait_seconds=0.05))
    scan = catalogue.scan(answers_within_seconds=0.2)
    held.release.set()
    assert (statuses(scan), scan.problems) == ({"well": ModelStatus.READY}, {"/held": DISK_SILENT})


def test_a_catalogue_of_other_places_goes_on_with_the_shelves_that_stay() -> None:
    stays, goes, comes = (HeldSource(f"/{name}", name) for name in "abc")
    before = ModelScanner([stays, goes], patience=LENIENT)
    before.scan()
    stays.hold()
    before.scan()
    after = ModelScanner([stays, comes], kept=before.shelves, patience=LENIENT)
    scan = after.scan()
    stays.release.set()
    assert list(statuses(scan)) == ["a", "c"]
    assert stays.looks == 2, "nobody asks a disk that hangs a second time"


def test_the_budget_is_shared_among_the_places_and_what_one_does_not_need_is_for_the_others() -> None:
    clock = Clock()
    many = CostlySource(clock, "/many", *"abcdefgh")
    few, none = CostlySource(clock, "/few", "x", "y"), CostlySource(clock, "/none")
    none.models = ()
    catalogue = ModelScanner([many, few, none], monotonic=clock)
    scan = catalogue.scan(6)
    assert (len(many.read_names), len(few.read_names)) == (4, 2)
    assert not scan.complete
    assert catalogue.scan(6).complete is False
    assert catalogue.scan(20).complete


def test_a_mount_that_answers_nothing_not_even_stat_costs_nobody_else(tmp_path: Path) -> None:
    roots = [tmp_path / name for name in ("one", "two", "three")]
    for root in roots:
        (root / root.name).mkdir(parents=True)
        (root / root.name / "m.gguf").write_bytes(b"GGUF")
    catalogue = ModelScanner([ModelFolders([root]) for root in roots], patience=HASTY)
    before = statuses(catalogue.scan())
    with hung(roots[1]):
        first = catalogue.scan()
        (roots[2] / "later").mkdir()
        (roots[2] / "later" / "m.gguf").write_bytes(b"GGUF")
        second = catalogue.scan()
    assert settled(catalogue)
    after = catalogue.scan()
    assert set(before) == {"one", "two", "three"}
    for scan, new in ((first, set[str]()), (second, {"later"})):
        told = {model.model_id: model.detail for model in scan.models}
        assert set(told) == set(before) | new
        assert told["two"] == DETAIL
        assert DETAIL not in (told["one"], told["three"])
        assert scan.problems == {str(roots[1]): DISK_SILENT}
    assert statuses(after) == {**before, "later": before["one"]}
    assert os.listdir(roots[1]) == ["two"]  # noqa: PTH208


PATIENT_SECONDS = 20.0
SHORT_SECONDS = 0.05


def shelves(count: int) -> list[SourceState]:
    return [SourceState(HeldSource(f"/{number}")) for number in range(count)]


def test_each_shelf_is_visited_in_order_and_hears_how_many_come_after() -> None:
    way = shelves(3)
    visited: list[tuple[SourceState, int]] = []

    def visit(shelf: SourceState, others: int) -> bool:
        visited.append((shelf, others))
        return False

    assert ScanThread(way, visit).got_on(PATIENT_SECONDS)
    assert visited == [(way[0], 2), (way[1], 1), (way[2], 0)]


def test_one_that_wants_more_is_visited_again_when_all_others_were() -> None:
    one, two = way = shelves(2)
    visited: list[SourceState] = []

    def visit(shelf: SourceState, _: int) -> bool:
        visited.append(shelf)
        return shelf is one and visited.count(one) < 3

    assert ScanThread(way, visit).got_on(PATIENT_SECONDS)
    assert visited == [one, two, one, one]


def test_one_that_hangs_is_left_behind_and_another_goes_the_rest_of_the_way() -> None:
    one, two, three = way = shelves(3)
    release = threading.Event()
    visited: list[SourceState] = []

    def visit(shelf: SourceState, _: int) -> bool:
        if shelf is two:
            release.wait(PATIENT_SECONDS)
        visited.append(shelf)
        return False

    walk = ScanThread(way, visit)
    assert not walk.got_on(SHORT_SECONDS)
    assert walk.leave() == (three,)
    assert ScanThread([three], visit).got_on(PATIENT_SECONDS)
    release.set()
    assert walk.ended.wait(PATIENT_SECONDS)
    assert visited == [one, three, two], "whoever was left behind goes no further"


def test_one_that_gets_on_slowly_is_waited_for() -> None:
    (shelf,) = shelves(1)
    ticks = threading.Event()

    def visit(shelf: SourceState, _: int) -> bool:
        for _ in range(4):
            ticks.wait(0.5)  # nobody sets it
            shelf.heard_at += 0.5
        return False

    assert ScanThread([shelf], visit).got_on(1.5)


def test_a_walk_that_breaks_off_is_told_by_its_thread_and_never_passes_for_whole(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    told: list[type[BaseException]] = []
    monkeypatch.setattr(threading, "excepthook", lambda ended: told.append(ended.exc_type))

    def visit(_: SourceState, __: int) -> bool:
        raise ZeroDivisionError

    walk = ScanThread(shelves(1), visit)
    with pytest.raises(RuntimeError, match="broke off"):
        walk.got_on(PATIENT_SECONDS)
    eventually(lambda: told == [ZeroDivisionError], within_seconds=PATIENT_SECONDS, what="its end told")
