from collections.abc import Iterable, Sequence

import pytest

from gpu_agent.probe.models.declared import ModelDeclaration, apply_declarations
from gpu_agent.probe.models.scanner import DiskPatience, ModelScanner
from gpu_agent.wire.inventory import Model
from tests.probe.models.stuck_source import Clock, CostlySource, StuckSource
from tests.probe.models.test_disks_that_hang import settled

IMPATIENT = DiskPatience(wait_seconds=0.05, silent_after_seconds=30.0)


def test_a_source_that_lists_longer_than_the_budget_is_read_nevertheless() -> None:
    now = 0.0
    slow, well = StuckSource("/slow", "a", "b"), StuckSource("/well", "c")
    slow.hold()
    scanner = ModelScanner([slow, well], patience=IMPATIENT, monotonic=lambda: now)
    scanner.scan(2)
    now = 60.0
    slow.release.set()
    assert settled(scanner)
    assert slow.read_names == ["a", "b"]


def test_after_a_reload_the_longest_unread_unit_still_comes_first() -> None:
    clock = Clock()
    source = CostlySource(clock, "/many", *"abcd")
    before = ModelScanner([source], monotonic=clock)
    for _ in range(10):
        before.scan(2)
    after = ModelScanner([source], previous=before.states, monotonic=clock)
    source.read_names.clear()
    after.scan(2)
    after.scan(2)
    assert sorted(source.read_names) == ["a", "b", "c", "d"]


def test_a_scan_is_incomplete_where_a_slow_disk_answers_after_the_models_were_counted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    slow = StuckSource("/slow", "slow")
    slow.hold()
    scanner = ModelScanner([slow], patience=IMPATIENT)

    def declare_late(declarations: Sequence[ModelDeclaration], found: Iterable[Model]) -> tuple[Model, ...]:
        declared = apply_declarations(declarations, found)
        slow.release.set()
        assert settled(scanner)
        return declared

    monkeypatch.setattr("gpu_agent.probe.models.scanner.apply_declarations", declare_late)
    scan = scanner.scan()
    assert (scan.models, scan.complete) == ((), False)
