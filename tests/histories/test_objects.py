"""What histories of a few requests say about jobs, GPUs and slots."""

import random
from pathlib import Path

import pytest

from tests.histories.linearizability import NEVER
from tests.histories.objects import check
from tests.histories.record import History, JobKind, Kind, Machine, Outcome, Recorded, Run, Shown, read, write

MACHINE = Machine("node-a", ("GPU-a0", "GPU-a1"), memory_mb=80_000, slots=2)
ALONE, SHARED, SLOT = JobKind(gpus=1), JobKind(gpus=1, memory_mb=50_000), JobKind()
EXPIRING = JobKind(gpus=1, ttl_seconds=2.0)


class Clients:
    """Requests one after the other, each a tenth of a second long, a second apart."""

    def __init__(self, **jobs: JobKind) -> None:
        self.history = History(jobs, (MACHINE,))
        self.now = 0.0

    def claim(self, job: str, claim: str, *gpus: str, kind: Kind = Kind.CLAIM) -> None:
        self.add(kind, job, Outcome.SHOWN, shown=(self.shown(job, claim, *gpus),))

    def renew(self, job: str, claim: str, *gpus: str) -> None:
        self.add(Kind.RENEW, job, Outcome.SHOWN, named=claim, shown=(self.shown(job, claim, *gpus),))

    def release(self, job: str, claim: str | None, outcome: Outcome = Outcome.RELEASED) -> None:
        self.add(Kind.RELEASE, job, outcome, named=claim)

    def add(
        self,
        kind: Kind,
        job: str,
        outcome: Outcome,
        *,
        named: str | None = None,
        shown: tuple[Shown, ...] = (),
    ) -> None:
        returned = NEVER if outcome is Outcome.UNKNOWN else self.now + 0.1
        self.history.add(
            Recorded(
                client="client",
                kind=kind,
                job=job,
                named=named,
                outcome=outcome,
                shown=shown,
                invoked=self.now,
                returned=returned,
            )
        )
        self.now += 1

    @staticmethod
    def shown(job: str, claim: str, *gpus: str) -> Shown:
        return Shown(job, claim, (("node-a", gpus),))

    def problems(self) -> list[str]:
        result = check(self.history)
        assert not result.undecided
        return [one.what for one in result.violations]


def test_claims_that_follow_each_other_are_right() -> None:
    clients = Clients(a=ALONE, b=ALONE)
    clients.claim("a", "c1", "GPU-a0")
    clients.renew("a", "c1", "GPU-a0")
    clients.claim("a", "c1", "GPU-a0", kind=Kind.READ)
    clients.release("a", "c1")
    clients.claim("b", "c2", "GPU-a0")
    clients.release("a", "c1", Outcome.NONE)
    clients.add(Kind.READ, "a", Outcome.NONE)
    clients.add(Kind.LIST, "", Outcome.SHOWN, shown=(clients.shown("b", "c2", "GPU-a0"),))
    assert clients.problems() == []


def test_a_claim_that_is_gone_without_a_release_was_lost() -> None:
    clients = Clients(a=ALONE)
    clients.claim("a", "c1", "GPU-a0")
    clients.add(Kind.READ, "a", Outcome.NONE)
    assert clients.problems() == ["a is not linearizable"]


def test_a_second_claim_of_a_job_that_holds_one_is_a_violation() -> None:
    clients = Clients(a=ALONE)
    clients.claim("a", "c1", "GPU-a0")
    clients.claim("a", "c2", "GPU-a1")
    assert clients.problems() == ["a is not linearizable"]


def test_a_claim_that_comes_back_after_its_release_is_a_violation() -> None:
    clients = Clients(a=ALONE)
    clients.claim("a", "c1", "GPU-a0")
    clients.release("a", "c1")
    clients.claim("a", "c1", "GPU-a0")
    assert "a is not linearizable" in clients.problems()


def test_a_release_whose_outcome_is_unknown_may_take_effect_at_any_later_time_once() -> None:
    clients = Clients(a=ALONE)
    clients.claim("a", "c1", "GPU-a0")
    clients.release("a", "c1", Outcome.UNKNOWN)
    clients.renew("a", "c1", "GPU-a0")
    clients.add(Kind.READ, "a", Outcome.NONE)
    assert clients.problems() == []
    clients.renew("a", "c1", "GPU-a0")
    assert "a is not linearizable" in clients.problems()


def test_a_claim_whose_outcome_is_unknown_may_be_seen_later_and_is_one_claim() -> None:
    clients = Clients(a=ALONE)
    clients.add(Kind.CLAIM, "a", Outcome.UNKNOWN)
    clients.add(Kind.READ, "a", Outcome.NONE)
    clients.claim("a", "c1", "GPU-a0", kind=Kind.READ)
    assert clients.problems() == []
    clients.claim("a", "c2", "GPU-a1", kind=Kind.READ)
    assert "a is not linearizable" in clients.problems()


