"""The search against one that tries every order, and against histories whose order is known."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.histories.linearizability import NEVER, Partition, Verdict
from tests.histories.objects import JobState, apply, job_step
from tests.histories.record import JobKind, Kind, Outcome, Recorded, Shown

CLAIMS = ("c1", "c2")
EXAMPLES = 400


def is_linearizable(kind: JobKind, operations: Sequence[Recorded]) -> bool:
    """Try every order, and every moment at which the claim may expire."""

    def search(state: JobState, left: frozenset[int], now: float) -> bool:
        if all(operations[place].returned == NEVER for place in left):
            return True
        for place in left:
            op = operations[place]
            for before, at in moments(state, max(now, op.invoked)):
                if at > op.returned:
                    continue
                if any(search(after, left - {place}, at) for after in apply(before, op, kind)):
                    return True
        return False

    def moments(state: JobState, at: float) -> Iterator[tuple[JobState, float]]:
        yield state, at
        if state.claim is not None and state.valid_until != NEVER:
            yield state.expire(), max(at, state.valid_until)

    return search(JobState(), frozenset(range(len(operations))), 0.0)


def shown(claim: str) -> Shown:
    return Shown("job", claim, (("node-a", ("GPU-a0",)),))


@st.composite
def operation(draw: st.DrawFn) -> Recorded:
    kind = draw(st.sampled_from([Kind.CLAIM, Kind.RENEW, Kind.RELEASE, Kind.READ]))
    claim = draw(st.sampled_from(CLAIMS))
    named = claim if kind is Kind.RENEW else draw(st.sampled_from([None, claim]))
    outcomes = {
        Kind.CLAIM: [Outcome.SHOWN, Outcome.UNKNOWN, Outcome.NONE],
        Kind.RENEW: [Outcome.SHOWN, Outcome.OTHER, Outcome.NONE],
        Kind.RELEASE: [Outcome.RELEASED, Outcome.UNKNOWN, Outcome.OTHER, Outcome.NONE],
        Kind.READ: [Outcome.SHOWN, Outcome.NONE],
    }
    outcome = draw(st.sampled_from(outcomes[kind]))
    invoked = draw(st.integers(0, 12))
    return Recorded(
        client="client",
        kind=kind,
        job="job",
        named=named if kind in (Kind.RENEW, Kind.RELEASE) else None,
        outcome=outcome,
        shown=(shown(claim),) if outcome is Outcome.SHOWN else (),
        invoked=invoked,
        returned=NEVER if outcome is Outcome.UNKNOWN else invoked + draw(st.integers(0, 5)),
    )


def partition(kind: JobKind, operations: Sequence[Recorded]) -> Partition[JobState, Recorded]:
    return Partition("job", JobState(), job_step(kind), operations, lambda op: op.kind is Kind.READ)


@settings(max_examples=EXAMPLES, deadline=None)
@given(st.lists(operation(), max_size=6), st.sampled_from([NEVER, 2.0]))
def test_it_agrees_with_a_search_of_every_order(operations: list[Recorded], ttl_seconds: float) -> None:
    kind = JobKind(gpus=1, ttl_seconds=ttl_seconds)
    verdict = partition(kind, operations).judge().verdict
    assert (verdict is Verdict.LINEARIZABLE) == is_linearizable(kind, operations)


@settings(max_examples=EXAMPLES, deadline=None)
@given(st.lists(operation(), min_size=2, max_size=6))
def test_what_is_left_of_a_violation_is_one(operations: list[Recorded]) -> None:
    kind = JobKind(gpus=1)
    whole = partition(kind, operations)
    if whole.judge().verdict is not Verdict.VIOLATION:
        return
    left = whole.minimal()
    assert not is_linearizable(kind, left)
    ends = [op.returned for op in left if op.returned != NEVER]
    earlier = [replace(op, returned=NEVER) if op.returned == max(ends) else op for op in left]
    begun = [op for op in earlier if op.invoked < max(ends)]
    assert len(set(ends)) == 1 or is_linearizable(kind, begun)


def test_a_search_that_takes_too_long_is_undecided() -> None:
    """Every order of 30 writes at once is tried before it is clear that the read of nothing is impossible."""
    reads = [Recorded(client="c", kind=Kind.READ, invoked=2, returned=3, outcome=Outcome.NONE)]
    writes = [
        Recorded(
            client="c", kind=Kind.RELEASE, named=f"c{place}", invoked=0, returned=1, outcome=Outcome.RELEASED
        )
        for place in range(30)
    ]

    def step(state: frozenset[str], op: Recorded, _latest: float) -> Iterator[frozenset[str]]:
        if op.kind is Kind.RELEASE:
            yield state | {str(op.named)}

    judged = Partition("set", frozenset[str](), step, [*writes, *reads], lambda _: False).judge(
        most_steps=20_000
    )
    assert judged.verdict is Verdict.UNDECIDED
