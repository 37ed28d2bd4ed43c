"""The objects into which a history is cut: each job, each GPU, each node's slots.

A history of many objects is linearizable only if that of each object is, so each is searched by itself. A
request on a job is an operation on that job. What it does to GPUs and slots is inferred: the answers show
which claim reserves what, and the requests bound when it began and ended to do so.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum

from tests.histories.linearizability import NEVER, Judgement, Operation, Partition, Verdict
from tests.histories.record import OPEN, History, JobKind, Kind, Machine, Outcome, Recorded, Run, Shown

REPORTED_SECONDS = 1.0
"""A node reports a job that runs within this time."""
UNNAMED = "?"
"""A claim whose id no one has seen: it was granted to a request whose answer was lost."""


@dataclass(frozen=True, slots=True)
class Violation:
    """What must not have happened, and the operations that show it."""

    what: str
    operations: Sequence[Operation] = ()

    def __str__(self) -> str:
        return "\n".join([self.what, *(f"  {one}" for one in self.operations)])


@dataclass(slots=True)
class Result:
    violations: list[Violation] = field(default_factory=list)
    undecided: list[str] = field(default_factory=list)
    partitions: int = 0
    steps: int = 0


def check(history: History) -> Result:
    """Judge each object of a history."""
    result = Result()
    for op in history.operations:
        if op.outcome is Outcome.UNEXPECTED:
            result.violations.append(Violation("an answer is right in no state", (op,)))
    claims = _claims(history, result.violations)
    partitions: list[Partition[JobState, Recorded] | Partition[Holders, Use]] = [
        *_jobs(history),
        *_resources(history, claims),
    ]
    for partition in partitions:
        judgement: Judgement = partition.judge()
        result.partitions += 1
        result.steps += judgement.steps
        if judgement.verdict is Verdict.UNDECIDED:
            result.undecided.append(partition.name)
        elif judgement.verdict is Verdict.VIOLATION:
            what = f"{partition.name} is not linearizable"
            result.violations.append(Violation(what, partition.minimal()))
    return result


# Jobs


@dataclass(frozen=True, slots=True)
class JobState:
    """The claim that a job holds, and those that it held."""

    claim: str | None = None
    valid_until: float = NEVER
    """It does not expire earlier."""
    ended: frozenset[str] = frozenset()
    expired: frozenset[str] = frozenset()
    """Those of the ended ones whose GPUs may still be held: a release by name succeeds once."""

    def holds(self, claim: str) -> bool:
        return self.claim == claim or (self.claim == UNNAMED and claim not in self.ended)

    def end(self) -> "JobState":
        named = self.claim not in (None, UNNAMED)
        return replace(self, claim=None, ended=self.ended | {str(self.claim)} if named else self.ended)

    def expire(self) -> "JobState":
        ended = self.end()
        return replace(ended, expired=self.expired | (ended.ended - self.ended))


def _jobs(history: History) -> Iterator[Partition[JobState, Recorded]]:
    by_job: dict[str, list[Recorded]] = {job: [] for job in history.jobs}
    for op in history.operations:
        if op.kind is Kind.LIST:
            for job, operations in by_job.items():
                operations.append(_as_read(op, job))
        else:
            by_job[op.job].append(op)
    for job, operations in by_job.items():
        counted = [op for op in operations if op.outcome not in OPEN or op.kind in _CHANGES]
        yield Partition(job, JobState(), job_step(history.jobs[job]), counted, _only_reads)


_CHANGES = (Kind.CLAIM, Kind.RELEASE)


def _only_reads(op: Recorded) -> bool:
    return op.kind not in _CHANGES or op.outcome in (Outcome.NONE, Outcome.OTHER)


def _as_read(op: Recorded, job: str) -> Recorded:
    shown = tuple(one for one in op.shown if one.job == job)
    outcome = Outcome.NONE if op.outcome is Outcome.SHOWN and not shown else op.outcome
    return replace(op, job=job, shown=shown, outcome=outcome)


def job_step(kind: JobKind) -> Callable[[JobState, Recorded, float], Iterator[JobState]]:
    def step(state: JobState, op: Recorded, latest: float) -> Iterator[JobState]:
        yield from apply(state, op, kind)
        if state.claim is not None and state.valid_until <= latest:
            yield from apply(state.expire(), op, kind)

    return step


def apply(state: JobState, op: Recorded, kind: JobKind) -> Iterator[JobState]:
    match op.outcome:
        case Outcome.NONE:
            if state.claim is None:
                yield state
        case Outcome.OTHER:
            if state.claim is not None and state.claim != op.named:
                yield state
        case Outcome.SHOWN:
            yield from _show(state, op, kind)
        case Outcome.RELEASED | Outcome.UNKNOWN | Outcome.UNEXPECTED if op.kind is Kind.RELEASE:
            yield from _release(state, op.named)
        case Outcome.UNKNOWN | Outcome.UNEXPECTED if op.kind is Kind.CLAIM:
            if state.claim is None:
                yield replace(state, claim=UNNAMED, valid_until=op.invoked + kind.ttl_seconds)
        case _:
            raise ValueError(f"no such operation: {op}")


def _show(state: JobState, op: Recorded, kind: JobKind) -> Iterator[JobState]:
    (shown,) = op.shown
    valid_until = op.invoked + kind.ttl_seconds
    if op.named not in (None, shown.claim):
        return
    if state.claim is None:
        if op.kind is Kind.CLAIM and shown.claim not in state.ended:
            yield replace(state, claim=shown.claim, valid_until=valid_until)
    elif state.holds(shown.claim):
        renewed = (
            state.valid_until if op.kind in (Kind.READ, Kind.LIST) else max(state.valid_until, valid_until)
        )
        yield replace(state, claim=shown.claim, valid_until=renewed)


def _release(state: JobState, named: str | None) -> Iterator[JobState]:
    if named is None:
        if state.claim is not None:
            yield state.end()
        return
    if state.holds(named):
        yield replace(state, claim=None, ended=state.ended | {named})
    if named in state.expired:
        yield replace(state, expired=state.expired - {named})


# GPUs and slots


@dataclass(slots=True)
class ClaimFacts:
    """What all answers together say about one claim."""

    claim: str
    job: str
    kind: JobKind
    nodes: Mapping[str, tuple[str, ...]]
    granted: tuple[float, float]
    """It was granted between these moments."""
    leaves_gpus: tuple[float, float] | None = None
    """The same for its end; None where nothing can have ended it."""
    leaves_slots: tuple[float, float] | None = None


class Does(StrEnum):
    ACQUIRE = "acquires"
    RELEASE = "releases"
    HOLD = "holds"
    LIST = "are listed"


@dataclass(frozen=True, slots=True, kw_only=True)
class Use(Operation):
    """What claims do to a GPU or to a node's slots."""

    does: Does
    claims: frozenset[str]
    why: Recorded | None = None
    """The operation that shows it."""

    def __str__(self) -> str:
        shown = f": {self.why}" if self.why else f" between {self.invoked:.3f} and {self.returned:.3f}"
        return f"{' '.join(sorted(one[:8] for one in self.claims)) or 'none'} {self.does}{shown}"