def test_a_claim_that_no_request_was_granted_is_a_violation() -> None:
    clients = Clients(a=ALONE)
    clients.claim("a", "c1", "GPU-a0", kind=Kind.READ)
    assert "no request was granted claim c1" in clients.problems()


@pytest.mark.parametrize(("first", "second"), [(ALONE, ALONE), (ALONE, SHARED), (SHARED, SHARED)])
def test_a_gpu_that_two_claims_may_not_share_is_given_out_once(first: JobKind, second: JobKind) -> None:
    clients = Clients(a=first, b=second)
    clients.claim("a", "c1", "GPU-a0")
    clients.claim("b", "c2", "GPU-a0")
    assert clients.problems() == ["GPU-a0 of node-a is not linearizable"]


def test_claims_share_the_memory_of_a_gpu() -> None:
    half = JobKind(gpus=1, memory_mb=40_000)
    clients = Clients(a=half, b=half)
    clients.claim("a", "c1", "GPU-a0")
    clients.claim("b", "c2", "GPU-a0")
    assert clients.problems() == []


def test_a_node_takes_as_many_claims_as_it_has_slots() -> None:
    clients = Clients(a=SLOT, b=SLOT, c=SLOT)
    clients.claim("a", "c1")
    clients.claim("b", "c2")
    assert clients.problems() == []
    clients.claim("c", "c3")
    assert clients.problems() == ["slots of node-a is not linearizable"]


def test_beside_a_claim_without_gpus_one_gpu_is_given_to_no_claim_alone() -> None:
    clients = Clients(a=SLOT, b=JobKind(gpus=2))
    clients.claim("a", "c1")
    clients.claim("b", "c2", "GPU-a0", "GPU-a1")
    assert clients.problems() == ["slots of node-a is not linearizable"]


def test_a_list_shows_every_claim_of_one_moment() -> None:
    clients = Clients(a=ALONE, b=ALONE)
    clients.claim("a", "c1", "GPU-a0")
    clients.claim("b", "c2", "GPU-a1")
    clients.add(Kind.LIST, "", Outcome.SHOWN, shown=(clients.shown("b", "c2", "GPU-a1"),))
    assert set(clients.problems()) == {
        "a is not linearizable",
        "GPU-a0 of node-a is not linearizable",
        "slots of node-a is not linearizable",
    }


def test_a_claim_expires_when_its_time_is_over_and_not_before() -> None:
    clients = Clients(a=EXPIRING)
    clients.claim("a", "c1", "GPU-a0")
    clients.renew("a", "c1", "GPU-a0")
    clients.now += 0.95
    clients.add(Kind.READ, "a", Outcome.NONE)
    assert clients.problems() == []
    clients = Clients(a=EXPIRING)
    clients.claim("a", "c1", "GPU-a0")
    clients.renew("a", "c1", "GPU-a0")
    clients.add(Kind.READ, "a", Outcome.NONE)
    assert clients.problems() == ["a is not linearizable"]


def test_the_gpu_of_an_expired_claim_is_released_by_its_name_once() -> None:
    clients = Clients(a=EXPIRING)
    clients.claim("a", "c1", "GPU-a0")
    clients.now = 5
    clients.add(Kind.READ, "a", Outcome.NONE)
    clients.release("a", "c1")
    assert clients.problems() == []
    clients.release("a", "c1")
    assert clients.problems() == ["a is not linearizable"]


@pytest.mark.parametrize(("at", "is_right"), [(6.0, False), (8.5, True)])
def test_the_gpu_of_an_expired_claim_is_free_once_its_job_is_gone(at: float, *, is_right: bool) -> None:
    clients = Clients(a=EXPIRING, b=ALONE)
    clients.claim("a", "c1", "GPU-a0")
    clients.history.add_run(Run("c1", 0.1, 8.0))
    clients.now = 4
    clients.add(Kind.READ, "a", Outcome.NONE)
    clients.now = at
    clients.claim("b", "c2", "GPU-a0")
    assert clients.problems() == ([] if is_right else ["GPU-a0 of node-a is not linearizable"])


def test_a_job_gets_its_own_held_gpu_again() -> None:
    clients = Clients(a=EXPIRING)
    clients.claim("a", "c1", "GPU-a0")
    clients.history.add_run(Run("c1", 0.1, 8.0))
    clients.now = 4
    clients.claim("a", "c2", "GPU-a0")
    assert clients.problems() == []


