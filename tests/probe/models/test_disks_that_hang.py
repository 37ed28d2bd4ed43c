import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from gpu_agent.probe.models.declared import ModelDeclaration
from gpu_agent.probe.models.directory import ModelFolders
from gpu_agent.probe.models.scanner import (
    DISK_SILENT,
    UNREADABLE,
    DiskPatience,
    ModelScanner,
    Scan,
    ScanThread,
)
from gpu_agent.probe.models.source_state import SourceState
from gpu_agent.wire.inventory import ModelStatus
from tests.hung_disk import hung
from tests.probe.models.caches import GGUF
from tests.probe.models.stuck_source import Clock, CostlySource, StuckSource
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


def settled(scanner: ModelScanner) -> bool:
    """Whether no thread hangs any more, now or soon."""
    return become(lambda: not any(state.busy for state in scanner.states))


def test_a_disk_that_hangs_takes_its_own_models_along_and_no_others() -> None:
    one, two, three = (StuckSource(f"/{name}", name) for name in "abc")
    scanner = ModelScanner(
        [one, two, three], [ModelDeclaration(model_id="stated", version="1")], patience=HASTY
    )
    before = scanner.scan()
    two.hold()
    three.models = ("c", "new")
    scan = scanner.scan()
    two.release.set()
    assert settled(scanner)
    after = scanner.scan()
    ready = dict.fromkeys(("stated", "a", "b", "c"), ModelStatus.READY)
    assert statuses(before) == ready
    assert statuses(scan) == {**ready, "b": ModelStatus.ERROR, "new": ModelStatus.READY}
    assert {model.detail for model in scan.models if model.status is ModelStatus.ERROR} == {UNREADABLE}
    assert (scan.problems, scan.complete) == ({"/b": DISK_SILENT}, True), (
        "it is reported, and the rest was reached"
    )
    assert scan.disk_unknowns == {"b": "no answer"}
    assert statuses(after) == {**ready, "new": ModelStatus.READY}
    assert (after.problems, after.complete) == ({}, True)


def test_models_of_a_silent_disk_stay_until_the_silence_has_lasted() -> None:
    source = StuckSource("/a", "a")
    scanner = ModelScanner([source], patience=LENIENT)
    scanner.scan()
    source.hold()
    scan = scanner.scan()
    source.release.set()
    assert (statuses(scan), scan.problems) == ({"a": ModelStatus.READY}, {})
    assert not scan.complete


def test_a_model_that_another_disk_holds_too_is_ready_by_that_one() -> None:
    one, two = StuckSource("/a", "both"), StuckSource("/b", "both")
    scanner = ModelScanner([one, two], patience=HASTY)
    scanner.scan()
    one.hold()
    scan = scanner.scan()
    one.release.set()
    assert statuses(scan) == {"both": ModelStatus.READY}


def test_each_disk_that_hangs_holds_one_thread_and_is_read_once() -> None:
    held = [StuckSource(f"/held-{number}") for number in range(4)]
    well = StuckSource("/well", "well")
    scanner = ModelScanner([well, *held], patience=HASTY)
    before = set(threading.enumerate())
    for source in held:
        source.hold()
    for _ in range(5):
        assert statuses(scanner.scan()) == {"well": ModelStatus.READY}
    assert become(lambda: len(set(threading.enumerate()) - before) == len(held))
    assert {source.looks for source in held} == {1}
    assert well.looks == 5
    for source in held:
        source.release.set()
    assert settled(scanner)


def test_time_that_is_lost_on_a_disk_that_hangs_is_not_taken_from_the_others() -> None:
    held, well = StuckSource("/held"), StuckSource("/well", *map(str, range(100)))
    held.hold()
    scanner = ModelScanner([held, well], patience=DiskPatience(wait_seconds=0.3))
    assert len(scanner.scan(0.25).models) > 1
    held.release.set()


def test_a_single_scan_waits_in_the_end_for_a_slow_disk() -> None:
    slow = StuckSource("/slow", "slow")
    slow.hold()
    waker = threading.Timer(0.5, slow.release.set)
    waker.start()
    scanner = ModelScanner([slow], patience=DiskPatience(wait_seconds=0.05))
    scan = scanner.scan(answers_within_seconds=20)
    waker.join()
    assert (statuses(scan), scan.complete, scan.problems) == ({"slow": ModelStatus.READY}, True, {})


def test_a_single_scan_names_the_path_that_did_not_answer_in_time() -> None:
    held, well = StuckSource("/held"), StuckSource("/well", "well")
    held.hold()
    scanner = ModelScanner([held, well], patience=DiskPatience(wait_seconds=0.05))
    scan = scanner.scan(answers_within_seconds=0.2)
    held.release.set()
    assert (statuses(scan), scan.problems) == ({"well": ModelStatus.READY}, {"/held": DISK_SILENT})


