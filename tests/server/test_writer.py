"""The writer's promises, over a store that can be slow, full, or choosy."""

import asyncio
import logging
import threading
from collections.abc import Sequence
from pathlib import Path

import pytest

from gpu_agent.registry.actions import Change, DocumentKind
from gpu_agent.server import writer
from gpu_agent.server.writer import MOST_AT_ONCE, SPOILT, Outcome, Writer, commit, keys_of, probe
from gpu_agent.store.base import Batch, StoreError, UnstorableError
from gpu_agent.store.memory import MemoryStore
from tests.server.harness import until


class Disk(MemoryStore):
    """Writes down its commits; waits while it does not turn."""

    def __init__(self) -> None:
        super().__init__()
        self.commits: list[list[str]] = []
        self.refused: set[str] = set()
        self.full = self.broken = False
        self.turning = threading.Event()
        self.turning.set()

    def save(self, batches: Sequence[Batch]) -> None:
        self.turning.wait(10)
        if self.broken:
            raise ZeroDivisionError
        keys = [change.key for batch in batches for change in batch.changes]
        if self.full:
            raise StoreError("full")
        if self.refused & set(keys):
            raise UnstorableError("odd")
        super().save(batches)
        self.commits.append(keys)

    def probe(self) -> None:
        if self.full:
            raise StoreError("full")


class Heard:
    """Puts batches, and writes down what became of each."""

    def __init__(self, writer: Writer) -> None:
        self.writer = writer
        self.outcomes: dict[str, str | None] = {}
        self._all = asyncio.Event()
        self._put = 0

    def put(self, *keys: str, name: str | None = None) -> None:
        name = name or keys[0]
        self._put += 1

        def answered(problem: str | None) -> None:
            self.outcomes[name] = problem
            if len(self.outcomes) == self._put:
                self._all.set()

        self._all.clear()
        self.writer.put(Batch([Change(DocumentKind.NODE, key, {}) for key in keys]), answered)

    async def all(self) -> dict[str, str | None]:
        await asyncio.wait_for(self._all.wait(), 5)
        return self.outcomes


async def test_what_gathers_while_one_commit_runs_is_kept_in_the_next_one() -> None:
    disk = Disk()
    heard = Heard(Writer(disk))
    disk.turning.clear()
    for key in ("a", "b", "c"):
        heard.put(key)
    disk.turning.set()
    assert await heard.all() == {"a": None, "b": None, "c": None}
    assert disk.commits == [["a"], ["b", "c"]]


async def test_what_cannot_be_kept_refuses_itself_and_nobody_else(caplog: pytest.LogCaptureFixture) -> None:
    disk = Disk()
    heard = Heard(Writer(disk))
    disk.refused = {"odd"}
    for key in ("first", "b", "odd", "c"):
        heard.put(key)
    outcomes = await heard.all()
    assert {key for key, problem in outcomes.items() if problem is None} == {"first", "b", "c"}
    assert outcomes["odd"] == "odd"
    assert heard.writer.problem is None
    assert [one.getMessage() for one in caplog.records] == ["save_impossible"]


async def test_what_waits_and_was_built_on_what_failed_is_refused_with_it_before_all_else() -> None:
    disk = Disk()
    heard = Heard(Writer(disk))
    disk.refused = {"odd"}
    disk.turning.clear()
    heard.put("odd", name="first")
    heard.put("good")
    heard.put("odd", "other", name="on top")
    heard.put("other", name="on top of that")
    disk.turning.set()
    outcomes = await heard.all()
    assert list(outcomes) == ["first", "on top", "on top of that", "good"]
    assert [outcomes["on top"], outcomes["on top of that"], outcomes["good"]] == [SPOILT, SPOILT, None]
    assert disk.commits == [["good"]]


async def test_no_more_than_so_many_are_kept_at_once() -> None:
    disk = Disk()
    heard = Heard(Writer(disk))
    disk.turning.clear()
    for number in range(MOST_AT_ONCE + 11):
        heard.put(str(number))
    disk.turning.set()
    await heard.all()
    assert [len(commit) for commit in disk.commits] == [1, MOST_AT_ONCE, 10]


async def test_a_store_that_fails_is_told_once_and_looked_at_until_it_works_again(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer, "PROBE_SECONDS", 0.02)
    caplog.set_level(logging.INFO, logger="gpu_agent")
    disk = Disk()
    heard = Heard(Writer(disk))
    disk.full = True
    for key in ("a", "b"):
        heard.put(key)
        assert (await heard.all())[key] == "full"
    assert heard.writer.problem == "full"
    assert heard.writer.overwhelmed is None
    await asyncio.sleep(0.1)
    disk.full = False
    await until(lambda: heard.writer.problem is None, what="a store that works again")
    assert [one.getMessage() for one in caplog.records] == ["store_failing", "store_recovered"]
    heard.put("c")
    assert (await heard.all())["c"] is None