@pytest.mark.parametrize(
    ("nodes", "kind", "problem"),
    [
        ((("node-a", ("GPU-a0",)),), JobKind(nodes=2, gpus=1), "where 2 different nodes were requested"),
        ((("node-a", ("GPU-a0",)),), JobKind(gpus=2), "where 2 GPUs were requested"),
        ((("node-a", ("GPU-a0", "GPU-a0")),), JobKind(gpus=2), "where 2 GPUs were requested"),
    ],
)
def test_a_claim_reserves_what_was_requested(
    nodes: tuple[tuple[str, tuple[str, ...]], ...], kind: JobKind, problem: str
) -> None:
    clients = Clients(a=kind)
    clients.add(Kind.CLAIM, "a", Outcome.SHOWN, shown=(Shown("a", "c1", nodes),))
    assert any(problem in one for one in clients.problems())


def test_a_claim_that_moves_is_a_violation() -> None:
    clients = Clients(a=ALONE)
    clients.claim("a", "c1", "GPU-a0")
    clients.renew("a", "c1", "GPU-a1")
    assert "claim c1 is shown in two ways" in clients.problems()


def test_an_answer_that_no_state_explains_is_a_violation() -> None:
    clients = Clients(a=ALONE)
    clients.add(Kind.CLAIM, "a", Outcome.UNEXPECTED)
    assert clients.problems() == ["an answer is right in no state"]


def test_a_history_is_judged_alike_after_it_was_written_and_read(tmp_path: Path) -> None:
    clients = Clients(a=ALONE, b=EXPIRING)
    clients.claim("a", "c1", "GPU-a0")
    clients.release("a", "c1", Outcome.UNKNOWN)
    clients.claim("b", "c2", "GPU-a0")
    clients.history.add_run(Run("c2", 2.1, 3.0))
    write(tmp_path / "history.json", clients.history, about=[])
    again = read(tmp_path / "history.json")
    for one in ("jobs", "fleet", "operations", "runs"):
        assert getattr(again, one) == getattr(clients.history, one)


class Model:
    """A registry of one node, right by construction: each request takes effect at one moment."""

    def __init__(self, dice: random.Random, history: History) -> None:
        self._dice, self._history = dice, history
        self._held: dict[str, Shown] = {}
        self._granted = 0

    def request(self, at: float) -> Recorded:
        """Carry out one request, or lose it; its caller learns what happened, or nothing."""
        job = self._dice.choice(list(self._history.jobs))
        kind = self._dice.choice(list(Kind))
        known = [one.claim for op in self._history.operations for one in op.shown if one.job == job]
        named = self._dice.choice(known) if known and kind in (Kind.RENEW, Kind.RELEASE) else None
        if kind is Kind.RENEW and named is None:
            kind = Kind.READ
        is_lost = self._dice.random() < 0.2
        is_unknown = is_lost or self._dice.random() < 0.1
        outcome, shown = Outcome.UNKNOWN, tuple[Shown, ...]()
        if not is_lost:
            outcome, shown = self._carry_out(kind, job, named)
        return Recorded(
            client="client",
            kind=kind,
            job=job if kind is not Kind.LIST else "",
            named=named,
            outcome=Outcome.UNKNOWN if is_unknown else outcome,
            shown=() if is_unknown else shown,
            invoked=at - self._dice.uniform(0, 3),
            returned=NEVER if is_unknown else at + self._dice.uniform(0, 3),
        )

    def _carry_out(self, kind: Kind, job: str, named: str | None) -> tuple[Outcome, tuple[Shown, ...]]:
        held = self._held.get(job)
        if kind is Kind.LIST:
            return Outcome.SHOWN, tuple(self._held.values())
        if held is None and kind is Kind.CLAIM:
            held = self._grant(job)
        if held is None:
            return Outcome.NONE, ()
        if named not in (None, held.claim):
            return Outcome.OTHER, ()
        if kind is Kind.RELEASE:
            del self._held[job]
            return Outcome.RELEASED, ()
        return Outcome.SHOWN, (held,)

    def _grant(self, job: str) -> Shown | None:
        used = {gpu for one in self._held.values() for _, gpus in one.nodes for gpu in gpus}
        free = [gpu for gpu in MACHINE.gpus if gpu not in used]
        if not free:
            return None
        self._granted += 1
        self._held[job] = Shown(job, f"c{self._granted}", (("node-a", (self._dice.choice(free),)),))
        return self._held[job]


@pytest.mark.parametrize("seed", range(60))
def test_what_a_right_registry_answers_to_requests_at_the_same_time_is_linearizable(seed: int) -> None:
    dice = random.Random(seed)
    history = History(dict.fromkeys("abcd", ALONE), (MACHINE,))
    model = Model(dice, history)
    for place in range(60):
        history.add(model.request(float(place)))
    assert check(history).violations == []
