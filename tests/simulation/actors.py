"""How operators and schedulers ask the registry: over a network, and again where no answer came.

An answer may be lost on its way back. The caller then sends the same request again, which must do no harm.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial

from gpu_agent.registry.actions import Refusal, Result
from gpu_agent.registry.events import (
    ClaimRequested,
    ClaimWaitEnded,
    Command,
    ControlRequested,
    CordonRequested,
    DrainRequested,
    Event,
    GpuCordonRequested,
    JoinTokenRequested,
    ReleaseRequested,
    RemovalRequested,
    RenewalRequested,
    ResumeRequested,
    RevocationRequested,
    RotationRequested,
)
from gpu_agent.registry.job import Claim, Job
from gpu_agent.registry.tokens import CredentialKind
from gpu_agent.server.tokens import PREFIXES
from gpu_agent.session.types import DrainRequested as types_DrainRequested
from gpu_agent.session.types import OwnerChanged, RefreshRequested
from gpu_agent.session.types import ResumeRequested as types_ResumeRequested
from tests.simulation.agents import Agent
from tests.simulation.cluster import Cluster
from tests.simulation.host import MODELS, ZONES, Run
from tests.simulation.registry_process import RegistryProcess
from tests.simulation.world import World

PATIENCE_SECONDS = 5.0
_LOST_ANSWERS = 0.03

RequestFactory = Callable[[int], Event]
Then = Callable[[Result], None]


class RequestSender:
    """Carries requests to the registry and answers back."""

    def __init__(self, world: World, registry: RegistryProcess) -> None:
        self._world = world
        self._registry = registry

    def ask(
        self,
        asking: RequestFactory,
        then: Then | None = None,
        *,
        tries: int = 3,
        patience: float = PATIENCE_SECONDS,
    ) -> None:
        """Ask, so many times at most until an answer comes; `then` gets it, and nothing where none did."""
        self._world.after(self._way(), lambda: self._try(asking, then, tries=tries, patience=patience))

    def close(self, ref: int) -> None:
        """Close a request that waits: its connection is gone."""
        self._registry.ask(lambda _: ClaimWaitEnded(ref), lambda _: None)

    def _try(self, asking: RequestFactory, then: Then | None, *, tries: int, patience: float) -> None:
        answered = False

        def reply(result: Result) -> None:
            nonlocal answered
            if not answered and not self._world.chance(_LOST_ANSWERS):
                answered = True
                if then is not None:
                    self._world.after(self._way(), lambda: then(result))

        def look() -> None:
            if not answered and tries > 1:
                self.ask(asking, then, tries=tries - 1, patience=patience)

        self._registry.ask(asking, reply)
        if not answered:
            self._world.after(patience, look)

    def _way(self) -> float:
        return self._world.dice.uniform(0.001, 0.05)


# A scheduler: claims GPUs and slots or waits for them, starts jobs, renews, releases; and crashes, and asks
# for the same again. Of some claims it renews none, and lets the job go on after the claim's end.


_GONE = frozenset({"CLAIM_NOT_FOUND", "CLAIM_SUPERSEDED"})
_LONGEST_JOB_SECONDS = 180.0
_RETRY_SECONDS = 20.0
_RENEWALS_PER_TTL = 3
_GIVES_UP_AFTER = 8
_UNRENEWED = 0.1
"""So many jobs go on while nobody renews their claims."""

_LATE_RELEASES = 0.3
"""So often a claim that is gone is released once more."""

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
    renewed: bool = True
    waits: set[int] = field(default_factory=set)
    """The requests that may wait in the queue."""


class Scheduler:
    """Brings jobs until it is stopped."""

    def __init__(self, cluster: Cluster, sender: RequestSender) -> None:
        self._cluster, self._sender = cluster, sender
        self._world = cluster.world
        self._works: list[_Work] = []
        self._life = 0
        self._drawn = 0
        self._stopped = False

    def start(self) -> None:
        """Bring a job now and then."""
        self._later(self._world.soon(self._cluster.profile.job_every_seconds), self._bring)

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
                for ref in work.waits:
                    self._sender.close(ref)
                work.waits.clear()
                self._later(self._world.dice.uniform(0.1, 5.0), partial(self._claim, work))

    def _bring(self) -> None:
        if self._stopped:
            return
        work = _Work(self._draw(), self._world.dice.uniform(1.0, _LONGEST_JOB_SECONDS))
        work.renewed = not self._world.chance(_UNRENEWED)
        self._works.append(work)
        self._claim(work)
        self.start()

    def _claim(self, work: _Work) -> None:
        work.tries += 1
        life = self._life

        def asking(ref: int) -> Event:
            self._drawn += 1
            if work.job.wait_seconds:
                work.waits.add(ref)
            return ClaimRequested(ref, work.job, f"claim-{self._drawn}")

        self._sender.ask(
            asking,
            lambda result: self._claimed(work, result, life=life),
            patience=work.job.wait_seconds + PATIENCE_SECONDS,
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
        """Start the job on each machine that goes by a node of the claim."""
        for grant in claim.grants:
            for agent in self._cluster.boxes_of(grant.node_id):
                agent.host.jobs[work.job.job_id] = Run(grant.gpu_uuids, work.job.min_gpu_memory_mb or 0)
                agent.look()

    def _renew_later(self, work: _Work) -> None:
        ttl = work.job.ttl_seconds or self._cluster.profile.thresholds.claim_ttl_seconds
        self._later(ttl / _RENEWALS_PER_TTL, lambda: self._renew(work))

    def _renew(self, work: _Work) -> None:
        if work.done or work.claim is None or not work.renewed:
            return
        life, claim_id = self._life, work.claim.claim_id
        self._sender.ask(
            lambda ref: RenewalRequested(ref, work.job.job_id, claim_id),
            lambda result: self._renewed(work, result, life=life),
            tries=1,
        )
        self._renew_later(work)

    def _renewed(self, work: _Work, result: Result, *, life: int) -> None:
        """Look elsewhere for a job whose claim is gone."""
        gone = isinstance(result, Refusal) and result.code in _GONE
        if gone and not work.done and life == self._life and work.claim is not None:
            self._leave(work)
            late, work.claim = work.claim.claim_id, None
            self._claim(work)
            if self._world.chance(_LATE_RELEASES):
                self._later(
                    self._world.soon(_RETRY_SECONDS),
                    lambda: self._sender.ask(lambda ref: ReleaseRequested(ref, work.job.job_id, late)),
                )

    def _end(self, work: _Work) -> None:
        if not work.done:
            work.done = True
            self._leave(work)
            claim_id = None if work.claim is None else work.claim.claim_id
            self._sender.ask(lambda ref: ReleaseRequested(ref, work.job.job_id, claim_id))

    def _leave(self, work: _Work) -> None:
        for agent in self._cluster.agents:
            if agent.host.jobs.pop(work.job.job_id, None) is not None:
                agent.look()

    def _later(self, seconds: float, do: Callable[[], None]) -> None:
        life = self._life

        def unless_crashed() -> None:
            if life == self._life:
                do()

        self._world.after(seconds, unless_crashed)

    def _draw(self) -> Job:
        dice = self._world.dice
        sharing = dice.choice((None, "exclusive", "exclusive", "memory"))
        count = None if sharing is None else dice.choice((1, 1, 1, 2))
        return Job(
            job_id=f"job-{len(self._works) + 1}",
            required_models=(dice.choice(MODELS),) if dice.random() < 1 / 2 else (),
            public=dice.random() < 1 / 3,
            gpu_count=count,
            gpu_sharing=sharing,
            min_gpu_memory_mb=dice.choice((4_096, 16_384, 40_000)) if sharing == "memory" else None,
            labels={"zone": dice.choice((*ZONES, ZONES))} if dice.random() < 1 / 4 else {},
            nodes=dice.choice((1, 1, 1, 1, 2, 3)),
            affinity_key=dice.choice((None, None, "chat", "voice")),
            priority=dice.choice((0, 0, 0, 10)),
            ttl_seconds=dice.choice((None, None, 15.0, 90.0)),
            wait_seconds=dice.choice((0.0, 10.0, 120.0, 300.0)),
        )


# Operators: they drain and resume, cordon and uncordon, forget. Each asks once more where no answer came.


class Operators:
    """Send requests about the nodes that they know."""

    def __init__(self, cluster: Cluster, sender: RequestSender) -> None:
        self._cluster, self._sender = cluster, sender

    def drain_or_resume(self) -> None:
        """Empty a node, or take one back."""
        dice = self._cluster.world.dice
        seconds = dice.choice((None, 0.0, 5.0, 60.0))
        if dice.random() < 1 / 2:
            self._request(
                "drains", lambda node: lambda ref: DrainRequested(ref, node, seconds, "works on it")
            )
        else:
            self._request("resumes", lambda node: lambda ref: ResumeRequested(ref, node))

    def cordon_or_uncordon(self) -> None:
        """Close a node to new jobs, or open it."""
        reason = self._cluster.world.dice.choice((None, None, "looks odd", ""))
        verb = "uncordons" if reason is None else "cordons"
        self._request(verb, lambda node: lambda ref: CordonRequested(ref, node, reason))

    def cordon_or_uncordon_gpu(self) -> None:
        """Close one GPU of a node to new claims, or open it."""
        dice = self._cluster.world.dice
        reason = dice.choice((None, "looks odd", "falls off the bus"))
        verb = "uncordons" if reason is None else "cordons"

        def about(node_id: str) -> RequestFactory:
            record = self._cluster.fleet.node(node_id)
            cordoned = [] if record is None else list(record.desired.gpu_cordons)
            declared = [] if record is None else list(record.gpus)
            uuid = dice.choice(cordoned if cordoned and reason is None else declared)
            self._cluster.world.say("operator", f"means {uuid}")
            return lambda ref: GpuCordonRequested(ref, node_id, uuid, reason)

        self._request(f"{verb} a GPU of", about)

    def order(self) -> None:
        """Have a node register again, or probe."""
        command = self._cluster.world.dice.choice(tuple(Command))
        self._request(f"orders {command} of", lambda node: lambda ref: ControlRequested(ref, node, command))

    def forget(self) -> None:
        """Let a node's record go."""
        self._request("forgets", lambda node: lambda ref: RemovalRequested(ref, node))

    def _request(self, verb: str, about: Callable[[str], RequestFactory]) -> None:
        known = self._known()
        if known:
            node_id = self._cluster.world.dice.choice(known)
            self._cluster.world.say("operator", f"{verb} {node_id}")
            self._sender.ask(about(node_id))

    def _known(self) -> list[str]:
        return (
            sorted(record.node_id for record in self._cluster.records())
            if self._cluster.registry.running
            else []
        )


