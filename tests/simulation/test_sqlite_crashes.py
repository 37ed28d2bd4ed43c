"""Whatever a crash leaves of the database's log, what is found is what was committed up to some point."""

import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random

import pytest

from gpu_agent.registry.actions import Change, DocumentKind
from gpu_agent.store.base import Batch
from gpu_agent.store.sqlite import SqliteStore
from gpu_agent.wire.api import RegistryEvent
from tests.simulation.disk import MemoryMedium, SqliteMedium
from tests.simulation.fault_profile import Fault, dense_profile
from tests.simulation.harness import run_seed

COMMITS = 40
CUTS = 150

Documents = Mapping[str, object]


@dataclass(frozen=True, slots=True)
class Written:
    """A database that was not closed: its files, and what each length of its log amounts to."""

    path: Path
    log: bytes
    commits: tuple[tuple[int, Documents], ...]
    """How long the log was after each commit, and what was stored by then."""

    def documents(self, length: float) -> Documents:
        """What must be found of a log that is whole up to there."""
        return [stored for end, stored in self.commits if end <= length][-1]


def documents(store: SqliteStore) -> Documents:
    return {change.key: change.document for change in store.load().changes}


def batch(number: int, dice: Random) -> Batch:
    changes = [
        Change(
            DocumentKind.NODE,
            f"node-{dice.randint(1, 9)}",
            {"written": number, "filler": "x" * dice.randint(0, 3000)} if dice.random() < 4 / 5 else None,
        )
        for _ in range(dice.randint(1, 4))
    ]
    return Batch(changes, [RegistryEvent(at=0.0, event="happened", id=number)])


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Written]:
    path = tmp_path_factory.mktemp("written") / "registry.db"
    log = path.with_name("registry.db-wal")
    store = SqliteStore(path)
    dice = Random(1)
    commits: list[tuple[int, Documents]] = [(0, {})]
    for number in range(1, COMMITS + 1):
        store.save([batch(number, dice)])
        commits.append((log.stat().st_size, documents(store)))
    yield Written(path, log.read_bytes(), tuple(commits))
    store.close()


def found(written: Written, log: bytes, folder: Path) -> Documents:
    """Open a copy of the database with another log."""
    shutil.copyfile(written.path, folder / "registry.db")
    (folder / "registry.db-wal").write_bytes(log)
    store = SqliteStore(folder / "registry.db")
    try:
        return documents(store)
    finally:
        store.close()


def folders(tmp_path: Path, count: int) -> Iterator[Path]:
    for number in range(count):
        folder = tmp_path / str(number)
        folder.mkdir()
        yield folder


def test_a_log_that_ends_anywhere_holds_every_commit_that_is_whole(written: Written, tmp_path: Path) -> None:
    dice = Random(2)
    ends = [end for end, _ in written.commits]
    cuts = [*ends, *(end - 1 for end in ends[1:]), *(dice.randint(0, ends[-1]) for _ in range(CUTS))]
    for cut, folder in zip(cuts, folders(tmp_path, len(cuts)), strict=True):
        assert found(written, written.log[:cut], folder) == written.documents(cut), cut


def test_a_log_with_a_wrong_byte_holds_every_commit_before_it(written: Written, tmp_path: Path) -> None:
    dice = Random(3)
    header, end = 32, written.commits[-1][0]
    for folder in folders(tmp_path, CUTS):
        place = dice.randrange(header, end)
        log = bytearray(written.log)
        log[place] ^= 1 + dice.randrange(255)
        assert found(written, bytes(log), folder) == written.documents(place), place


def test_a_commit_that_the_power_failed_in_is_not_there_and_all_before_it_are(tmp_path: Path) -> None:
    dice = Random(4)
    medium, shadow = SqliteMedium(tmp_path, dice), MemoryMedium()
    for number in range(1, 120):
        one = batch(number, dice)
        if dice.random() < 1 / 3:
            medium.save_torn([one])
            medium.crash()
        else:
            medium.save([one])
            shadow.save([one])
        there, wanted = medium.load(), shadow.load()
        assert {one.key: one.document for one in there.changes} == {
            one.key: one.document for one in wanted.changes
        }, number
        assert [event.id for event in there.recent] == [event.id for event in wanted.recent], number
    medium.close()


def test_a_registry_on_a_true_file_keeps_its_promises_through_crashes() -> None:
    for seed in range(3):
        profile = dense_profile(seed, Fault.REGISTRY_CRASH, Fault.CRASH_AT_ACTION, Fault.DRAIN, Fault.TOKENS)
        assert run_seed(seed, replace(profile, sqlite=True)).broken is None
