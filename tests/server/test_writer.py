"""The writer's promises, over a store that can be slow, full, or choosy."""

import asyncio
import threading
from collections.abc import Sequence

from gpu_agent.registry.actions import Change, Kept
from gpu_agent.server.writer import Writer
from gpu_agent.store.base import Batch, StoreError, UnkeepableError
from gpu_agent.store.memory import MemoryStore


class Disk(MemoryStore):
    """Writes down its commits; waits while it does not turn."""

    def __init__(self) -> None:
        super().__init__()
        self.commits: list[list[str]] = []
        self.refused: set[str] = set()
        self.full = False
        self.turning = threading.Event()
        self.turning.set()

    def save(self, batches: Sequence[Batch]) -> None:
        self.turning.wait(10)
        keys = [change.key for batch in batches for change in batch.changes]
        if self.full:
            raise StoreError("full")
        if self.refused & set(keys):
            raise UnkeepableError("odd")
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
        self.writer.put(Batch([Change(Kept.NODE, key, {}) for key in keys]), answered)

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


async def test_what_cannot_be_kept_refuses_itself_and_nobody_else() -> None:
    disk = Disk()
    heard = Heard(Writer(disk))
    disk.refused = {"odd"}
    for key in ("first", "b", "odd", "c"):
        heard.put(key)
    outcomes = await heard.all()
    assert {key for key, problem in outcomes.items() if problem is None} == {"first", "b", "c"}
    assert outcomes["odd"] == "odd"
    assert heard.writer.problem is None