async def test_a_store_that_does_not_answer_is_given_nothing_more_until_it_does(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(writer, "STALL_SECONDS", 0.05)
    monkeypatch.setattr(writer, "PROBE_SECONDS", 0.02)
    disk = Disk()
    heard = Heard(Writer(disk))
    disk.turning.clear()
    heard.put("a")
    assert heard.writer.overwhelmed is None
    await until(lambda: heard.writer.overwhelmed, what="a stalled store")
    assert heard.writer.problem == heard.writer.overwhelmed
    assert "has not answered" in str(heard.writer.problem)
    disk.turning.set()
    assert await heard.all() == {"a": None}
    assert heard.writer.overwhelmed is None
    await until(lambda: heard.writer.problem is None, what="a store that works again")


async def test_it_tells_since_when_its_thread_is_at_one_thing_and_nothing_while_it_waits() -> None:
    disk = Disk()
    disk.turning.clear()
    writer = Writer(disk)
    heard = Heard(writer)
    idle, before = writer.busy_since, asyncio.get_running_loop().time()
    heard.put("a")
    assert idle is None
    assert before <= (writer.busy_since or 0.0) <= asyncio.get_running_loop().time()
    disk.turning.set()
    await until(lambda: writer.busy_since is None, what="an idle thread")
    assert heard.outcomes == {"a": None}


async def test_more_than_so_many_do_not_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer, "MOST_WAITING", 3)
    disk = Disk()
    heard = Heard(Writer(disk))
    disk.turning.clear()
    for key in ("a", "b", "c"):
        heard.put(key)
        assert heard.writer.overwhelmed is None
    heard.put("d")
    assert "3 saves wait" in str(heard.writer.overwhelmed)
    disk.turning.set()
    await heard.all()
    assert heard.writer.overwhelmed is None


async def test_a_store_that_breaks_in_an_unknown_way_refuses_what_it_was_given_and_goes_on() -> None:
    disk = Disk()
    heard = Heard(Writer(disk))
    disk.broken = True
    heard.put("a")
    assert "the store broke: ZeroDivisionError" in str((await heard.all())["a"])
    disk.broken = False
    heard.put("b")
    assert (await heard.all())["b"] is None


async def test_who_breaks_when_told_keeps_nobody_else_from_being_told() -> None:
    failures: list[dict[str, object]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: failures.append(context))
    disk = Disk()
    subject = Writer(disk)
    heard = Heard(subject)
    disk.turning.clear()
    heard.put("first")

    def breaks(_: str | None) -> None:
        raise ZeroDivisionError

    subject.put(Batch([Change(DocumentKind.NODE, "bad", {})]), breaks)
    heard.put("after")
    disk.turning.set()
    assert await heard.all() == {"first": None, "after": None}
    assert len(failures) == 1


async def test_at_the_end_what_is_being_written_is_waited_for_but_not_for_ever() -> None:
    disk = Disk()
    subject = Writer(disk)
    heard = Heard(subject)
    disk.turning.clear()
    heard.put("a")
    heard.put("b")
    assert not await subject.close(within_seconds=0.05)
    disk.turning.set()
    assert await subject.close(within_seconds=5)
    assert heard.outcomes == {"a": None, "b": None}
    with pytest.raises(StoreError, match="closed"):
        await subject.load()


async def test_a_backup_is_the_stores_business(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="memory only"):
        await Writer(MemoryStore()).backup(tmp_path / "copy.db")


class Choosy(MemoryStore):
    """Has no room for some keys, and no form for others."""

    def save(self, batches: Sequence[Batch]) -> None:
        keys = {change.key for batch in batches for change in batch.changes}
        if "odd" in keys:
            raise UnstorableError("no form")
        if "large" in keys:
            raise StoreError("no room")
        super().save(batches)


def batch(*keys: str) -> Batch:
    return Batch([Change(DocumentKind.CLAIM, key, {}) for key in keys])


def test_all_that_can_be_kept_is_kept_in_one() -> None:
    store = MemoryStore()
    assert commit(store, [batch("a"), batch("b")]) == Outcome([None, None])
    assert [change.key for change in store.load().changes] == ["a", "b"]


def test_one_that_has_no_room_is_a_fault_of_the_store() -> None:
    store = Choosy()
    outcome = commit(store, [batch("a"), batch("large"), batch("b")])
    assert outcome == Outcome([None, "no room", None], fault="no room", bugs=[])
    assert [change.key for change in store.load().changes] == ["a", "b"]


def test_one_that_no_store_would_keep_is_a_bug_and_the_store_is_well() -> None:
    assert commit(Choosy(), [batch("a"), batch("odd")]) == Outcome([None, "no form"], bugs=["no form"])
    assert commit(Choosy(), [batch("odd")]) == Outcome(["no form"], bugs=["no form"])


def test_what_is_built_on_one_that_failed_fails_with_it() -> None:
    outcome = commit(Choosy(), [batch("odd", "a"), batch("a", "b"), batch("b"), batch("c")])
    assert outcome.problems == ["no form", SPOILT, SPOILT, None]


def test_a_probe_says_what_is_wrong() -> None:
    store = MemoryStore()
    assert probe(store) is None
    store.close()
    assert "closed" in str(probe(store))


def test_what_a_batch_holds_is_named() -> None:
    assert keys_of(batch("a", "b")) == {(DocumentKind.CLAIM, "a"), (DocumentKind.CLAIM, "b")}