# Owners: they drain their machines, take them back, have them probed, and say where workers are reached.


class Owners:
    """Ask things of agents that run, on the machine itself."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster

    def ask(self) -> None:
        """Have one agent do something."""
        dice = self._cluster.world.dice
        agent = dice.choice(self._cluster.agents)
        if not agent.listens:
            return
        match dice.choice(("drain", "drain", "resume", "refresh", "endpoint")):
            case "drain":
                agent.take_request(
                    types_DrainRequested("its owner works on it", dice.choice((None, 0.0, 5.0, 60.0)))
                )
            case "resume":
                agent.take_request(types_ResumeRequested())
            case "refresh":
                agent.take_request(RefreshRequested())
            case _:
                agent.host.owner = replace(
                    agent.host.owner, endpoint=f"http://{agent.name}:{dice.choice((9000, 9001))}"
                )
                agent.take_request(OwnerChanged())
                agent.look()

    def take_back(self) -> None:
        """Have every agent that was drained work again."""
        for agent in self._cluster.agents:
            if agent.own_drain is not None and agent.listens:
                agent.take_request(types_ResumeRequested())


# The operator who sees to tokens: hands out, rotates, reclaims, revokes, and helps who is locked out.


_PATIENT_TRIES = 1_000_000
_ANSWER_SECONDS = 6.0


class TokenAdministrator:
    """Does nothing in a world with auth off."""

    def __init__(self, cluster: Cluster, sender: RequestSender) -> None:
        self._cluster, self._sender = cluster, sender
        self._join_id: str | None = None
        """Of the join token that lies on every machine."""

    def open(self) -> None:
        """Give every machine a join token."""
        if not self._cluster.profile.auth_off:
            self._join_token(self._hand_out, tries=_PATIENT_TRIES)

    def work(self) -> None:
        """Do one of the things that are done to tokens."""
        if not self._cluster.profile.auth_off:
            self._cluster.world.dice.choice((self._rotate, self._rotate, self._reclaim, self._replace))()

    def help(self, agent: Agent) -> None:
        """Put a join token on the machine of somebody who is locked out for good.

        A node whose token an operator ended waits under its id, and only a token for that id lets it in.
        """
        records = {record.node_id: record for record in self._cluster.records()}
        known = records.get(agent.disk.node_id or "")
        ended = known is not None and not known.tokens.all
        self._join_token(
            lambda _, text: setattr(agent.disk, "join_token", text),
            node_id=agent.disk.node_id if ended else None,
            tries=_PATIENT_TRIES,
        )

    def _hand_out(self, token_id: str, text: str) -> None:
        self._join_id = token_id
        for agent in self._cluster.agents:
            agent.disk.join_token = text

    def _replace(self) -> None:
        """Revoke the join token that lies everywhere, and hand out another; sometimes with few uses."""
        old, dice = self._join_id, self._cluster.world.dice
        uses = dice.choice((None, None, len(self._cluster.agents), 1))
        self._join_token(self._hand_out, uses=uses)
        if old is not None:
            self._say(f"revokes {old}")
            self._sender.ask(lambda ref: RevocationRequested(ref, old))

    def _rotate(self) -> None:
        node_id, dice = self._some_node(), self._cluster.world.dice
        revoke_now = dice.random() < 1 / 4
        if node_id is not None:
            self._say(f"rotates {node_id}{' now' if revoke_now else ''}")
            self._sender.ask(lambda ref: RotationRequested(ref, node_id, revoke_now))

    def _reclaim(self) -> None:
        """Give a machine that lost its state its id back."""
        known = [one for one in self._cluster.agents if one.disk.node_id is not None]
        if known:
            agent = self._cluster.world.dice.choice(known)
            node_id = agent.disk.node_id
            agent.crash(without_a_word=False)
            agent.disk.node_id = agent.disk.node_token = None
            self._say(f"reclaims {node_id} for {agent.name}")

            def hand_over(_: str, text: str) -> None:
                agent.disk.join_token = text
                agent.start()

            self._join_token(hand_over, node_id=node_id)
            self._cluster.world.after(60.0, agent.start)

    def _join_token(
        self,
        received: Callable[[str, str], None],
        *,
        uses: int | None = None,
        node_id: str | None = None,
        tries: int = 3,
    ) -> None:
        """Create a join or reclaim token, and another where no answer came: the text of the first is lost."""
        minted = self._cluster.world.mint(PREFIXES[CredentialKind.JOIN])
        self._say(f"makes {minted.token_id} for {node_id or f'{uses} nodes'}")
        heard: list[str] = []

        def then(result: Result) -> None:
            if not isinstance(result, Refusal):
                heard.append(minted.token_id)
                received(minted.token_id, minted.text)

        def look() -> None:
            if not heard and tries > 1:
                self._join_token(received, uses=uses, node_id=node_id, tries=tries - 1)

        self._sender.ask(
            lambda ref: JoinTokenRequested(
                ref=ref,
                token_id=minted.token_id,
                digest=minted.digest,
                uses=1 if node_id is not None else uses,
                node_id=node_id,
                reclaims=node_id is not None,
            ),
            then,
            tries=1,
        )
        self._cluster.world.after(_ANSWER_SECONDS, look)

    def _some_node(self) -> str | None:
        registry = self._cluster.registry
        known = sorted(record.node_id for record in self._cluster.records()) if registry.running else []
        return self._cluster.world.dice.choice(known) if known else None

    def _say(self, what: str) -> None:
        self._cluster.world.say("operator", what)
