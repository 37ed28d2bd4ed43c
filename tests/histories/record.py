"""What clients record, one line an operation, and the file in which a violation is written."""

import json
import threading
import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from enum import StrEnum
from pathlib import Path
from typing import Any

from tests.histories.linearizability import NEVER, Operation


class Kind(StrEnum):
    CLAIM = "claim"
    RENEW = "renew"
    RELEASE = "release"
    READ = "read"
    LIST = "list"


class Outcome(StrEnum):
    """What the answer says about the job."""

    SHOWN = "shown"
    """The answer shows the claims that there are."""
    NONE = "none"
    """The job holds no claim."""
    OTHER = "other"
    """The job holds another claim than the one that the request names."""
    RELEASED = "released"
    UNKNOWN = "unknown"
    """No answer, or one that leaves it open."""
    UNEXPECTED = "unexpected"
    """An answer that is right in no state."""


OPEN = (Outcome.UNKNOWN, Outcome.UNEXPECTED)
"""The request may still take effect, or never."""


@dataclass(frozen=True, slots=True)
class Shown:
    """A claim as an answer shows it."""

    job: str
    claim: str
    nodes: tuple[tuple[str, tuple[str, ...]], ...]
    """Its nodes, each with the UUIDs of its GPUs, in order."""

    def __str__(self) -> str:
        where = " ".join(f"{node}[{' '.join(gpus)}]" for node, gpus in self.nodes)
        return f"{self.job} {self.claim[:8]} on {where}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Recorded(Operation):
    """One request of one client."""

    client: str
    kind: Kind
    job: str = ""
    named: str | None = None
    """The claim that the request names."""
    outcome: Outcome = Outcome.UNKNOWN
    shown: tuple[Shown, ...] = ()
    detail: str = ""
    """The address, and the answer's code or the error, for people."""

    def __str__(self) -> str:
        returned = "   never" if self.returned == NEVER else f"{self.returned:8.3f}"
        named = "" if self.named is None else f" of {self.named[:8]}"
        claims = ", ".join(map(str, self.shown))
        return (
            f"{self.invoked:8.3f} {returned} {self.client:9} {self.kind:7} {self.job}{named}: {self.outcome} "
            f"{claims} ({self.detail})"
        )


@dataclass(frozen=True, slots=True)
class JobKind:
    """What a job of a history asks for."""

    nodes: int = 1
    gpus: int = 0
    memory_mb: int | None = None
    """Of each GPU, which other such jobs share; None: its GPUs are its own."""
    ttl_seconds: float = NEVER
    """`NEVER`: long enough not to expire within a history."""
    wait_seconds: float = 0.0

    @property
    def exclusive(self) -> bool:
        return self.gpus > 0 and self.memory_mb is None

    @property
    def expires(self) -> bool:
        return self.ttl_seconds != NEVER


@dataclass(frozen=True, slots=True)
class Machine:
    """A node of the fleet."""

    node_id: str
    gpus: tuple[str, ...]
    memory_mb: int
    """Of each GPU."""
    slots: int


@dataclass(frozen=True, slots=True)
class Run:
    """A job that ran on its claim's nodes, which reported it, whether its claim expired or not."""

    claim: str
    began: float
    until: float


@dataclass(slots=True)
class History:
    """The operations of all clients on one fleet that no claim held before. Thread-safe."""

    jobs: Mapping[str, JobKind]
    fleet: tuple[Machine, ...]
    operations: list[Recorded] = field(default_factory=list)
    runs: list[Run] = field(default_factory=list)
    began: float = field(default_factory=time.monotonic)
    """All times count from then."""
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, operation: Recorded) -> None:
        with self._lock:
            self.operations.append(operation)

    def add_run(self, run: Run) -> None:
        with self._lock:
            self.runs.append(run)

    def count(self, *outcomes: Outcome) -> int:
        return sum(one.outcome in outcomes for one in self.operations)


def write(path: Path, history: History, *, about: Iterable[str]) -> None:
    """Write a history that `read` returns, and before it what is known of it, for people."""
    document = {
        "about": list(about),
        "jobs": {name: asdict(kind) for name, kind in history.jobs.items()},
        "fleet": [asdict(one) for one in history.fleet],
        "runs": [asdict(one) for one in history.runs],
        "operations": [asdict(one) for one in sorted(history.operations, key=lambda op: op.invoked)],
    }
    path.write_text(json.dumps(document, indent=1) + "\n")


def read(path: Path) -> History:
    document: dict[str, Any] = json.loads(path.read_text())
    return History(
        {name: JobKind(**kind) for name, kind in document["jobs"].items()},
        tuple(Machine(**{**one, "gpus": tuple(one["gpus"])}) for one in document["fleet"]),
        [_operation(one) for one in document["operations"]],
        [Run(**one) for one in document["runs"]],
    )


def _operation(written: dict[str, Any]) -> Recorded:
    shown = tuple(
        Shown(one["job"], one["claim"], tuple((node, tuple(gpus)) for node, gpus in one["nodes"]))
        for one in written.pop("shown")
    )
    one = Recorded(**{**written, "kind": Kind(written["kind"]), "outcome": Outcome(written["outcome"])})
    return replace(one, shown=shown)