Holders = frozenset[str]


def _claims(history: History, violations: list[Violation]) -> dict[str, ClaimFacts]:
    requests: dict[str, list[Recorded]] = defaultdict(list)
    for op in history.operations:
        if op.kind in _CHANGES:
            requests[op.job].append(op)
    facts = {}
    for claim, sightings in _sightings(history).items():
        op, first = sightings[0]
        kind = history.jobs[first.job]
        differing = next((other for other, one in sightings if one != first), None)
        if differing is not None:
            violations.append(Violation(f"claim {claim} is shown in two ways", (op, differing)))
        problem = _wrong_shape(first, kind)
        if problem:
            violations.append(Violation(f"claim {claim} {problem}", (op,)))
        grants = [
            one.invoked
            for one in requests[first.job]
            if one.kind is Kind.CLAIM and (one.outcome in OPEN or first in one.shown)
        ]
        granted = (min(grants, default=NEVER), min(one.returned for one, _ in sightings))
        if granted[0] > granted[1]:
            violations.append(Violation(f"no request was granted claim {claim}", (op,)))
        else:
            facts[claim] = ClaimFacts(claim, first.job, kind, dict(first.nodes), granted)
    for one in facts.values():
        one.leaves_gpus = _ends(one, facts.values(), requests[one.job], history.runs)
        one.leaves_slots = _ends(one, facts.values(), requests[one.job], ())
    return facts


def _sightings(history: History) -> dict[str, list[tuple[Recorded, Shown]]]:
    seen: dict[str, list[tuple[Recorded, Shown]]] = defaultdict(list)
    for op in history.operations:
        for one in op.shown:
            if one.job in history.jobs:  # not one of an earlier history
                seen[one.claim].append((op, one))
    return seen


def _wrong_shape(shown: Shown, kind: JobKind) -> str | None:
    nodes = [node for node, _ in shown.nodes]
    if len(set(nodes)) != len(nodes) or len(nodes) != kind.nodes:
        return f"reserves {nodes} where {kind.nodes} different nodes were requested"
    for node, gpus in shown.nodes:
        if len(set(gpus)) != len(gpus) or len(gpus) != kind.gpus:
            return f"reserves {list(gpus)} of {node} where {kind.gpus} GPUs were requested"
    return None


