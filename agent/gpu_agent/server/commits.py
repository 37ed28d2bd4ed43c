"""One commit for many batches; where it fails, each batch by itself. Blocks: runs in the writer's thread.

One that cannot be kept refuses itself and what was built on it, nobody else.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from gpu_agent.registry.actions import Kept
from gpu_agent.store.base import Batch, Store, StoreError, UnkeepableError

SPOILT = "it builds on something that could not be kept, and was undone with it; ask again"

Key = tuple[Kept, str]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a commit."""

    problems: Sequence[str | None]
    """For each batch: None when it is kept, else why not."""
    fault: str | None = None
    """What is wrong with the store itself, rather than with a batch."""
    bugs: Sequence[str] = ()
    """What no store would have kept."""


def commit(store: Store, batches: Sequence[Batch]) -> Outcome:
    """Keep all of these, or else each that can be kept."""
    try:
        store.save(batches)
    except StoreError as error:
        return _failed(error) if len(batches) == 1 else _one_by_one(store, batches)
    return Outcome([None] * len(batches))


def probe(store: Store) -> str | None:
    """Say why nothing could be kept now; None when something could."""
    try:
        store.probe()
    except StoreError as error:
        return str(error)
    return None


def keys_of(batch: Batch) -> set[Key]:
    """Name what a batch holds."""
    return {(change.kind, change.key) for change in batch.changes}


def _failed(error: StoreError) -> Outcome:
    sentence = str(error)
    if isinstance(error, UnkeepableError):
        return Outcome([sentence], bugs=[sentence])
    return Outcome([sentence], fault=sentence)


def _one_by_one(store: Store, batches: Sequence[Batch]) -> Outcome:
    problems: list[str | None] = []
    bugs: list[str] = []
    spoilt = set[Key]()
    fault: str | None = None
    for batch in batches:
        keys = keys_of(batch)
        outcome = Outcome([SPOILT]) if keys & spoilt else commit(store, [batch])
        (problem,) = outcome.problems
        problems.append(problem)
        bugs += outcome.bugs
        fault = outcome.fault or fault
        if problem is not None:
            spoilt |= keys
    return Outcome(problems, fault, bugs)
