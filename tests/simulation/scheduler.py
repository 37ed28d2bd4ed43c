"""A scheduler: asks for places, starts jobs, renews, gives back; and crashes, and asks for the same again."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from gpu_agent.registry.actions import Refusal, Result
from gpu_agent.registry.events import ClaimAsked, ReleaseAsked, RenewalAsked
from gpu_agent.registry.job import Claim, Job
from tests.simulation.box import MODELS, ZONES, Run
from tests.simulation.desk import Desk
from tests.simulation.scene import Scene

_LONGEST_JOB_SECONDS = 180.0
_RETRY_SECONDS = 20.0
_RENEWALS_PER_TTL = 3
_GIVES_UP_AFTER = 8
_LOST_WORKS = 0.2
"""So many of its jobs a scheduler that crashes never thinks of again."""


@dataclass(slots=True)
class _Work:
    """One job, as the scheduler's own database has it."""

    job: Job
    seconds: float
    tries: int = 0
    claim: Claim | None = None
    done: bool = False


class Scheduler:
    """Brings jobs until it is told to stop."""

    def __init__(self, scene: Scene, desk: Desk) -> None:
        self._scene, self._desk = scene, desk
        self._world = scene.world
        self._works: list[_Work] = []
        self._life = 0
        self._stopped = False

    def start(self) -> None:
        """Bring a job now and then."""
        self._later(self._world.soon(self._scene.climate.job_every_seconds), self._bring)

    def stop(self) -> None:
        """Bring no more jobs; those there are end in their time."""
        self._stopped = True

    def crash(self) -> None:
        """Forget what was under way; the new process begins with the database, or what is left of it."""
        self._world.say("scheduler", "crashes")
        self._life += 1
        self.start()
        for work in self._works:
            if not work.done and self._world.chance(_LOST_WORKS):
                work.done = True
            elif not work.done:
                work.claim = None
                self._later(self._world.dice.uniform(0.1, 5.0), partial(self._claim, work))

    def _bring(self) -> None:
        if self._stopped:
            return
        work = _Work(self._draw(), self._world.dice.uniform(1.0, _LONGEST_JOB_SECONDS))
        self._works.append(work)
        self._claim(work)
        self.start()

    def _claim(self, work: _Work) -> None:
        work.tries += 1
        life = self._life
        self._desk.ask(
            lambda ref: ClaimAsked(ref, work.job), lambda result: self._claimed(work, result, life=life)
        )

    def _claimed(self, work: _Work, result: Result, *, life: int) -> None:
        if work.done or life != self._life:
            return
        if isinstance(result, Claim):
            first, work.claim = work.claim is None, result
            self._run(work, result)
            if first:
                self._later(work.seconds, lambda: self._end(work))
            self._renew_later(work)
        elif work.tries < _GIVES_UP_AFTER and not self._stopped:
            self._later(self._world.soon(_RETRY_SECONDS), lambda: self._claim(work))
        else:
            work.done = True

    def _run(self, work: _Work, claim: Claim) -> None:
        """Start the job on the machine that goes by the claim's node."""
        for agent in self._scene.boxes_of(claim.node_id):
            agent.box.jobs[work.job.job_id] = Run(claim.gpu_uuids, claim.memory_mb)
            agent.look()

    def _renew_later(self, work: _Work) -> None:
        ttl = self._scene.climate.thresholds.claim_ttl_seconds
        self._later(ttl / _RENEWALS_PER_TTL, lambda: self._renew(work))

    def _renew(self, work: _Work) -> None:
        if work.done or work.claim is None:
            return
        life = self._life
        self._desk.ask(
            lambda ref: RenewalAsked(ref, work.job.job_id),
            lambda result: self._renewed(work, result, life=life),
            tries=1,
        )
        self._renew_later(work)

    def _renewed(self, work: _Work, result: Result, *, life: int) -> None:
        """Look elsewhere for a job whose claim is gone."""
        gone = isinstance(result, Refusal) and result.code == "CLAIM_NOT_FOUND"
        if gone and not work.done and life == self._life and work.claim is not None:
            self._leave(work)
            work.claim = None
            self._claim(work)

    def _end(self, work: _Work) -> None:
        if not work.done:
            work.done = True
            self._leave(work)
            self._desk.ask(lambda ref: ReleaseAsked(ref, work.job.job_id))

    def _leave(self, work: _Work) -> None:
        for agent in self._scene.agents:
            if agent.box.jobs.pop(work.job.job_id, None) is not None:
                agent.look()

    def _later(self, seconds: float, do: Callable[[], None]) -> None:
        life = self._life

        def unless_crashed() -> None:
            if life == self._life:
                do()

        self._world.after(seconds, unless_crashed)

    def _draw(self) -> Job:
        dice = self._world.dice
        return Job(
            job_id=f"job-{len(self._works) + 1}",
            required_models=(dice.choice(MODELS),) if dice.random() < 1 / 2 else (),
            public=dice.random() < 1 / 3,
            gpu_count=dice.choice((1, 1, 1, 2)),
            min_gpu_memory_mb=dice.choice((None, 4_096, 16_384, 40_000)),
            labels={"zone": dice.choice(ZONES)} if dice.random() < 1 / 4 else {},
            affinity_key=dice.choice((None, None, "chat", "voice")),
        )