def test_a_new_scanner_goes_on_with_the_source_states_that_stay() -> None:
    stays, goes, comes = (StuckSource(f"/{name}", name) for name in "abc")
    before = ModelScanner([stays, goes], patience=LENIENT)
    before.scan()
    stays.hold()
    before.scan()
    after = ModelScanner([stays, comes], previous=before.states, patience=LENIENT)
    scan = after.scan()
    stays.release.set()
    assert list(statuses(scan)) == ["a", "c"]
    assert stays.looks == 2, "a disk that hangs is not read a second time"


def test_the_budget_is_shared_among_the_sources_and_what_one_does_not_need_is_for_the_others() -> None:
    clock = Clock()
    many = CostlySource(clock, "/many", *"abcdefgh")
    few, none = CostlySource(clock, "/few", "x", "y"), CostlySource(clock, "/none")
    none.models = ()
    scanner = ModelScanner([many, few, none], monotonic=clock)
    scan = scanner.scan(6)
    assert (len(many.read_names), len(few.read_names)) == (4, 2)
    assert not scan.complete
    assert scanner.scan(6).complete is False
    assert scanner.scan(20).complete


def test_a_mount_that_hangs_in_stat_delays_no_other_source(tmp_path: Path) -> None:
    roots = [tmp_path / name for name in ("one", "two", "three")]
    for root in roots:
        (root / root.name).mkdir(parents=True)
        (root / root.name / "m.gguf").write_bytes(GGUF)
    scanner = ModelScanner([ModelFolders([root]) for root in roots], patience=HASTY)
    before = statuses(scanner.scan())
    with hung(roots[1]):
        first = scanner.scan()
        (roots[2] / "later").mkdir()
        (roots[2] / "later" / "m.gguf").write_bytes(GGUF)
        second = scanner.scan()
    assert settled(scanner)
    after = scanner.scan()
    assert set(before) == {"one", "two", "three"}
    for scan, new in ((first, set[str]()), (second, {"later"})):
        details = {model.model_id: model.detail for model in scan.models}
        assert set(details) == set(before) | new
        assert details["two"] == UNREADABLE
        assert UNREADABLE not in (details["one"], details["three"])
        assert scan.problems == {str(roots[1]): DISK_SILENT}
    assert statuses(after) == {**before, "later": before["one"]}
    assert os.listdir(roots[1]) == ["two"]  # noqa: PTH208


PATIENT_SECONDS = 20.0
SHORT_SECONDS = 0.05


def states(count: int) -> list[SourceState]:
    return [SourceState(StuckSource(f"/{number}")) for number in range(count)]


def test_each_source_is_read_in_order_with_the_number_of_those_after_it() -> None:
    way = states(3)
    visited: list[tuple[SourceState, int]] = []

    def visit(state: SourceState, others: int) -> bool:
        visited.append((state, others))
        return False

    assert ScanThread(way, visit).made_progress(PATIENT_SECONDS)
    assert visited == [(way[0], 2), (way[1], 1), (way[2], 0)]


def test_one_that_wants_more_is_visited_again_when_all_others_were() -> None:
    one, two = way = states(2)
    visited: list[SourceState] = []

    def visit(state: SourceState, _: int) -> bool:
        visited.append(state)
        return state is one and visited.count(one) < 3

    assert ScanThread(way, visit).made_progress(PATIENT_SECONDS)
    assert visited == [one, two, one, one]


def test_a_hanging_thread_is_left_behind_and_another_reads_the_rest() -> None:
    one, two, three = way = states(3)
    release = threading.Event()
    visited: list[SourceState] = []

    def visit(state: SourceState, _: int) -> bool:
        if state is two:
            release.wait(PATIENT_SECONDS)
        visited.append(state)
        return False

    thread = ScanThread(way, visit)
    assert not thread.made_progress(SHORT_SECONDS)
    assert thread.abandon() == (three,)
    assert ScanThread([three], visit).made_progress(PATIENT_SECONDS)
    release.set()
    assert thread.ended.wait(PATIENT_SECONDS)
    assert visited == [one, three, two], "a thread that was left behind goes no further"


def test_one_that_gets_on_slowly_is_waited_for() -> None:
    (state,) = states(1)
    ticks = threading.Event()

    def visit(state: SourceState, _: int) -> bool:
        for _ in range(4):
            ticks.wait(0.5)  # never set
            state.progress_at += 0.5
        return False

    assert ScanThread([state], visit).made_progress(1.5)


def test_a_scan_thread_that_fails_raises_and_is_never_complete(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    raised: list[type[BaseException]] = []
    monkeypatch.setattr(threading, "excepthook", lambda ended: raised.append(ended.exc_type))

    def visit(_: SourceState, __: int) -> bool:
        raise ZeroDivisionError

    thread = ScanThread(states(1), visit)
    with pytest.raises(RuntimeError, match="scan of the model sources failed"):
        thread.made_progress(PATIENT_SECONDS)
    eventually(lambda: raised == [ZeroDivisionError], within_seconds=PATIENT_SECONDS, what="its end")