def _ends(
    one: ClaimFacts, claims: Iterable[ClaimFacts], requests: Iterable[Recorded], runs: Iterable[Run]
) -> tuple[float, float] | None:
    """Return when a claim gave up its GPUs, at the earliest and latest; with `NEVER` it may have done so.

    Where a job goes on after its claim expired, its GPUs stay held until its node reports it no more, unless
    the claim is released by its name, or the job claims that node again (§5.3).
    """
    possible = []
    for op in requests:
        if op.kind is Kind.RELEASE and op.named in (None, one.claim):
            if op.named == one.claim and op.outcome is Outcome.RELEASED and not one.kind.expires:
                return (op.invoked, op.returned)
            if op.outcome in (Outcome.RELEASED, *OPEN):
                possible.append(op.invoked)
    if one.kind.expires:
        expires = one.granted[0] + one.kind.ttl_seconds
        seen = [
            run.until for run in runs if run.claim == one.claim and run.began + REPORTED_SECONDS < expires
        ]
        possible.append(max([expires, *seen]))
        possible += [
            other.granted[0]
            for other in claims
            if other.job == one.job and other.claim != one.claim and other.nodes.keys() & one.nodes.keys()
        ]
    return (min(possible), NEVER) if possible else None


def _resources(history: History, claims: Mapping[str, ClaimFacts]) -> Iterator[Partition[Holders, Use]]:
    for machine in history.fleet:
        on_node = {one.claim: one for one in claims.values() if machine.node_id in one.nodes}
        ends = {name: one.leaves_slots for name, one in on_node.items()}
        yield _resource(f"slots of {machine.node_id}", on_node, ends, history, fits=_slots_fit(machine))
        for gpu in machine.gpus:
            on_gpu = {name: one for name, one in on_node.items() if gpu in one.nodes[machine.node_id]}
            ends = {name: one.leaves_gpus for name, one in on_gpu.items()}
            yield _resource(f"{gpu} of {machine.node_id}", on_gpu, ends, history, fits=_gpu_fits(machine))


Fits = Callable[[Sequence[ClaimFacts]], bool]


def _gpu_fits(machine: Machine) -> Fits:
    def fits(holders: Sequence[ClaimFacts]) -> bool:
        if len(holders) > 1 and any(one.kind.exclusive for one in holders):
            return False
        return sum(one.kind.memory_mb or 0 for one in holders) <= machine.memory_mb

    return fits


def _slots_fit(machine: Machine) -> Fits:
    """As many claims as slots; and beside a claim without GPUs one GPU is given to no claim alone (§5.1)."""

    def fits(holders: Sequence[ClaimFacts]) -> bool:
        alone = sum(len(one.nodes[machine.node_id]) for one in holders if one.kind.exclusive)
        without = any(not one.kind.gpus for one in holders)
        return len(holders) <= machine.slots and alone + without <= len(machine.gpus)

    return fits


def _resource(
    name: str,
    claims: Mapping[str, ClaimFacts],
    ends: Mapping[str, tuple[float, float] | None],
    history: History,
    *,
    fits: Fits,
) -> Partition[Holders, Use]:
    uses = [
        Use(
            invoked=one.granted[0], returned=one.granted[1], does=Does.ACQUIRE, claims=frozenset((one.claim,))
        )
        for one in claims.values()
    ]
    uses += [
        Use(invoked=end[0], returned=end[1], does=Does.RELEASE, claims=frozenset((claim,)))
        for claim, end in ends.items()
        if end is not None
    ]
    for op in history.operations:
        held = frozenset(one.claim for one in op.shown if one.claim in claims)
        if op.outcome is Outcome.SHOWN and (held or op.kind is Kind.LIST):
            does = Does.LIST if op.kind is Kind.LIST else Does.HOLD
            uses.append(Use(invoked=op.invoked, returned=op.returned, does=does, claims=held, why=op))
    may_be_held = frozenset(name for name, one in claims.items() if one.kind.expires)
    step = _resource_step(claims, fits, may_be_held)
    return Partition(name, frozenset(), step, uses, lambda use: use.does in (Does.HOLD, Does.LIST))


def _resource_step(
    claims: Mapping[str, ClaimFacts], fits: Fits, may_be_held: Holders
) -> Callable[[Holders, Use, float], Iterator[Holders]]:
    """`may_be_held`: claims that hold a GPU a while after they expired, when they are listed no more."""

    def step(state: Holders, use: Use, _latest: float) -> Iterator[Holders]:
        match use.does:
            case Does.ACQUIRE:
                after = state | use.claims
                if fits([claims[one] for one in after]):
                    yield after
            case Does.RELEASE:
                if use.claims <= state:
                    yield state - use.claims
            case Does.HOLD:
                if use.claims <= state:
                    yield state
            case Does.LIST:
                if use.claims <= state and state - use.claims <= may_be_held:
                    yield state

    return step
